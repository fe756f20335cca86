"""Batched minimisers of any problem: L-BFGS, gradient descent, momentum and Adam, many runs in one tensor.

A solver knows nothing of a model. It sees the parameters as one flat (B, P) buffer, and every run of the
batch goes its own way: it stops where its own gradient is small, and a run that diverges ends alone.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ncbook import runtime
from ncbook.protocol import Problem, require_count
from ncbook.solvers.first_order import DEFAULT_LR, Schedule, descend
from ncbook.solvers.flat import Layout, Objective
from ncbook.solvers.lbfgs import run_lbfgs
from ncbook.solvers.ledger import REASONS, History, Ledger, Rules, join_histories

__all__ = ["History", "Solution", "minimise"]

Method = Literal["lbfgs", "gd", "momentum", "adam"]

_DEFAULT_STEPS = {"lbfgs": 5_000, "gd": 20_000, "momentum": 20_000, "adam": 20_000}
_BLOCK_BYTES = 2**20  # of parameters in a block of runs; larger ones leave the cache of common CPUs
_LEAST_BLOCK = 16  # runs


class Solution(NamedTuple):
    """Where each run of a batch ended.

    >>> from ncbook.ufm import SquaredLossUFM
    >>> minimise(SquaredLossUFM(3, 2, 4, 0.01, 0.01)).reason
    ['gradient']
    """

    params: Any
    """The parameters, a tuple of tensors as the problem knows them."""
    loss: Tensor
    """The objective, shape (B,)."""
    converged: Tensor
    """Whether the run met the tolerance (its reason is ``gradient`` or ``gap``), shape (B,)."""
    reason: list[str]
    """For each run why it ended: ``gradient`` (its norm reached tol), ``gap`` (the lower bound was reached),
    ``stagnation`` (no lower point was found; usual at the kinks of ReLU), ``steps`` (all were spent) or
    ``non-finite`` (it diverged, or began with NaN)."""
    gradient_norm: Tensor
    """‖∇f‖, or ‖x − project(x − ∇f)‖ for a problem with a projection, shape (B,)."""
    gap: Tensor | None
    """The loss less the problem's lower bound there, shape (B,); None for a problem without one."""
    steps: Tensor
    """The number of steps taken, shape (B,)."""
    history: History | None
    """The recorded states, None unless ``record_every`` was given."""


