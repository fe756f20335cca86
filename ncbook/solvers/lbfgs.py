"""Limited-memory BFGS for a batch of runs in one tensor, with or without a projection."""

from __future__ import annotations

import torch
from torch import Tensor

from ncbook.runtime import progress
from ncbook.solvers.flat import Objective
from ncbook.solvers.ledger import Ledger
from ncbook.solvers.line_search import Point, arc_search, row_dot, wolfe_search

__all__ = ["run_lbfgs"]

_PAIRS = 8  # curvature pairs kept
_BOUND_EVERY = 25  # steps between two evaluations of the lower bound, which costs a decomposition
_PATIENCE = 60  # steps without progress of the loss or the gradient after which a run stagnates
_PROGRESS = 0.9  # the share to which the gradient norm must fall to count as progress
_ROUNDING = 100.0  # units of rounding by which the loss must fall to count as progress
_NEAR_BOUND = 1e-3  # a coordinate nearer than this to its bound, and pushed there, is held (Bertsekas)


def run_lbfgs(objective: Objective, ledger: Ledger) -> None:
    """Run L-BFGS until every run has ended; the ledger keeps the outcome.

    All runs step together, but each has its own curvature pairs, its own line search and its own end. A run
    whose line search fails forgets its curvature and tries the gradient; if that fails as well, it is stuck.

    Args:
        objective: the objective of these runs.
        ledger: holds the starting points, feasible where the problem has a projection.
    """
    point = Point(ledger.flat, *objective.value_and_grad(ledger.flat))
    memory, patience = _Memory(point.flat), _Patience(point.flat)
    norm = objective.residual(point.flat, point.gradient)
    failed = torch.zeros_like(ledger.running)
    for step in progress(range(ledger.rules.steps + 1), ledger.title):
        stuck = (failed & memory.empty) | patience.lost(point.loss, norm)
        norm = ledger.note(step, objective, *point, stuck=stuck, look_at_gap=step % _BOUND_EVERY == 0)
        if not ledger.running.any():
            return
        memory.forget(failed)
        keep = ledger.compaction()
        if keep is not None:
            objective, point, norm = objective.restrict(keep), point.take(keep), norm[keep]
            memory, patience = memory.take(keep), patience.take(keep)
        point, failed = _advance(objective, point, norm, memory, ledger.running)


def _advance(
    objective: Objective, point: Point, norm: Tensor, memory: _Memory, running: Tensor
) -> tuple[Point, Tensor]:
    """Take one step of every running row; say which of them found no lower point."""
    if objective.projects:
        direction = _projected_direction(objective, point, norm, memory)
        new, moved = arc_search(objective, point, direction, running)
    else:
        direction = -memory.apply(point.gradient)
        uphill = ~(row_dot(direction, point.gradient) < 0)
        if uphill.any():
            direction = torch.where(uphill[:, None], -point.gradient, direction)
        length = torch.where(memory.empty | uphill, (1 / norm).clamp(max=1), 1.0)
        new, moved = wolfe_search(objective, point, direction, length, running)
    memory.push(new.flat - point.flat, new.gradient - point.gradient)
    return new, running & ~moved


def _projected_direction(objective: Objective, point: Point, norm: Tensor, memory: _Memory) -> Tensor:
    """Bertsekas' two-metric direction: gradient where a bound holds a coordinate, quasi-Newton elsewhere.

    A coordinate is held where a small step down its own gradient is cut by the projection. For a projection
    that does not act coordinate by coordinate all are held, and the method is the projected gradient.
    """
    reach = norm.clamp(max=_NEAR_BOUND)[:, None]
    probe = point.flat - reach * point.gradient.sign()
    free = objective.project(probe) == probe
    newton = memory.apply(point.gradient, free)
    uphill = ~(row_dot(newton, point.gradient) > 0)
    memory.forget(uphill & free.any(1))
    plain = point.gradient * torch.where(memory.empty, (1 / norm).clamp(max=1), memory.scale)[:, None]
    return -torch.where(free & ~memory.empty[:, None] & ~uphill[:, None], newton, plain)


