"""Small noise and the ends of the range: what the model says without being solved."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.memorization_dilation.model import broadcast, nontrivial
from ncbook.memorization_dilation.noise import nodes, require_noise, spread_slope
from ncbook.memorization_dilation.path import axis_exit, curve_of
from ncbook.memorization_dilation.solve import increasing_root

__all__ = ["SmallNoise", "exit_rate", "limit_ratio", "small_noise"]


class SmallNoise(NamedTuple):
    """The first two orders in the noise rate η.

    >>> small_noise(1e-3, 1.0, 0.1, 5e-3, 5e-3).x.round(decimals=6)
    tensor(1.4027, dtype=torch.float64)
    """

    leading: Tensor
    """The dilation to leading order, ηD/C_MD (normalised: η/C_MD)."""
    dilation: Tensor
    """The dilation to second order, leading·(1 − shrinkage/2)."""
    shrinkage: Tensor
    """The first-order loss of memorization, 1 − x/a = ηD²/C_MD² (normalised: η/C_MD²)."""
    x: Tensor
    """The first coordinate of u_1 to first order, a(1 − shrinkage); the second is 0."""


def small_noise(
    eta: Any, C_MD: Any, smoothing: Any, lambda_W: Any, lambda_H: Any, normalised: bool = False
) -> SmallNoise:
    r"""Return the expansion of the solution for small η, the same for both kinds of noise.

    .. math:: u_1 = \bigl(a(1 - \eta D^2/C_{MD}^2),\, 0\bigr) + O(\eta^2), \qquad
        \frac rD = \frac{\eta D}{C_{MD}}\Bigl(1 - \frac{\eta D^2}{2C_{MD}^2}\Bigr) + O(\eta^3) .

    Args:
        eta: the fraction of wrong labels, in [0, 1]; all five broadcast.
        C_MD: positive slope of the constraint.
        smoothing: α in [0, 1).
        lambda_W: positive decay of the classifier.
        lambda_H: positive decay of the features.
        normalised: for the constraint η‖u_1 − μ_2‖ ≤ C_MD r: D is replaced by 1 in both formulas.

    Raises:
        ValueError: an argument is out of its range or the clean minimum is trivial.

    Source: this book.

    >>> float(small_noise(1e-3, 2.0, 0.0, 5e-3, 5e-3).leading.round(decimals=9))
    0.001322194
    """
    if not isinstance(normalised, bool):
        raise ValueError(f"normalised must be True or False, got {normalised!r}")
    named = {"eta": eta, "C_MD": C_MD, "smoothing": smoothing, "lambda_W": lambda_W, "lambda_H": lambda_H}
    rate, slope, alpha, lam_W, lam_H = broadcast(**named)
    clean = nontrivial(alpha, lam_W, lam_H)
    scale = torch.ones_like(slope) if normalised else clean.distance
    leading = rate * scale / slope
    shrinkage = leading * scale / slope
    return SmallNoise(leading, leading * (1 - shrinkage / 2), shrinkage, clean.length * (1 - shrinkage))


def limit_ratio(smoothing: Any, lambda_W: Any, lambda_H: Any) -> Tensor:
    r"""Return the ratio of dilations, smoothed over unsmoothed, in the limit η → 0.

    .. math:: \lim_{\eta\to0}\frac{(r/D)_\alpha}{(r/D)_0}
        = \frac{D_\alpha}{D_0} = \sqrt{\frac{m_\alpha}{m_0}} < 1 .

    Args:
        smoothing: α in [0, 1), a number or an array.
        lambda_W: positive decay of the classifier.
        lambda_H: positive decay of the features.

    Raises:
        ValueError: an argument is out of its range or the clean minimum is trivial.

    Source: derived in this book; a comparison of this kind is the claim of Nguyen et al. (2023).

    >>> float(limit_ratio(0.1, 5e-3, 5e-3).round(decimals=6))
    0.753139
    """
    alpha, lam_W, lam_H = broadcast(smoothing=smoothing, lambda_W=lambda_W, lambda_H=lambda_H)
    smoothed, plain = (nontrivial(level, lam_W, lam_H) for level in (alpha, torch.zeros_like(alpha)))
    return torch.sqrt(smoothed.margin / plain.margin)


def exit_rate(
    C_MD: Any,
    smoothing: Any,
    lambda_W: Any,
    lambda_H: Any,
    noise: str = "circle",
    normalised: bool = False,
) -> Tensor:
    r"""Return the noise rate η at which u_1 leaves the axis of its label's class mean.

    There the price of dilation balances the force of :func:`axis_exit`. The rate may exceed 1: then u_1
    stays on the axis at every noise.

    Args:
        C_MD: positive slope of the constraint; all four broadcast.
        smoothing: α in [0, 1).
        lambda_W: positive decay of the classifier.
        lambda_H: positive decay of the features.
        noise: ``circle`` or ``gaussian``.
        normalised: for the constraint η‖u_1 − μ_2‖ ≤ C_MD r.

    Raises:
        ValueError: an argument is out of its range or the clean minimum is trivial.

    Source: this book.

    >>> f"{float(exit_rate(0.05, 0.0, 5e-3, 5e-3)):.5e}"
    '1.93266e-04'
    """
    require_noise(noise)
    if not isinstance(normalised, bool):
        raise ValueError(f"normalised must be True or False, got {normalised!r}")
    slope, alpha, lam_W, lam_H = broadcast(
        C_MD=C_MD, smoothing=smoothing, lambda_W=lambda_W, lambda_H=lambda_H
    )
    clean = nontrivial(alpha, lam_W, lam_H)
    curve = curve_of(clean.margin, 1 - clean.p_correct, lam_W, lam_H)
    stretch = 1 / (math.sqrt(2) * slope) if normalised else clean.length / slope
    left = axis_exit(alpha, lam_W, lam_H)
    margin, decay, wanted = (x.flatten() for x in (curve.margin, curve.decay, left.force / stretch))
    # the price of dilation is at least its quadratic part, which bounds the root from above
    high = wanted / (2 * decay)
    if high.numel() == 0:
        return torch.empty_like(slope)

    def price(dilation: Tensor, index: Tensor) -> Tensor:
        rule = nodes(noise, float((2 * margin[index] * dilation).max()))
        paid = spread_slope(dilation, margin[index], rule) + 2 * decay[index] * dilation
        return paid - wanted[index]

    dilation = increasing_root(price, torch.zeros_like(high), high).view(slope.shape)
    return dilation / (stretch * torch.sqrt(1 + left.position.square()))
