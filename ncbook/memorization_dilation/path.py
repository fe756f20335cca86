"""The path of the noisy features: a plane curve that knows neither the noise nor the expressivity."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.memorization_dilation.model import broadcast, nontrivial

__all__ = ["AxisExit", "axis_exit", "noisy_path"]


class Point(NamedTuple):
    """A point of the path in units of the length a: u_1 = a (x, 1 − w), at distance ζ from μ_2/a."""

    x: Tensor
    w: Tensor
    rho: Tensor
    force: Tensor  # Tζ: how strongly u_1 must be pulled towards μ_2 to stay here


class Curve(NamedTuple):
    """What the path depends on: the margin m, the decay ν = m√(2λ_Wλ_H), and 1 − p = 1/(1 + exp m)."""

    margin: Tensor
    decay: Tensor
    wrong: Tensor

    def gain(self, e: Tensor) -> Tensor:
        """s(e) = m(1/(1 + exp(me)) − α/2), how the label pulls at a margin me; mα/2 = m(1 − p) − ν."""
        return self.margin * (torch.sigmoid(-self.margin * e) - self.wrong) + self.decay

    def point(self, step: Tensor) -> Point:
        """The point of relative margin e = x − y = step − 1, step in [0, 2]: from μ_2 at 0 to μ_1 at 2."""
        e = step - 1
        s, decay = self.gain(e), self.decay
        total = 2 * s + decay
        slope = torch.hypot(s, s + decay)
        inner = Point(
            s * step / total,
            (s + decay) * step / total,
            slope * step / total,
            slope * (1 - decay * step / total),
        )
        x = e.clamp(min=torch.finfo(e.dtype).tiny)  # the axis branch is used where e > 0 only
        pull = (self.margin * (torch.sigmoid(-self.margin * x) - self.wrong) + decay * (1 - x)) / x
        rho = torch.hypot(x, torch.ones_like(x))
        on_axis = (e > 0) & (s * (1 - e) <= decay * e)
        pairs = zip((x, torch.ones_like(x), rho, pull * rho), inner, strict=True)
        return Point(*(torch.where(on_axis, axis, off) for axis, off in pairs))

    def exit(self) -> Tensor:
        """The relative margin e at which the path leaves the axis: s(e)(1 − e) = νe."""
        low, high = torch.zeros_like(self.margin), torch.ones_like(self.margin)
        for _ in range(60):  # bisection to the last digit: the left side falls, the right side grows
            middle = (low + high) / 2
            off = self.gain(middle) * (1 - middle) > self.decay * middle
            low, high = torch.where(off, middle, low), torch.where(off, high, middle)
        return (low + high) / 2


def curve_of(clean_margin: Tensor, wrong: Tensor, lam_W: Tensor, lam_H: Tensor) -> Curve:
    """The curve of a clean configuration."""
    return Curve(clean_margin, clean_margin * torch.sqrt(2 * lam_W) * torch.sqrt(lam_H), wrong)


def noisy_path(smoothing: Any, lambda_W: Any, lambda_H: Any, *, points: int = 200) -> Tensor:
    r"""Return the curve on which u_1 lies for every noise, every expressivity and every kind of spread.

    It runs from μ_1 (everything memorized) along the axis and then across the quadrant to μ_2 (nothing
    memorized). With e = (x − y)/a, s(e) = m(1/(1 + exp(me)) − α/2) and ν = m√(2λ_Wλ_H) its part off the
    axis is

    .. math:: \frac{u_1}{a} = \Bigl(\frac{s\,(1+e)}{2s+\nu},\; 1-\frac{(s+\nu)(1+e)}{2s+\nu}\Bigr) .

    Args:
        smoothing: α in [0, 1), a number or an array.
        lambda_W: positive decay of the classifier.
        lambda_H: positive decay of the features.
        points: how many points, at least 2, equally spaced in e from 1 down to −1.

    Returns:
        u_1 in the coordinates in which μ_1 = (a, 0) and μ_2 = (0, a), shape (…, points, 2).

    Raises:
        ValueError: an argument is out of its range or the clean minimum is trivial.

    Source: this book.

    >>> noisy_path(0.1, 5e-3, 5e-3, points=3).numpy().round(3) + 0.0
    array([[1.408, 0.   ],
           [0.699, 0.699],
           [0.   , 1.408]])
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be an integer, at least 2, got {points!r}")
    alpha, lam_W, lam_H = broadcast(smoothing=smoothing, lambda_W=lambda_W, lambda_H=lambda_H)
    clean = nontrivial(alpha, lam_W, lam_H)
    curve = Curve(*(x[..., None] for x in curve_of(clean.margin, 1 - clean.p_correct, lam_W, lam_H)))
    step = torch.linspace(2, 0, points, dtype=clean.margin.dtype)
    found = curve.point(step.expand(*alpha.shape, points))
    return clean.length[..., None, None] * torch.stack([found.x, 1 - found.w], -1)


class AxisExit(NamedTuple):
    """Where the path leaves the axis of μ_1.

    >>> axis_exit(0.0, 5e-3, 5e-3).position.round(decimals=4)
    tensor(0.7617, dtype=torch.float64)
    """

    position: Tensor
    """x/a at the exit, a number between 0 and 1."""
    pull: Tensor
    """T, the pull towards μ_2 per distance that holds u_1 there, with lengths measured in a."""
    force: Tensor
    """Tζ with ζ = ‖u_1 − μ_2‖/a: the pull itself, with lengths measured in a."""


def axis_exit(smoothing: Any, lambda_W: Any, lambda_H: Any) -> AxisExit:
    r"""Return where the noisy features leave the axis, i.e. stop sharing the support of their label's class.

    The position e solves :math:`s(e)\,(1-e) = \nu e`, see :func:`noisy_path`. It depends on nothing else.

    Args:
        smoothing: α in [0, 1), a number or an array.
        lambda_W: positive decay of the classifier.
        lambda_H: positive decay of the features.

    Raises:
        ValueError: an argument is out of its range or the clean minimum is trivial.

    Source: this book.

    >>> float(axis_exit(0.1, 5e-3, 5e-3).position.round(decimals=6))
    0.838935
    """
    alpha, lam_W, lam_H = broadcast(smoothing=smoothing, lambda_W=lambda_W, lambda_H=lambda_H)
    clean = nontrivial(alpha, lam_W, lam_H)
    curve = curve_of(clean.margin, 1 - clean.p_correct, lam_W, lam_H)
    e = curve.exit()
    pull = curve.gain(e) / e - curve.decay
    return AxisExit(e, pull, pull * torch.sqrt(1 + e.square()))
