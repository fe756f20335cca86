"""The book of a batch of runs: which still run, how the others ended, and what was recorded on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.solvers.flat import Layout, Objective

__all__ = ["REASONS", "History", "Ledger", "Rules", "join_histories"]

REASONS = ("running", "gradient", "gap", "stagnation", "steps", "non-finite")
RUNNING, GRADIENT, GAP, STAGNATION, STEPS, NON_FINITE = range(len(REASONS))

_ROUNDING = 8.0  # a gap below this many units of rounding of the loss cannot be told from zero
_COMPACT_AT = 1 / 8  # drop finished runs from the working batch once they are this share of it


class History(NamedTuple):
    """What was recorded along the way; a run that has ended keeps its last state.

    >>> History(torch.arange(2), torch.zeros(2, 3), torch.zeros(2, 3), (torch.zeros(2, 3, 4),)).loss.shape
    torch.Size([2, 3])
    """

    steps: Tensor
    """The steps at which the state was recorded, shape (T,)."""
    loss: Tensor
    """The objective, shape (T, B)."""
    gradient_norm: Tensor
    """The norm of the (projected) gradient, shape (T, B)."""
    params: Any
    """The parameters, every tensor with a leading axis T."""


@dataclass(frozen=True)
class Rules:
    """When a run ends and what is recorded.

    Args:
        method: the name of the method, for the progress bar.
        steps: the largest number of steps.
        tol: the gradient norm at which a run has converged; 0 never ends a run early.
        record_every: the number of steps between two records, None for no record.
    """

    method: str
    steps: int
    tol: float
    record_every: int | None

    def records(self, step: int) -> bool:
        """Say whether the state after this many steps is to be recorded."""
        return self.record_every is not None and step % self.record_every == 0


@dataclass
class Ledger:
    """The state in which each run of a block ended, filled as they end.

    Args:
        layout: the layout of the parameters.
        rules: when a run ends and what is recorded.
        flat: the starting points, shape (B, P).
        runs: which runs of the whole batch these are, shape (B,).
    """

    layout: Layout
    rules: Rules
    flat: Tensor
    runs: Tensor
    loss: Tensor = field(init=False)
    norm: Tensor = field(init=False)
    reason: Tensor = field(init=False)
    steps: Tensor = field(init=False)
    rows: Tensor = field(init=False)  # the run that each row of the working batch stands for
    running: Tensor = field(init=False)  # the rows of the working batch that have not ended
    records: list[tuple[int, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        B, device = len(self.flat), self.flat.device
        self.flat = self.flat.clone()
        self.loss = self.flat.new_full((B,), torch.nan)
        self.norm = self.flat.new_full((B,), torch.nan)
        self.reason = torch.zeros(B, dtype=torch.int64, device=device)
        self.steps = torch.zeros(B, dtype=torch.int64, device=device)
        self.rows = torch.arange(B, device=device)
        self.running = torch.ones(B, dtype=torch.bool, device=device)

    @property
    def title(self) -> str:
        """What a progress bar calls these runs."""
        return f"{self.rules.method}, runs {int(self.runs[0])}–{int(self.runs[-1])}"

    def note(
        self,
        step: int,
        objective: Objective,
        flat: Tensor,
        loss: Tensor,
        gradient: Tensor,
        *,
        stuck: Tensor | None = None,
        look_at_gap: bool = False,
    ) -> Tensor:
        """Record the state of the working batch where that is due, and enter the rows that end here.

        Args:
            step: the number of steps taken.
            objective: the objective of the working batch.
            flat: its parameters.
            loss: their objective.
            gradient: their gradient.
            stuck: the rows that cannot go on, a mask.
            look_at_gap: whether to evaluate the lower bound for the rows that can.

        Returns:
            The norm of the (projected) gradient of each row.
        """
        norm = objective.residual(flat, gradient)
        if self.rules.records(step):
            self._record(step, flat, loss, norm)
        reason = torch.where(norm <= self.rules.tol, GRADIENT, RUNNING)
        stuck = torch.zeros_like(self.running) if stuck is None else stuck & (reason == RUNNING)
        look = look_at_gap and bool((self.rules.tol**2 > _rounding(loss)).any())
        if bool(stuck.any()) or look:
            reason = torch.where(stuck, STAGNATION, reason)
            closed = self._gap_closed(objective, flat, loss, hidden=stuck)
            reason = torch.where(closed & (reason != GRADIENT), GAP, reason)
        reason = torch.where(loss.isfinite() & norm.isfinite(), reason, NON_FINITE)
        if step == self.rules.steps:
            reason = torch.where(reason == RUNNING, STEPS, reason)
        self._enter(step, flat, loss, norm, reason)
        return norm

    def compaction(self) -> Tensor | None:
        """Return the rows to keep once enough have ended that dropping them pays, and forget the others."""
        ended = len(self.rows) - int(self.running.sum())
        if ended == 0 or ended < _COMPACT_AT * len(self.rows):
            return None
        keep = self.running.nonzero().squeeze(1)
        self.rows, self.running = self.rows[keep], self.running[keep]
        return keep

    def _gap_closed(self, objective: Objective, flat: Tensor, loss: Tensor, hidden: Tensor) -> Tensor:
        """Say where the lower bound is reached: within tol², which near a minimum is the size of a gap.

        A gap that rounding hides counts only for the rows ``hidden``, whose gradient will get no smaller.
        """
        rounding = _rounding(loss)
        limit = torch.full_like(loss, self.rules.tol**2)
        visible = limit > rounding
        gap = loss - objective.lower_bound(flat)
        return (gap <= torch.maximum(limit, rounding)) & (visible | hidden)

    def _enter(self, step: int, flat: Tensor, loss: Tensor, norm: Tensor, reason: Tensor) -> None:
        ending = (self.running & (reason != RUNNING)).nonzero().squeeze(1)
        runs = self.rows[ending]
        self.flat[runs], self.loss[runs], self.norm[runs] = flat[ending], loss[ending], norm[ending]
        self.reason[runs], self.steps[runs] = reason[ending], step
        self.running[ending] = False

    def _record(self, step: int, flat: Tensor, loss: Tensor, norm: Tensor) -> None:
        whole = (self.flat.clone(), self.loss.clone(), self.norm.clone())
        for kept, now in zip(whole, (flat, loss, norm), strict=True):
            kept[self.rows[self.running]] = now[self.running]
        self.records.append((step, *whole))


def _rounding(loss: Tensor) -> Tensor:
    return _ROUNDING * torch.finfo(loss.dtype).eps * loss.abs()


def join_histories(ledgers: Sequence[Ledger]) -> History | None:
    """Join the records of blocks of runs, all made at the same steps; None if there were none to make.

    A block that ended before the others keeps its final state; the state at the very end closes the history.
    """
    if ledgers[0].rules.record_every is None:
        return None
    steps = [record[0] for record in max((ledger.records for ledger in ledgers), key=len)]
    last = max(int(ledger.steps.max()) for ledger in ledgers)
    steps += [last] if last > steps[-1] else []
    columns = []
    for ledger in ledgers:
        final = (last, ledger.flat, ledger.loss, ledger.norm)
        columns.append(ledger.records + [final] * (len(steps) - len(ledger.records)))
    rows = [
        [torch.cat(parts) for parts in zip(*(c[i][1:] for c in columns), strict=True)]
        for i in range(len(steps))
    ]
    flats, losses, norms = zip(*rows, strict=True)
    layout = ledgers[0].layout
    leaves = zip(*(layout.leaves(flat) for flat in flats), strict=True)
    params = layout.rebuild([torch.stack(leaf) for leaf in leaves])
    return History(
        torch.tensor(steps, device=flats[0].device), torch.stack(losses), torch.stack(norms), params
    )
