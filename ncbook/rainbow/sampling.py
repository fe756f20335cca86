r"""Gaussian rainbow networks: weights whose covariances may depend on the layers below, and surrogates.

A rainbow network has :math:`W_\ell = Z_\ell C_\ell^{1/2}` with independent :math:`Z_\ell` of entries
N(0, 1/fan-in) and covariances :math:`C_\ell` that may be functions of the earlier weights (Guth et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ncbook.rainbow.covariances import features
from ncbook.rainbow.hermite import Activation
from ncbook.runtime import DTYPE, as_tensor, generator

__all__ = ["rainbow_surrogate", "sample_rainbow", "symmetric_root"]

Covariance = Callable[[list[Tensor]], Any]


def sample_rainbow(covariances: Sequence[Any], widths: Sequence[int], seed: int) -> list[Tensor]:
    r"""Draw the weights of a Gaussian rainbow network, :math:`W_\ell = Z_\ell C_\ell^{1/2}`.

    Args:
        covariances: one a layer: a matrix :math:`C_\ell` (fan-in, fan-in), None for the identity, or a
            function of the list of the weights of the layers before, which returns either.
        widths: (d, p_1, …, p_L), the dimension of the inputs first.
        seed: a non-negative integer.

    Returns:
        The weights W_1 (p_1, d), W_2 (p_2, p_1), …, float64.

    Raises:
        ValueError: the numbers of covariances and widths do not fit, a covariance has the wrong shape, is
            not symmetric or has a negative eigenvalue, or a width is not positive.

    >>> W1, W2 = sample_rainbow([None, lambda earlier: earlier[0] @ earlier[0].T], (3, 5, 4), seed=0)
    >>> tuple(W1.shape), tuple(W2.shape)
    ((5, 3), (4, 5))
    """
    if len(widths) != len(covariances) + 1:
        raise ValueError(
            f"widths must be one more than covariances, (d, p_1, …), got {len(widths)} and {len(covariances)}"
        )
    if any(isinstance(width, bool) or int(width) != width or width < 1 for width in widths):
        raise ValueError(f"widths must be positive integers, got {tuple(widths)}")
    randomness = generator(seed)
    weights: list[Tensor] = []
    for layer, covariance in enumerate(covariances):
        fan_in, rows = int(widths[layer]), int(widths[layer + 1])
        Z = torch.randn(rows, fan_in, generator=randomness, dtype=DTYPE) / fan_in**0.5
        C = covariance(list(weights)) if callable(covariance) else covariance
        weights.append(Z if C is None else Z @ symmetric_root(C, fan_in, f"covariances[{layer}]"))
    return weights


def rainbow_surrogate(
    weights: Sequence[Any],
    inputs: Any,
    seed: int,
    align: bool = True,
    activations: Activation | Sequence[Activation] = "tanh",
) -> list[Tensor]:
    r"""Draw a rainbow network with the row covariances of given, for example trained, weights.

    Layer by layer :math:`W'_\ell = Z_\ell\, C_\ell^{1/2} Q_\ell^\top` with standard normal Z and
    :math:`C_\ell = W_\ell^\top W_\ell / p_\ell`. The rotation :math:`Q_\ell` carries the features of the
    original to those of the surrogate, which live in other coordinates: with
    :math:`\mathbb E[\varphi'_{\ell-1} \varphi_{\ell-1}^\top] = U \Sigma V^\top` it is :math:`U V^\top`
    (Guth et al. 2024).

    Args:
        weights: W_1 (p_1, d), W_2 (p_2, p_1), …
        inputs: samples on which the layers are aligned, one a row, (N, d).
        seed: a non-negative integer.
        align: whether to rotate; without it the covariances are in the wrong coordinates from layer 2 on.
        activations: of the network, one for all layers or one a layer.

    Returns:
        Weights of the same shapes, float64.

    Raises:
        ValueError: as in :func:`ncbook.rainbow.features`.

    >>> W = sample_rainbow([None, None], (4, 6, 5), seed=0)
    >>> [tuple(x.shape) for x in rainbow_surrogate(W, torch.eye(4), seed=1)]
    [(6, 4), (5, 6)]
    """
    original = features(weights, activations, inputs)  # checks the shapes too
    count = len(original)
    given = [activations] * count if isinstance(activations, str) or callable(activations) else activations
    randomness = generator(seed)
    drawn: list[Tensor] = []
    for layer, weight in enumerate(weights):
        W = as_tensor(weight, "weights", DTYPE)
        C = W.mT @ W / len(W)
        Z = torch.randn(W.shape, generator=randomness, dtype=DTYPE)
        new = Z @ symmetric_root(C, W.shape[1], "weights")
        if align and layer:
            new = new @ _rotation(features(drawn, given[:layer], inputs)[-1], original[layer - 1]).mT
        drawn.append(new)
    return drawn


def symmetric_root(C: Any, size: int | None = None, name: str = "C") -> Tensor:
    """Return the symmetric positive square root of a covariance matrix.

    Args:
        C: symmetric, positive semidefinite up to rounding, (p, p).
        size: the expected p.
        name: what to call the matrix in errors.

    Raises:
        ValueError: C has another shape, is not symmetric, or has a negative eigenvalue beyond rounding.

    >>> symmetric_root([[4.0, 0.0], [0.0, 9.0]])
    tensor([[2., 0.],
            [0., 3.]], dtype=torch.float64)
    """
    C = as_tensor(C, name, DTYPE)
    if C.ndim != 2 or C.shape[0] != C.shape[1] or (size is not None and len(C) != size):
        wanted = "(p, p)" if size is None else f"({size}, {size})"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(C.shape)}")
    scale = float(C.abs().max())
    if not torch.allclose(C, C.mT, rtol=0, atol=1e-10 * scale):
        raise ValueError(f"{name} must be symmetric, got an asymmetric matrix")
    eigenvalues, vectors = torch.linalg.eigh((C + C.mT) / 2)
    if float(eigenvalues[0]) < -1e-9 * max(float(eigenvalues[-1]), 0.0) or float(eigenvalues[-1]) < 0:
        raise ValueError(f"{name} must be positive semidefinite, got the eigenvalue {float(eigenvalues[0])}")
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.mT


def _rotation(new: Tensor, old: Tensor) -> Tensor:
    """The orthogonal Q that maximises tr Qᵀ E[new oldᵀ]."""
    U, _, Vt = torch.linalg.svd(new.mT @ old / len(new))
    return U @ Vt
