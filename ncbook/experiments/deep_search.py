"""Random search below deep collapse: for which numbers of classes and matrices anything lower is found."""

from __future__ import annotations

from functools import partial
from typing import Any

from ncbook.dufm import KINDS, phase_diagram
from ncbook.experiments._registry import Pieces, experiment
from ncbook.solvers import minimise

__all__ = ["deep_search"]

_SMALL = {
    "cells": [[K, L] for K in (2, 3, 4, 5) for L in (2, 3, 4)],
    "runs": 24, "steps": 900, "lr": 0.05, "decay": 4e-3, "seeds": 1,
}  # fmt: skip
_LARGE = _SMALL | {
    "cells": [
        *([2, L] for L in (2, 3, 4, 5, 6)),
        *([K, L] for K in (3, 4, 5, 6) for L in (2, 3, 4)),
        *([K, 3] for K in (7, 8, 9, 10)),
        [10, 2],
    ],
    "runs": 256, "steps": 1500,
}  # fmt: skip


@experiment(
    "deep-search",
    "The lowest loss of many random starts of the deep model, relative to that of deep collapse.",
    quick=_SMALL,
    full=_LARGE,
)
def deep_search(
    seeds: list[int], cells: list[list[int]], runs: int, steps: int, lr: float, decay: float
) -> Pieces:
    """Search below the value of deep collapse, with as many random starts in every cell.

    Args:
        seeds: of the starting points; each seed adds ``runs`` runs to every cell.
        cells: pairs of K and L; the width is K, 8 at least.
        runs: the runs of a cell and seed.
        steps: of each descent, see :func:`ncbook.dufm.phase_diagram`.
        lr: the first step size.
        decay: λ of all factors.

    Returns:
        Lists over the cells: ``K``, ``L``, ``width``, the number of ``runs``; ``least``, the lowest loss over
        that of collapse, less 1; and how many runs ended ``below`` collapse by 0.2 % or more, ``collapsed``,
        and in ``other`` places above it.

    Raises:
        ValueError: a size is not positive, or L is below 2.

    >>> from ncbook.experiments import run
    >>> found = run("deep-search", "quick", cells=[[2, 2], [2, 3]], runs=6, steps=300).results
    >>> found["K"], found["L"], found["below"]
    ([2, 2], [2, 3], [0, 0])
    """
    table: dict[str, list[Any]] = {
        key: [] for key in ("K", "L", "width", "runs", "least", "below", "collapsed", "other")
    }
    for K, L in cells:
        width = max(8, K)
        parts = []
        for seed in seeds:
            work = partial(_cell, K, L, width, runs, steps, lr, decay, seed + 1000 * (10 * K + L))
            parts.append((yield f"K = {K}, L = {L}, seed {seed}", work))
        counts = {key: sum(part[key] for part in parts) for key in ("below", "collapsed", "other")}
        least = min(part["least"] for part in parts)
        row = {"K": K, "L": L, "width": width, "runs": runs * len(seeds), "least": least, **counts}
        for key, value in row.items():
            table[key].append(value)
    return table


def _cell(
    K: int, L: int, width: int, runs: int, steps: int, lr: float, decay: float, seed: int
) -> dict[str, Any]:
    """One cell, in float64: whether a run is below collapse is a matter of its last digits."""
    found = phase_diagram(minimise, K, L, width, decay, runs=runs, steps=steps, lr=lr, seed=seed)
    counts = {kind: int((found.kind == place).sum()) for place, kind in enumerate(KINDS)}
    return {
        "least": float(found.loss.min() / found.reference) - 1,
        "below": counts["low-rank"],
        "collapsed": counts["collapsed"],
        "other": counts["other"] + counts["zero"],
    }
