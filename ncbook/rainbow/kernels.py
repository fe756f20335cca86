r"""Exact second moments of pairs of activations under a Gaussian law: arcsine and arc-cosine kernels.

For jointly Gaussian, centred (u, v) with variances :math:`r_u, r_v` and covariance c, this module knows
:math:`\operatorname{Cov}(\varphi(u), \varphi_*(v))` in closed form for the error function, the sign, the
centred ReLU and the identity, in all pairs. They are the covariances of one layer, without approximation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ncbook.runtime import DTYPE, as_tensor

__all__ = ["CLOSED_FORMS", "arc_cosine_kernel", "arcsine_kernel", "cross_kernel", "exact_kernel"]

CLOSED_FORMS = ("erf", "linear", "relu", "sign")
"""The activations whose kernels are known in closed form; ``relu`` means the centred ReLU."""

_ROUNDING = 1e-9  # a cosine may exceed one by rounding; by more, the matrix is no covariance
_SLOPES = {
    "erf": lambda r: 2 / torch.sqrt(math.pi * (1 + 2 * r)),
    "linear": torch.ones_like,
    "relu": lambda r: torch.full_like(r, 0.5),
    "sign": lambda r: torch.sqrt(2 / (math.pi * r)),
}


def exact_kernel(S: Any, activation: str) -> Tensor:
    r"""Return the covariance of :math:`\varphi(u)` for Gaussian u with covariance S, entry by entry.

    Args:
        S: the covariance of the pre-activations, (p, p), symmetric with a positive diagonal.
        activation: ``erf``, ``sign``, ``relu`` (centred) or ``linear``.

    Returns:
        The covariance of the features, (p, p), float64.

    Raises:
        ValueError: S is no covariance matrix, or the activation has no closed form.

    >>> exact_kernel([[1.0, 0.5], [0.5, 1.0]], "sign")[0, 1]
    tensor(0.3333, dtype=torch.float64)
    """
    S = _covariance(S, "S")
    variances = S.diagonal()
    kernel = cross_kernel(S, variances, variances, activation, activation)
    return (kernel + kernel.mT) / 2


def arcsine_kernel(S: Any, activation: str = "erf") -> Tensor:
    r"""Return the kernel of the error function or the sign (Williams 1997).

    .. math:: \Omega_{ij} = \frac2\pi \arcsin \frac{S_{ij}}{\sqrt{e_i e_j}}, \qquad
        e_i = S_{ii} + \tfrac12 \;(\mathrm{erf}), \quad e_i = S_{ii} \;(\mathrm{sign})

    Args:
        S: the covariance of the pre-activations, (p, p).
        activation: ``erf`` or ``sign``.

    Raises:
        ValueError: S is no covariance matrix, or the activation is another one.

    >>> round(float(arcsine_kernel([[1.0]])[0, 0]), 10)
    0.4645590544
    """
    if activation not in ("erf", "sign"):
        raise ValueError(f"activation must be 'erf' or 'sign' for an arcsine kernel, got {activation!r}")
    return exact_kernel(S, activation)


def arc_cosine_kernel(S: Any) -> Tensor:
    r"""Return the covariance of the ReLU: the arc-cosine kernel of Cho and Saul minus the means' product.

    .. math:: \Omega_{ij} = \frac{\sqrt{S_{ii} S_{jj}}}{2\pi}
        \bigl(\sin t + (\pi - t) \cos t - 1\bigr), \qquad \cos t = \frac{S_{ij}}{\sqrt{S_{ii} S_{jj}}}

    Args:
        S: the covariance of the pre-activations, (p, p).

    Raises:
        ValueError: S is no covariance matrix.

    >>> round(float(arc_cosine_kernel([[1.0]])[0, 0]), 6) == round(0.5 - 1 / (2 * math.pi), 6)
    True
    """
    return exact_kernel(S, "relu")


def cross_kernel(
    covariance: Any, variances: Any, variances2: Any, activation: str, activation2: str
) -> Tensor:
    r"""Return :math:`\operatorname{Cov}(\varphi(u_i), \varphi_*(v_j))` for jointly Gaussian u and v.

    For erf and sign it is :math:`\frac2\pi \arcsin (c / \sqrt{e_u e_v})` with :math:`e = r + \frac12` (erf)
    or e = r (sign); a pair with the identity, or of the ReLU with an odd activation, is linear in c.

    Args:
        covariance: the covariances c of u and v, (p, k).
        variances: the variances of u, (p,), positive.
        variances2: the variances of v, (k,), positive.
        activation: of u: ``erf``, ``sign``, ``relu`` (centred) or ``linear``.
        activation2: of v, one of the same.

    Returns:
        A float64 tensor (p, k).

    Raises:
        ValueError: shapes do not fit, a covariance exceeds what the variances allow, a variance is not
            positive, or an activation has no closed form.

    >>> cross_kernel([[0.5]], [1.0], [1.0], "erf", "sign")
    tensor([[0.2677]], dtype=torch.float64)
    """
    c = as_tensor(covariance, "covariance", DTYPE)
    ru, rv = as_tensor(variances, "variances", DTYPE), as_tensor(variances2, "variances2", DTYPE)
    if c.shape != (*ru.shape, *rv.shape) or c.ndim != 2:
        raise ValueError(
            f"covariance must have shape (p, k) for p variances and k variances2, got {tuple(c.shape)}, "
            f"{tuple(ru.shape)} and {tuple(rv.shape)}"
        )
    return closed_moment(c, ru[:, None], rv[None, :], activation, activation2)


def closed_moment(c: Tensor, ru: Tensor, rv: Tensor, activation: str, activation2: str) -> Tensor:
    """Return the covariance of a pair of activations, elementwise over tensors that broadcast."""
    for name, value in (("activation", activation), ("activation2", activation2)):
        if value not in CLOSED_FORMS:
            raise ValueError(f"{name} must be one of {', '.join(CLOSED_FORMS)}, got {value!r}")
    cosine = _cosine(c, ru, rv)
    pair = {activation, activation2}
    if pair == {"relu"}:
        return torch.sqrt(ru * rv) * _arc_cosine(cosine)
    if "linear" in pair or "relu" in pair:  # one of the two has no term but the linear one in common
        return c * slope(activation, ru) * slope(activation2, rv)
    eu = ru + 0.5 if activation == "erf" else ru
    ev = rv + 0.5 if activation2 == "erf" else rv
    return 2 / math.pi * torch.asin(cosine * torch.sqrt(ru / eu) * torch.sqrt(rv / ev))


def slope(activation: str, r: Tensor) -> Tensor:
    """Return the mean slope k1(r) of an activation with a closed form."""
    return _SLOPES[activation](r)


def _arc_cosine(cosine: Tensor) -> Tensor:
    angle = torch.acos(cosine)
    return (torch.sqrt((1 - cosine) * (1 + cosine)) + (math.pi - angle) * cosine - 1) / (2 * math.pi)


def _cosine(c: Tensor, ru: Tensor, rv: Tensor) -> Tensor:
    for name, variances in (("variances", ru), ("variances2", rv)):
        if bool((variances <= 0).any()):
            raise ValueError(f"{name} must be positive, got {float(variances.min())}")
    cosine = c / torch.sqrt(ru * rv)
    if cosine.numel() and float(cosine.abs().max()) > 1 + _ROUNDING:
        raise ValueError(
            "covariance must not exceed the geometric mean of the variances, "
            f"got a correlation of {float(cosine.abs().max())}"
        )
    return cosine.clamp(-1, 1)  # what exceeds one is rounding, see above


def _covariance(S: Any, name: str) -> Tensor:
    S = as_tensor(S, name, DTYPE)
    if S.ndim != 2 or S.shape[0] != S.shape[1] or not len(S):
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(S.shape)}")
    if not torch.allclose(S, S.mT, rtol=0, atol=1e-10 * float(S.abs().max())):
        raise ValueError(f"{name} must be symmetric, got an asymmetry of {float((S - S.mT).abs().max())}")
    return S
