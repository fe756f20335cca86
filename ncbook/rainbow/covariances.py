r"""Covariances of deep random features, propagated layer by layer through linearised activations.

With features :math:`\varphi_\ell(x) = \varphi(W_\ell \varphi_{\ell-1}(x))` the covariance of a layer is, up
to an error that does not grow with the width,

.. math:: \Omega_\ell = k_1^2\, W_\ell \Omega_{\ell-1} W_\ell^\top + \kappa_*^2 I, \qquad
    r_\ell = \tfrac1{p_\ell} \operatorname{tr} W_\ell \Omega_{\ell-1} W_\ell^\top

(Schröder et al. 2024; proved there for one and two layers, conjectured for any depth). A teacher, and the
cross-covariance of student and teacher, are carried along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ncbook.rainbow.hermite import (
    Activation,
    activation_function,
    hermite_coefficients,
    joint_coefficient,
    joint_moment,
)
from ncbook.runtime import DTYPE, as_tensor

__all__ = [
    "LayerCoefficients",
    "LinearisedCovariances",
    "equivalent_linear_network",
    "features",
    "linearised_covariances",
]

Mode = Literal["mean", "neuron"]


class LayerCoefficients(NamedTuple):
    """Variance and Hermite coefficients of one layer: floats in mode "mean", tensors (p,) in "neuron".

    Fields: ``r`` pre-activation variance, ``k1`` mean slope, ``second_moment`` variance of the activation,
    ``kappa_star2`` its non-linear part.

    >>> LayerCoefficients(1.0, 1.0, 1.0, 0.0).k1
    1.0
    """

    r: Any
    k1: Any
    second_moment: Any
    kappa_star2: Any


@dataclass(frozen=True)
class LinearisedCovariances:
    """The covariances of the last layers, and the coefficients of every layer.

    Attributes:
        Omega: covariance of the student's features, (p, p).
        Psi: covariance of the teacher's features, (k, k), or None without a teacher.
        Phi: cross-covariance, student by teacher, (p, k), or None without a teacher.
        layers: the coefficients of the student, first layer first.
        teacher_layers: the coefficients of the teacher.
        cross: the coefficient κ̌² of each pair of layers: a float, or (p,) in mode "neuron"; 0 where the rows
            are not paired.

    >>> result = linearised_covariances([[[2.0]]], ["linear"], [[1.0]])
    >>> result.Omega.item(), result.Psi is None
    (4.0, True)
    """

    Omega: Tensor
    Psi: Tensor | None
    Phi: Tensor | None
    layers: tuple[LayerCoefficients, ...]
    teacher_layers: tuple[LayerCoefficients, ...]
    cross: tuple[Any, ...]


def linearised_covariances(
    weights: Sequence[Any],
    activations: Activation | Sequence[Activation],
    Omega0: Any,
    teacher_weights: Sequence[Any] | None = None,
    teacher_activations: Activation | Sequence[Activation] | None = None,
    mode: Mode = "mean",
    paired: bool | None = None,
) -> LinearisedCovariances:
    r"""Propagate the covariances of a deep network, and of a teacher, through linearised activations.

    .. math:: \Phi_\ell = k_1 k_1^*\, W_\ell \Phi_{\ell-1} V_\ell^\top + \check\kappa^2 I, \qquad
        \Omega_0 = \Psi_0 = \Phi_0 = \mathbb E\, x x^\top

    where :math:`\check\kappa^2` belongs to rows of student and teacher that correspond to each other. The
    deeper of the two continues alone: :math:`\Phi_\ell = k_1 W_\ell \Phi_{\ell-1}`, or
    :math:`k_1^* \Phi_{\ell-1} V_\ell^\top`. Mode "mean" takes one variance r a layer (the theorem's form),
    mode "neuron" that of each row: exact diagonals, and a much smaller error.

    Args:
        weights: of the student, W_1 (p_1, d), W_2 (p_2, p_1), …, first layer first.
        activations: one for all layers or one a layer; names or functions. They count as centred.
        Omega0: covariance of the inputs, (d, d).
        teacher_weights: of the teacher, V_1 (k_1, d), …; an empty sequence is a linear teacher; None: none.
        teacher_activations: like ``activations``.
        mode: ``mean`` or ``neuron``.
        paired: whether row i of W_ℓ belongs to row i of V_ℓ. None: wherever the widths agree; for
            independent rows κ̌² then comes out next to zero, for it begins with a power of their covariance.

    Raises:
        ValueError: shapes do not chain, numbers of activations and layers differ, a layer has no variance,
            the mode is unknown, or ``paired`` is demanded of layers of different width.

    >>> result = linearised_covariances([torch.eye(2)], "erf", torch.eye(2))
    >>> round(result.Omega[0, 0].item(), 6), result.Omega[0, 1].item()
    (0.464559, 0.0)
    """
    if mode not in ("mean", "neuron"):
        raise ValueError(f"mode must be 'mean' or 'neuron', got {mode!r}")
    Omega = _symmetric(Omega0, "Omega0")
    student = _network(weights, activations, len(Omega), "weights", "activations")
    if teacher_weights is None:
        layers = []
        for W, activation in student:
            Omega, coefficients = _layer(W, activation, Omega, mode)
            layers.append(coefficients)
        return LinearisedCovariances(Omega, None, None, tuple(layers), (), ())
    given = "tanh" if teacher_activations is None and not len(teacher_weights) else teacher_activations
    if given is None:
        raise ValueError("teacher_activations must be given with teacher_weights, got None")
    teacher = _network(teacher_weights, given, len(Omega), "teacher_weights", "teacher_activations")
    return _with_teacher(student, teacher, Omega, mode, paired)


def equivalent_linear_network(
    weights: Sequence[Any], activations: Activation | Sequence[Activation], Omega0: Any
) -> tuple[Tensor, Tensor]:
    r"""Return the noisy linear network that has the linearised covariance.

    .. math:: \varphi(x) \simeq W_{\mathrm{eff}}\, x + C_{\mathrm{eff}}^{1/2} \xi, \qquad
        \Omega = W_{\mathrm{eff}} \Omega_0 W_{\mathrm{eff}}^\top + C_{\mathrm{eff}}

    Every layer multiplies by :math:`k_1 W_\ell` and adds white noise of variance :math:`\kappa_*^2`, which
    the later layers carry on.

    Args:
        weights: W_1 (p_1, d), W_2 (p_2, p_1), …
        activations: one for all layers or one a layer.
        Omega0: covariance of the inputs, (d, d).

    Returns:
        The effective weights (p, d) and the covariance of the effective noise (p, p).

    Raises:
        ValueError: as in :func:`linearised_covariances`.

    >>> W, C = equivalent_linear_network([torch.eye(3)], "tanh", torch.eye(3))
    >>> round(W[0, 0].item(), 6), round(C[0, 0].item(), 6)
    (0.605706, 0.027415)
    """
    layers = linearised_covariances(weights, activations, Omega0).layers
    effective = torch.eye(len(as_tensor(Omega0, "Omega0")), dtype=DTYPE)
    noise = torch.zeros_like(effective)
    for weight, layer in zip(weights, layers, strict=True):
        W = layer.k1 * as_tensor(weight, "weights", DTYPE)
        noise = W @ noise @ W.mT + layer.kappa_star2 * torch.eye(len(W), dtype=DTYPE)
        effective = W @ effective
    return effective, noise


def features(
    weights: Sequence[Any], activations: Activation | Sequence[Activation], inputs: Any
) -> list[Tensor]:
    r"""Return the features of every layer, :math:`\varphi(W_\ell \varphi(\cdots \varphi(W_1 x)))`, uncentred.

    Args:
        weights: W_1 (p_1, d), W_2 (p_2, p_1), …
        activations: one for all layers or one a layer; ``relu`` is the plain ReLU here.
        inputs: one sample a row, (N, d).

    Returns:
        One float64 tensor (N, p_ℓ) a layer.

    Raises:
        ValueError: shapes do not chain, or numbers of activations and layers differ.

    >>> [layer.shape[1] for layer in features([torch.ones(3, 2), torch.ones(1, 3)], "tanh", [[1.0, 2.0]])]
    [3, 1]
    """
    values = as_tensor(inputs, "inputs", DTYPE)
    if values.ndim != 2:
        raise ValueError(f"inputs must have shape (samples, d), got {tuple(values.shape)}")
    outputs = []
    for W, activation in _network(weights, activations, values.shape[1], "weights", "activations"):
        values = activation_function(activation)(values @ W.mT)
        outputs.append(values)
    return outputs


def _with_teacher(
    student: list[tuple[Tensor, Activation]],
    teacher: list[tuple[Tensor, Activation]],
    Omega: Tensor,
    mode: Mode,
    paired: bool | None,
) -> LinearisedCovariances:
    Psi, Phi = Omega, Omega
    layers: list[LayerCoefficients] = []
    teacher_layers: list[LayerCoefficients] = []
    cross: list[Any] = []
    for mine, theirs in zip_longest(student, teacher):
        if mine is not None:
            Omega, own = _layer(mine[0], mine[1], Omega, mode)
            layers.append(own)
            Phi = mine[0] @ Phi
        if theirs is not None:
            Psi, other = _layer(theirs[0], theirs[1], Psi, mode)
            teacher_layers.append(other)
            Phi = Phi @ theirs[0].mT
        if mine is not None and theirs is not None:
            Phi, coefficient = _cross_layer(Phi, mine[1], theirs[1], own, other, mode, paired)
            cross.append(coefficient)
        else:
            Phi = _column(own.k1) * Phi if mine is not None else Phi * other.k1
    return LinearisedCovariances(Omega, Psi, Phi, tuple(layers), tuple(teacher_layers), tuple(cross))


def _layer(
    W: Tensor, activation: Activation, previous: Tensor, mode: Mode
) -> tuple[Tensor, LayerCoefficients]:
    S = W @ previous @ W.mT
    S = (S + S.mT) / 2  # rounding must not add up over the layers
    variances = S.diagonal()
    if bool((variances <= 0).any()):
        raise ValueError("weights must give every neuron a positive variance, got a row that sees no input")
    r: Any = float(variances.mean()) if mode == "mean" else variances.clone()
    coefficients = hermite_coefficients(activation, r)
    if mode == "mean":
        Omega = coefficients.k1**2 * S
        Omega.diagonal().add_(coefficients.kappa_star2)
    else:
        Omega = coefficients.k1[:, None] * S * coefficients.k1
        Omega.diagonal().copy_(coefficients.second_moment)
    return Omega, LayerCoefficients(r, *coefficients)


def _cross_layer(
    T: Tensor,
    activation: Activation,
    activation2: Activation,
    own: LayerCoefficients,
    other: LayerCoefficients,
    mode: Mode,
    paired: bool | None,
) -> tuple[Tensor, Any]:
    """The cross-covariance after a layer of both, from T = W Φ Vᵀ before the activations."""
    square = T.shape[0] == T.shape[1]
    if paired and not square:
        raise ValueError(f"paired must be False where the widths differ, got layers of {tuple(T.shape)} rows")
    Phi = _column(own.k1) * T * other.k1
    if not square or paired is False:
        return Phi, 0.0
    if mode == "neuron":
        c = T.diagonal()
        moment = joint_moment(activation, activation2, own.r, other.r, c)
        Phi.diagonal().copy_(moment)
        return Phi, moment - own.k1 * other.k1 * c
    coefficient = joint_coefficient(activation, activation2, own.r, other.r, float(T.diagonal().mean()))
    Phi.diagonal().add_(coefficient)
    return Phi, coefficient


def _column(k1: Any) -> Any:
    return k1[:, None] if isinstance(k1, Tensor) else k1


def _network(
    weights: Sequence[Any], activations: Any, dimension: int, name: str, activations_name: str
) -> list[tuple[Tensor, Activation]]:
    """The layers as pairs (matrix, activation), after all checks."""
    if isinstance(weights, Tensor) and weights.ndim == 2:
        raise ValueError(f"{name} must be a sequence of matrices, got one matrix")
    single = isinstance(activations, str) or callable(activations)
    chosen = [activations] * len(weights) if single else list(activations)
    if len(chosen) != len(weights):
        raise ValueError(
            f"{activations_name} must be one for all or one for each of the {len(weights)} layers, "
            f"got {len(chosen)}"
        )
    layers = []
    for weight, activation in zip(weights, chosen, strict=True):
        activation_function(activation)  # an unknown name shall be told before any work
        W = as_tensor(weight, name, DTYPE)
        if W.ndim != 2 or W.shape[1] != dimension or not W.shape[0]:
            raise ValueError(
                f"{name} must be matrices that chain: expected (rows, {dimension}), got {tuple(W.shape)}"
            )
        layers.append((W, activation))
        dimension = W.shape[0]
    return layers


def _symmetric(matrix: Any, name: str) -> Tensor:
    matrix = as_tensor(matrix, name, DTYPE)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
    if not torch.allclose(matrix, matrix.mT, rtol=0, atol=1e-10 * float(matrix.abs().max())):
        raise ValueError(f"{name} must be symmetric, got an asymmetric matrix")
    return matrix
