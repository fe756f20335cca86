"""Step lengths for a batch of runs, each found for itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncbook.solvers.flat import Objective

__all__ = ["Point", "arc_search", "row_dot", "wolfe_search"]

_ARMIJO = 1e-4  # share of the first-order decrease that a step must reach
_CURVATURE = 0.9  # a slope steeper than this share of the first one means that the step is too short
_FLAT = (
    0.8  # near rounding the loss cannot tell a decrease; a slope turned up by less than this is then enough
)
_ROUNDING = 1000.0  # units of rounding within which the slopes, not the losses, are trusted
_TRIALS = 30
_SAFEGUARD = 0.1  # a trial keeps this share of the bracket away from its ends


class Point(NamedTuple):
    """A state of the batch.

    >>> Point(torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3)).gradient.shape
    torch.Size([2, 3])
    """

    flat: Tensor
    """The parameters, shape (B, P)."""
    loss: Tensor
    """The objective, shape (B,)."""
    gradient: Tensor
    """The gradient, shape (B, P)."""

    def take(self, rows: Tensor | slice) -> Point:
        """Return the state of some rows."""
        return Point(*(x[rows] for x in self))

    def updated(self, rows: Tensor, other: Point, better: Tensor) -> Point:
        """Return the state with ``rows[better]`` replaced by the rows ``better`` of another one."""
        if len(rows) == len(self.loss) and bool(better.all()):
            return other
        new = Point(*(x.clone() for x in self))
        for mine, theirs in zip(new, other, strict=True):
            mine[rows[better]] = theirs[better]
        return new


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row of a with that of b.

    >>> row_dot(torch.ones(2, 3), torch.ones(2, 3))
    tensor([3., 3.])
    """
    return (a * b).sum(-1)


def wolfe_search(
    objective: Objective, start: Point, direction: Tensor, length: Tensor, searching: Tensor
) -> tuple[Point, Tensor]:
    """Find for each run a step that satisfies the weak Wolfe conditions, by bracketing and the secant rule.

    The bracket [low, high] keeps a step that descends enough but is still steep at its lower end, and one
    that went too far at its upper end (Lewis and Overton's scheme, which needs no smoothness). Within it the
    next trial is where the secant of the two slopes vanishes. Where the loss changes by no more than its
    rounding, the slopes decide (Hager and Zhang's approximate condition): gradients come down to 1e-10.

    Args:
        objective: the objective of these runs.
        start: their states.
        direction: a direction of descent, shape (B, P).
        length: the first trial, shape (B,).
        searching: the runs to search for, a mask of shape (B,); the others stay where they are.

    Returns:
        The new states, and a mask that says which runs found a lower point.
    """
    slope = row_dot(start.gradient, direction)
    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    low_slope, high_slope = slope.clone(), torch.full_like(slope, torch.nan)
    length, best, moved = length.clone(), start, torch.zeros_like(searching)
    pending = searching.nonzero().squeeze(1)
    for _ in range(_TRIALS):
        if len(pending) == 0:
            break
        rows, part = _restricted(objective, pending, len(length))
        here, way, before = start.take(rows), direction[rows], slope[rows]
        flat = torch.addcmul(here.flat, length[rows, None], way)
        trial = Point(flat, *part.value_and_grad(flat))
        after = row_dot(trial.gradient, way)
        descends = _descends(here.loss, trial.loss, before * length[rows], after <= -_FLAT * before)
        steep = after < _CURVATURE * before
        best = best.updated(pending, trial, descends)
        moved[pending[descends]] = True
        _narrow(low, low_slope, pending[descends], length, after[descends])
        _narrow(high, high_slope, pending[~descends], length, after[~descends])
        pending = pending[~descends | steep]
        length[pending] = _next_trial(*(x[pending] for x in (low, high, low_slope, high_slope)))
    return best, moved


def arc_search(
    objective: Objective, start: Point, direction: Tensor, searching: Tensor
) -> tuple[Point, Tensor]:
    """Find for each run a step along project(x + t p), t = 1, ½, ¼, …, that descends enough.

    Args:
        objective: the objective of these runs, with a projection.
        start: their states, feasible.
        direction: the direction p, shape (B, P).
        searching: the runs to search for, a mask of shape (B,); the others stay where they are.

    Returns:
        The new states, and a mask that says which runs found a lower point.
    """
    length, best, moved = torch.ones_like(start.loss), start, torch.zeros_like(searching)
    pending = searching.nonzero().squeeze(1)
    for _ in range(_TRIALS):
        if len(pending) == 0:
            break
        rows, part = _restricted(objective, pending, len(length))
        here = start.take(rows)
        flat = part.project(torch.addcmul(here.flat, length[rows, None], direction[rows]))
        trial = Point(flat, *part.value_and_grad(flat))
        step = flat - here.flat
        predicted = row_dot(here.gradient, step)
        gentle = row_dot(trial.gradient, step) <= -_FLAT * predicted
        descends = (predicted < 0) & _descends(here.loss, trial.loss, predicted, gentle)
        best = best.updated(pending, trial, descends)
        moved[pending[descends]] = True
        pending = pending[~descends]
        length[pending] *= 0.5
    return best, moved


def _restricted(objective: Objective, pending: Tensor, batch: int) -> tuple[Tensor | slice, Objective]:
    """The rows still searching and their objective; all rows are a slice, which copies nothing."""
    if len(pending) == batch:
        return slice(None), objective
    return pending, objective.restrict(pending)


def _descends(before: Tensor, after: Tensor, predicted: Tensor, gentle: Tensor) -> Tensor:
    """Armijo's condition, or within rounding a slope that has not turned up too much; NaN never descends."""
    rounding = _ROUNDING * torch.finfo(before.dtype).eps * before.abs()
    return (after <= before + _ARMIJO * predicted) | ((after <= before + rounding) & gentle)


def _narrow(end: Tensor, end_slope: Tensor, rows: Tensor, length: Tensor, slope: Tensor) -> None:
    end[rows], end_slope[rows] = length[rows], slope


def _next_trial(low: Tensor, high: Tensor, low_slope: Tensor, high_slope: Tensor) -> Tensor:
    """Double an open bracket; in a closed one go where the secant of the slopes vanishes, or halve it."""
    share = low_slope / (low_slope - high_slope)
    share = torch.where(high_slope > 0, share, 0.5).clamp(_SAFEGUARD, 1 - _SAFEGUARD)
    share = torch.where(high_slope.isfinite(), share, _SAFEGUARD)
    return torch.where(high.isinf(), 2 * low, low + share * (high - low))