class _Memory:
    """The last curvature pairs of every run and the two-loop recursion with them.

    A pair with s·y not clearly positive has weight 0 and is passed over, in its own run only.
    """

    def __init__(self, flat: Tensor) -> None:
        self.s: list[Tensor] = []  # newest last, each (B, P)
        self.y: list[Tensor] = []
        self.weight: list[Tensor] = []  # 1/(s·y), or 0 for a pair passed over, each (B,)
        self.scale = flat.new_ones(len(flat))
        self.empty = torch.ones(len(flat), dtype=torch.bool, device=flat.device)

    def push(self, s: Tensor, y: Tensor) -> None:
        curvature, size = row_dot(s, y), row_dot(y, y)
        valid = curvature > torch.finfo(s.dtype).eps * size
        valid &= curvature.isfinite() & size.isfinite() & (size > 0)
        if not valid.all():  # a pair that is passed over may hold NaN, which a weight of 0 would not undo
            s, y = torch.where(valid[:, None], s, 0.0), torch.where(valid[:, None], y, 0.0)
        self.s.append(s)
        self.y.append(y)
        self.weight.append(torch.where(valid, 1 / curvature, 0.0))
        self.scale = torch.where(valid, curvature / size, self.scale)
        self.empty = self.empty & ~valid
        if len(self.s) > _PAIRS:
            del self.s[0], self.y[0], self.weight[0]

    def forget(self, runs: Tensor) -> None:
        """Drop all pairs of some runs (a mask)."""
        if not runs.any():
            return
        self.weight = [weight.masked_fill(runs, 0.0) for weight in self.weight]
        self.scale = self.scale.masked_fill(runs, 1.0)
        self.empty = self.empty | runs

    def take(self, keep: Tensor) -> _Memory:
        """Return the memory of some rows."""
        kept = _Memory(self.s[0][:0] if self.s else self.scale[:0, None])
        kept.s, kept.y = [x[keep] for x in self.s], [x[keep] for x in self.y]
        kept.weight = [x[keep] for x in self.weight]
        kept.scale, kept.empty = self.scale[keep], self.empty[keep]
        return kept

    def apply(self, gradient: Tensor, free: Tensor | None = None) -> Tensor:
        """Return the inverse Hessian estimate times the gradient, in the free coordinates if given."""
        q = gradient.clone() if free is None else gradient * free
        y, weight = self.y, self.weight
        if free is not None:
            y = [y * free for y in self.y]
            curvature = [row_dot(s, y) for s, y in zip(self.s, y, strict=True)]
            weight = [
                torch.where((w > 0) & (c > torch.finfo(c.dtype).eps * row_dot(z, z)), 1 / c, 0.0)
                for w, c, z in zip(self.weight, curvature, y, strict=True)
            ]
        shares = []
        for s, z, w in reversed([*zip(self.s, y, weight, strict=True)]):
            shares.append(w * row_dot(s, q))
            q.addcmul_(z, shares[-1][:, None], value=-1)
        q.mul_(self.scale[:, None])
        for s, z, w, share in zip(self.s, y, weight, reversed(shares), strict=True):
            q.addcmul_(s, (share - w * row_dot(z, q))[:, None])
        return q if free is None else q * free


class _Patience:
    """Counts the steps since a run last made progress."""

    def __init__(self, flat: Tensor) -> None:
        self.loss = flat.new_full((len(flat),), torch.inf)
        self.norm = self.loss.clone()
        self.count = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)

    def lost(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Take note of the present state; return the runs whose patience is at an end."""
        rounding = _ROUNDING * torch.finfo(loss.dtype).eps * loss.abs()
        better = (loss < self.loss - rounding) | (norm < _PROGRESS * self.norm)
        self.loss = torch.where(better, torch.minimum(loss, self.loss), self.loss)
        self.norm = torch.where(better, torch.minimum(norm, self.norm), self.norm)
        self.count = torch.where(better, 0, self.count + 1)
        return self.count >= _PATIENCE

    def take(self, keep: Tensor) -> _Patience:
        """Return the counts of some rows."""
        kept = _Patience(self.loss[:0, None])
        kept.loss, kept.norm, kept.count = self.loss[keep], self.norm[keep], self.count[keep]
        return kept