def minimise(
    problem: Problem,
    *,
    batch: int = 1,
    method: Method = "lbfgs",
    start: Any = None,
    scale: float = 1.0,
    steps: int | None = None,
    lr: float | None = None,
    schedule: Schedule = "cosine",
    tol: float | None = None,
    record_every: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Solution:
    """Minimise a problem from many starting points at once.

    A run ends when the norm of its gradient is at most ``tol``. Where the problem has a lower bound, it also
    ends when its loss is seen to be within tol² of that bound. L-BFGS gives up where no lower point can be
    found: there a gap that rounding hides still counts as converged, everything else as stagnation. The
    starting points depend on the seed only, not on the device.

    Args:
        problem: a problem as described by :class:`ncbook.protocol.Problem`; one with ``project`` is solved
            under its constraint.
        batch: the number of runs B, where no start is given.
        method: ``lbfgs``, ``gd``, ``momentum`` (0.9) or ``adam``.
        start: the parameters to start from (left untouched); it wins over batch, scale and seed.
        scale: passed to the problem's ``init``.
        steps: the largest number of steps; None means 5,000 for L-BFGS, 20,000 for the others.
        lr: the step size; None means 0.5 for gd, 0.1 for momentum, 0.01 for adam. L-BFGS takes none.
        schedule: of the step size, ``cosine`` (to zero at the last step) or ``constant``. L-BFGS has none.
        tol: the gradient norm to reach; None means 1e-10, or 1e-5 in float32; 0 asks for all there is.
        record_every: keep the state of all runs every so many steps; None keeps none.
        seed: the seed of the starting points.
        device: where to compute; None means that of ``start``, else ``runtime.device()``.
        dtype: the precision; None means that of ``start``, else float64.

    Raises:
        ValueError: an argument is out of its range, or ``start`` is no batch of parameters.

    Source: Nocedal and Wright (2006), chapter 7; Lewis and Overton (2013) and Hager and Zhang (2005) for the
    line search; Bertsekas (1982) for the projected method.

    >>> from ncbook.ufm import SquaredLossUFM
    >>> solution = minimise(SquaredLossUFM(3, 2, 4, 0.01, 0.01), batch=100)
    >>> bool(solution.converged.all())
    True
    """
    _check(method, schedule, scale, lr)
    if start is None:
        require_count(batch, "batch")
        device = runtime.device() if device is None else device
        dtype = runtime.DTYPE if dtype is None else dtype
        start = problem.init(batch, runtime.generator(seed), scale=scale, dtype=dtype, device=device)
    layout = Layout(start)
    with torch.no_grad():
        flat = layout.flatten(start).to(device=device, dtype=dtype)
        if not flat.is_floating_point():
            raise ValueError(f"dtype must be a floating-point type, got {flat.dtype}")
        objective, rules = Objective(problem, layout), _rules(method, steps, tol, record_every, flat.dtype)
        flat = objective.project(flat)
        ledgers = [Ledger(layout, rules, flat[runs], runs) for runs in _blocks(objective, flat)]
        for ledger in ledgers:
            part = objective.restrict(ledger.runs) if objective.divisible else objective
            if method == "lbfgs":
                run_lbfgs(part, ledger)
            else:
                descend(part, ledger, method, DEFAULT_LR[method] if lr is None else lr, schedule)
        return _solution(ledgers, objective)


def _blocks(objective: Objective, flat: Tensor) -> tuple[Tensor, ...]:
    """Split a large batch into blocks of runs that fit into the cache of a CPU, and are solved in turn."""
    runs = torch.arange(len(flat), device=flat.device)
    if flat.device.type != "cpu" or not objective.divisible:
        return (runs,)
    size = _BLOCK_BYTES // (flat.shape[1] * flat.element_size())
    return runs.split(max(size, _LEAST_BLOCK))


def _check(method: str, schedule: str, scale: float, lr: float | None) -> None:
    if method not in _DEFAULT_STEPS:
        raise ValueError(f"method must be one of {', '.join(_DEFAULT_STEPS)}, got {method!r}")
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"schedule must be 'cosine' or 'constant', got {schedule!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    if lr is not None and method == "lbfgs":
        raise ValueError(f"lr must be None for lbfgs, which searches for its steps, got {lr!r}")
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a positive number, got {lr!r}")


def _rules(
    method: str, steps: int | None, tol: float | None, record_every: int | None, dtype: torch.dtype
) -> Rules:
    steps = _DEFAULT_STEPS[method] if steps is None else require_count(steps, "steps", 0)
    if tol is None:
        tol = 1e-10 if dtype == torch.float64 else 1e-5
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be a number of at least 0, got {tol!r}")
    every = None if record_every is None else require_count(record_every, "record_every")
    return Rules(method, steps, tol, every)


def _solution(ledgers: list[Ledger], objective: Objective) -> Solution:
    flat, loss, norm, codes, steps = (
        torch.cat([getattr(ledger, name) for ledger in ledgers])
        for name in ("flat", "loss", "norm", "reason", "steps")
    )
    reason = [REASONS[code] for code in codes.tolist()]
    converged = torch.tensor([word in ("gradient", "gap") for word in reason], device=flat.device)
    layout = objective.layout
    params = layout.rebuild([leaf.contiguous() for leaf in layout.leaves(flat)])
    gap = loss - objective.lower_bound(flat) if objective.bounded else None
    return Solution(params, loss, converged, reason, norm, gap, steps, join_histories(ledgers))
