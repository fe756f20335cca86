"""Gradient descent, heavy-ball momentum and Adam, for a batch of runs in one tensor.

The updates are those of ``torch.optim.SGD`` and ``torch.optim.Adam`` without weight decay (the problem has
its own). Nothing is evaluated but the gradient, except every few steps, when the runs are judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ncbook.runtime import progress
from ncbook.solvers.flat import Objective
from ncbook.solvers.ledger import Ledger

__all__ = ["DEFAULT_LR", "FirstOrder", "Schedule", "descend"]

FirstOrder = Literal["gd", "momentum", "adam"]
Schedule = Literal["cosine", "constant"]
Leaves = list[Tensor]
Update = Callable[[Objective, Leaves, list[Leaves], float, int], None]

DEFAULT_LR: dict[str, float] = {"gd": 0.5, "momentum": 0.1, "adam": 0.01}

_JUDGE_EVERY = 25  # steps between two evaluations of the loss
_BOUND_EVERY = 20  # judgements between two evaluations of the lower bound, which costs a decomposition
_MOMENTUM = 0.9
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba's values


def descend(objective: Objective, ledger: Ledger, method: FirstOrder, lr: float, schedule: Schedule) -> None:
    """Run a first-order method until every run has ended; the ledger keeps the outcome.

    Args:
        objective: the objective of these runs.
        ledger: holds the starting points.
        method: the update rule.
        lr: the step size, at its largest.
        schedule: ``constant``, or ``cosine``: lr (1 + cos(π step/steps))/2.
    """
    update, count = _UPDATES[method]
    layout, steps = objective.layout, ledger.rules.steps
    leaves = layout.pieces(ledger.flat)  # updated in place
    state = [[torch.zeros_like(leaf) for leaf in leaves] for _ in range(count)]
    for step in progress(range(steps + 1), ledger.title):
        if step % _JUDGE_EVERY == 0 or step == steps or ledger.rules.records(step):
            _judge(objective, leaves, ledger, step)
            if not ledger.running.any():
                return
            keep = ledger.compaction()
            if keep is not None:
                objective, leaves = objective.restrict(keep), [leaf[keep] for leaf in leaves]
                state = [[leaf[keep] for leaf in part] for part in state]
        rate = lr if schedule == "constant" else lr * (1 + math.cos(math.pi * step / steps)) / 2
        update(objective, leaves, state, rate, step)
        if objective.projects:
            flat = objective.project(layout.flatten(layout.rebuild(leaves)))
            for leaf, feasible in zip(leaves, layout.leaves(flat), strict=True):
                leaf.copy_(feasible)


def _judge(objective: Objective, leaves: Leaves, ledger: Ledger, step: int) -> None:
    flat = objective.layout.flatten(objective.layout.rebuild(leaves))
    loss, gradient = objective.value_and_grad(flat)
    look = step > 0 and step % (_JUDGE_EVERY * _BOUND_EVERY) == 0
    ledger.note(step, objective, flat, loss, gradient, look_at_gap=look)


def _gd(objective: Objective, leaves: Leaves, state: list[Leaves], rate: float, step: int) -> None:
    objective.accumulate(leaves, leaves, 1.0, -rate)


def _momentum(objective: Objective, leaves: Leaves, state: list[Leaves], rate: float, step: int) -> None:
    objective.accumulate(state[0], leaves, _MOMENTUM, 1.0)
    for x, velocity in zip(leaves, state[0], strict=True):
        x.sub_(velocity, alpha=rate)


def _adam(objective: Objective, leaves: Leaves, state: list[Leaves], rate: float, step: int) -> None:
    root = math.sqrt(
        1 - _BETA_2 ** (step + 1)
    )  # unbiases the second moment's root; moved into the numbers here
    rate, epsilon = rate * root / (1 - _BETA_1 ** (step + 1)), _EPSILON * root
    for x, gradient, first, second in zip(leaves, objective.gradient(leaves), *state, strict=True):
        first.lerp_(gradient, 1 - _BETA_1)
        second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        x.addcdiv_(first, second.sqrt().add_(epsilon), value=-rate)


_UPDATES: dict[str, tuple[Update, int]] = {"gd": (_gd, 0), "momentum": (_momentum, 1), "adam": (_adam, 2)}
