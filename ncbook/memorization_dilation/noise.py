"""The noise of clean features, seen along the line that joins the two class means."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.runtime import DTYPE, as_tensor

__all__ = ["NOISES", "Nodes", "accuracy", "error_rate", "nodes"]

NOISES = ("circle", "gaussian")
"""Uniform on a circle of radius r, or Gaussian with the same mean square; both in the plane of the means."""

_DIGITS = 34.0  # natural logarithm of the accuracy asked of a rule: e^-34 is below rounding
_GAUSSIAN_END = 9.0  # the density beyond is 1e-18 of its top
_COARSEST = 0.5  # step of the Gaussian rule; the error of its own weight is exp(-2π²/0.25)


class Nodes(NamedTuple):
    r"""A rule for expectations over :math:`|c|`, where :math:`rc` is the noise along one direction.

    The noise :math:`v` is isotropic in the plane with :math:`\mathbb E\|v\|^2 = r^2`, so that
    :math:`\mathbb E c^2 = \tfrac12`, and :math:`c` is symmetric: positive nodes say everything.

    >>> rule = nodes("gaussian", 1.0)
    >>> float((rule.weight * rule.c.square()).sum().round(decimals=12))
    0.5
    """

    c: Tensor
    """The nodes, positive, shape (n,)."""
    weight: Tensor
    """Their weights, of sum 1, shape (n,)."""


def nodes(noise: str, sharpness: float) -> Nodes:
    r"""Return a rule that is exact to rounding for a logistic function of :math:`m + sc`.

    Both rules are equally spaced: in the angle of the circle, and in the Gaussian variable. Their error falls
    exponentially with the distance of the nearest pole of the logistic function, :math:`m + sc = \pm i\pi`,
    from the real axis; the number of nodes follows from it.

    Args:
        noise: one of :data:`NOISES`.
        sharpness: the largest s that will be met, a number that is not negative.

    Raises:
        ValueError: there is no such noise, or the sharpness is negative or not finite.

    >>> rule = nodes("circle", 20.0)
    >>> len(rule.c), round(float((rule.weight * rule.c).sum()), 4) == round(2 / math.pi, 4)
    (55, True)
    """
    require_noise(noise)
    if not (math.isfinite(sharpness) and sharpness >= 0):
        raise ValueError(f"sharpness must be a finite number, not negative, got {sharpness}")
    if noise == "circle":
        pole = math.asinh(math.pi / sharpness) if sharpness > 0 else math.inf
        n = max(8, math.ceil(_DIGITS / (4 * pole)))
        angle = (torch.arange(n, dtype=DTYPE) + 0.5) * (math.pi / (2 * n))
        return Nodes(angle.cos(), torch.full((n,), 1 / n, dtype=DTYPE))
    pole = math.sqrt(2) * math.pi / sharpness if sharpness > 0 else math.inf
    step = min(_COARSEST, 2 * math.pi * pole / _DIGITS)
    x = (torch.arange(math.ceil(_GAUSSIAN_END / step), dtype=DTYPE) + 0.5) * step
    weight = torch.exp(-x.square() / 2)
    return Nodes(x / math.sqrt(2), weight / weight.sum())


def require_noise(noise: Any) -> None:
    """Refuse what is not the name of a noise."""
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")


def spread_loss(dilation: Tensor, margin: Tensor, rule: Nodes) -> Tensor:
    r"""E log(1 + exp(-m(1 + 2δc))): the entropy part of the loss of clean features, dilation δ."""
    z = 2 * (margin * dilation)[..., None] * rule.c
    both = torch.nn.functional.softplus(-margin[..., None] - z) + torch.nn.functional.softplus(
        z - margin[..., None]
    )
    return both @ rule.weight / 2


def spread_slope(dilation: Tensor, margin: Tensor, rule: Nodes) -> Tensor:
    r"""The derivative of :func:`spread_loss` in δ, without cancellation at small δ.

    The logistic functions of the pair ±c differ by sinh z/(cosh z + cosh m), z = 2mδ|c|. Both sides of the
    fraction are multiplied by 2p(1−p)exp(−z), so that no exponential overflows; one is enough for each node.
    """
    wrong = torch.sigmoid(-margin)[..., None]
    both = wrong * (1 - wrong)
    rest = -torch.expm1(-2 * (margin * dilation)[..., None] * rule.c)  # 1 − exp(−z)
    kept = 1 - rest
    difference = both * (rest * (2 - rest))  # 1 − exp(−2z)
    difference.div_(both * (1 + kept * kept) + kept * (1 - 2 * both))
    return margin * (difference @ (rule.weight * rule.c))


def accuracy(dilation: Any, noise: str = "gaussian") -> Tensor:
    r"""Return the share of clean features on the right side of the bisector of the two class means.

    .. math:: \text{Gaussian: } \mathrm{Ncdf}\Bigl(\frac{1}{\sqrt2\,\delta}\Bigr), \qquad
        \text{circle: } 1 - \frac1\pi\arccos\frac{1}{2\delta} \text{ if } \delta > \tfrac12,\text{ else } 1

    Args:
        dilation: δ = r/D, numbers that are not negative, any shape.
        noise: one of :data:`NOISES`.

    Raises:
        ValueError: a dilation is negative or there is no such noise.

    >>> [round(float(accuracy(0.4, noise)), 6) for noise in ("gaussian", "circle")]
    [0.96145, 1.0]
    """
    return 1 - error_rate(dilation, noise)


def error_rate(dilation: Any, noise: str = "gaussian") -> Tensor:
    """Return 1 − :func:`accuracy` of a dilation, exact for the smallest errors too.

    Args:
        dilation: δ = r/D, numbers that are not negative, any shape.
        noise: one of :data:`NOISES`.

    Raises:
        ValueError: a dilation is negative or there is no such noise.

    >>> f"{float(error_rate(0.05)):.2e}"
    '1.04e-45'
    """
    require_noise(noise)
    delta = as_tensor(dilation, "dilation", DTYPE)
    if bool((delta < 0).any()):
        raise ValueError(f"dilation must not be negative, got {float(delta.min())}")
    half = 1 / (2 * delta)  # the half distance over r; infinite where nothing is dilated
    if noise == "gaussian":
        return torch.special.erfc(half) / 2
    return torch.arccos(half.clamp(max=1)) / math.pi
