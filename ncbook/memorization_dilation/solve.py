"""The solution of the memorization-dilation problem, a whole map of it at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.memorization_dilation.model import broadcast, nontrivial
from ncbook.memorization_dilation.noise import (
    Nodes,
    accuracy,
    error_rate,
    nodes,
    require_noise,
    spread_loss,
    spread_slope,
)
from ncbook.memorization_dilation.path import Curve, curve_of

__all__ = ["MDSolution", "solve_md"]

_ENTRIES = 2**18  # cells times nodes that are worked on at once: 2 MB an array, near the cache
_STEPS = 1100  # a bisection alone needs this many from 2 to the smallest float64


class MDSolution(NamedTuple):
    """The solution of the memorization-dilation problem; every field has the broadcast shape (…).

    >>> found = solve_md(0.1, 1.0, 0.0, 5e-3, 5e-3)
    >>> found.u
    tensor([1.4122, 0.2037], dtype=torch.float64)
    """

    u: Tensor
    """u_1, the common feature of the samples labelled 1 that look like 2, in the coordinates in which
    μ_1 = (a, 0) and μ_2 = (0, a), shape (…, 2); u_2 is its mirror image."""
    r: Tensor
    """The radius of dilation: clean features are μ_k + v with E‖v‖² = r²."""
    distance: Tensor
    """D = ‖μ_1 − μ_2‖."""
    dilation: Tensor
    """r/D."""
    memorization: Tensor
    """‖u_1 − μ_2‖: how far the noisy features were dragged from where they look to belong."""
    relative_memorization: Tensor
    """‖u_1 − μ_2‖/D: 0 is none, 1 complete."""
    displacement: Tensor
    """η‖u_1 − μ_2‖, the left side of the constraint."""
    accuracy: Tensor
    """Ncdf(D/(√2 r)): test accuracy for Gaussian features of this r, whatever the noise of the solution."""
    error: Tensor
    """1 − accuracy, without rounding to 0."""
    value: Tensor
    """The objective at the solution."""


def solve_md(
    eta: Any,
    C_MD: Any,
    smoothing: Any,
    lambda_W: Any,
    lambda_H: Any,
    noise: str = "circle",
    normalised: bool = False,
) -> MDSolution:
    r"""Solve the memorization-dilation problem for all cells of a map at once.

    .. math:: \min_{U \ge 0,\; r \ge 0} \; \text{objective}(U, r) \quad\text{with}\quad
        \eta\,\|u_1-\mu_2\| \le C_{MD}\,\frac{r}{D}, \quad \eta\,\|u_2-\mu_1\| \le C_{MD}\,\frac{r}{D} .

    The problem is strictly convex in the two coordinates of u_1. Its solution lies on a curve known in closed
    form (:func:`noisy_path`), on which it is the root of one increasing function: a bracketed root search
    finds it to rounding, from any argument. At η = 0 the limit η → 0 is returned: u_1 = μ_1, r = 0.

    Args:
        eta: the fraction of wrong labels, in [0, 1], a number or an array; all five broadcast.
        C_MD: positive slope of the constraint: how much may be memorized per relative dilation.
        smoothing: α in [0, 1).
        lambda_W: positive decay of the classifier.
        lambda_H: positive decay of the features.
        noise: ``circle`` or ``gaussian``, the spread of clean features (mean square r² in both).
        normalised: constrain memorization relative to D too, η‖u_1 − μ_2‖ ≤ C_MD r.

    Raises:
        ValueError: an argument is out of its range, the shapes do not broadcast, or the clean minimum is
            trivial (zero features) in some cell.

    Source: the model of Nguyen et al. (2023) in the recalled form of the chapter; the reduction is ours.

    >>> found = solve_md([0.05, 0.1], 1.0, [[0.0], [0.1]], 5e-3, 5e-3)
    >>> found.dilation.numpy().round(4)
    array([[0.1196, 0.2184],
           [0.0926, 0.1736]])
    """
    require_noise(noise)
    if not isinstance(normalised, bool):
        raise ValueError(f"normalised must be True or False, got {normalised!r}")
    named = {"eta": eta, "C_MD": C_MD, "smoothing": smoothing, "lambda_W": lambda_W, "lambda_H": lambda_H}
    rate, slope, alpha, lam_W, lam_H = broadcast(**named)
    clean = nontrivial(alpha, lam_W, lam_H)
    stretch = 1 / (math.sqrt(2) * slope) if normalised else clean.length / slope
    curve = curve_of(clean.margin, 1 - clean.p_correct, lam_W, lam_H)
    flat = _Cells(*(x.flatten() for x in (*curve, alpha, rate, stretch)))
    step, fit = (x.view(rate.shape) for x in _solve(flat, noise))
    point = curve.point(step)
    dilation = rate * stretch * point.rho
    memorization = clean.length * point.rho
    own = curve.margin * (step - 1)
    noisy = torch.nn.functional.softplus(-own) + alpha * own / 2
    y = 1 - point.w
    kept = 1 + 2 * dilation.square() + rate * (point.x.square() + y.square())
    return MDSolution(
        u=clean.length[..., None] * torch.stack([point.x, y], -1),
        r=clean.distance * dilation,
        distance=clean.distance,
        dilation=dilation,
        memorization=memorization,
        relative_memorization=point.rho / math.sqrt(2),
        displacement=rate * memorization,
        accuracy=accuracy(dilation),
        error=error_rate(dilation),
        value=fit + alpha * clean.margin / 2 + rate * noisy + lam_H * clean.length.square() * kept,
    )


class _Cells(NamedTuple):
    """The cells of a map, flat: the curve, α, η, and χ, by which dilation = ηχζ."""

    margin: Tensor
    decay: Tensor
    wrong: Tensor
    alpha: Tensor
    rate: Tensor
    stretch: Tensor

    @property
    def curve(self) -> Curve:
        return Curve(self.margin, self.decay, self.wrong)

    def at(self, index: Any) -> _Cells:
        return _Cells(*(x[index] for x in self))

    def force(self, step: Tensor, rule: Nodes) -> Tensor:
        """The slope of the loss in ζ along the curve: what dilation costs minus what memorizing gains."""
        point = self.curve.point(step)
        dilation = self.rate * self.stretch * point.rho
        cost = spread_slope(dilation, self.margin, rule) + 2 * self.decay * dilation
        return self.stretch * cost - point.force

    def sharpest(self) -> Tensor:
        """An upper bound of 2m·dilation at the solution, from a comparison with U = [μ_2, μ_1], r = 0.

        That point costs η(1 − α)m more than the bound of the noisy part, and the loss of clean features is
        at least (sE|c| − m)/2 with E|c| ≥ 1/√π, s = 2m·dilation.
        """
        return math.sqrt(math.pi) * (self.margin * (1 + 2 * self.rate) + 2 * math.log(2))


def _solve(cells: _Cells, noise: str) -> tuple[Tensor, Tensor]:
    """The place of each cell on its curve and the entropy of its clean features, in blocks of cells."""
    count = cells.margin.numel()
    step, fit = torch.empty_like(cells.margin), torch.empty_like(cells.margin)
    bound = torch.minimum(cells.sharpest(), 2 * math.sqrt(2) * cells.margin * cells.rate * cells.stretch)
    order = torch.argsort(bound)  # cells of like sharpness share a rule
    start = 0
    while start < count:
        size = max(1, _ENTRIES // len(nodes(noise, float(bound[order[start]])).c))
        block = order[start : start + size]
        rule = nodes(noise, float(bound[block[-1]]))
        part = cells.at(block)
        step[block] = _root(part, rule, bound[block])
        dilation = part.rate * part.stretch * part.curve.point(step[block]).rho
        fit[block] = spread_loss(dilation, part.margin, rule)
        start += size
    return step, fit


def _root(cells: _Cells, rule: Nodes, bound: Tensor) -> Tensor:
    """The root of the force in [0, 2]; it is increasing, negative at 0 and not negative at the upper end."""
    # ζ ≥ step/√2, so a bound on the dilation bounds the step; the factor keeps the root off the end
    reach = cells.margin * cells.rate * cells.stretch
    upper = torch.where(reach > 0, 1.01 * bound / (math.sqrt(2) * reach), 2.0).clamp(max=2.0)
    return increasing_root(
        lambda step, index: cells.at(index).force(step, rule), torch.zeros_like(upper), upper
    )


def increasing_root(f: Callable[[Tensor, Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Roots of many increasing functions in their brackets, by inverse interpolation or else bisection.

    ``f(x, index)`` gives the values of the functions number ``index`` at x. Where f(high) ≤ 0, high is
    returned. The choice between the two steps is Chandrupatla's, which never loses the bracket.
    """
    root = high.clone()
    index = torch.arange(low.numel())
    a, b = high.clone(), low.clone()
    fa, fb = f(a, index), f(b, index)
    c, fc = a, fa
    t = torch.full_like(a, 0.5)
    live = fa > 0
    for _ in range(_STEPS):
        index, a, b, c = index[live], a[live], b[live], c[live]
        fa, fb, fc, t = fa[live], fb[live], fc[live], t[live]
        if index.numel() == 0:
            return root
        x = a + t * (b - a)
        fx = f(x, index)
        same = (fx > 0) == (fa > 0)
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx
        best = torch.where(fa.abs() < fb.abs(), a, b)
        root[index] = best
        tolerance = 2 * torch.finfo(a.dtype).eps * best.abs() / (b - a).abs()
        live = (tolerance < 0.5) & (fa != 0) & (fb != 0)
        t = _next_share(a, fa, b, fb, c, fc).clamp(min=tolerance, max=1 - tolerance.clamp(max=0.5))
    raise RuntimeError("the root search did not end: a force is not increasing")


def _next_share(a: Tensor, fa: Tensor, b: Tensor, fb: Tensor, c: Tensor, fc: Tensor) -> Tensor:
    """Where between a and b to look next: by inverse quadratic interpolation if it can be trusted."""
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    trusted = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
    quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    return torch.where(trusted & torch.isfinite(quadratic), quadratic, torch.full_like(a, 0.5))
