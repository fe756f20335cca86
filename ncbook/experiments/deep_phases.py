"""Phase diagrams of the deep model: what random starts end in, over depth, width, decay and start."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ncbook.dufm import KINDS, Phases, phase_diagram
from ncbook.experiments._registry import Pieces, experiment
from ncbook.solvers import minimise

__all__ = ["AXES", "LARGE", "SMALL", "deep_phases", "steps_at", "summary"]

AXES = ("L", "width", "decay", "scale")
"""What a diagram may vary: two of them are lists, in this order its rows and its columns, two are numbers."""

SMALL: dict[str, dict[str, Any]] = {
    "six classes: depth and width": {
        "K": 6, "L": [3, 4, 5], "width": [6, 10, 14], "decay": 4e-3, "scale": 1.0,
    },
}  # fmt: skip
"""The diagram of the quick profile, of 504 runs."""

LARGE: dict[str, dict[str, Any]] = {
    "six classes: depth and width": {
        "K": 6, "L": [2, 3, 4, 5, 6, 7], "width": [6, 8, 10, 14, 20, 30], "decay": 4e-3, "scale": 1.0,
    },
    "ten classes: depth and width": {
        "K": 10, "L": [3, 4, 5], "width": [10, 16, 24, 36, 50], "decay": 4e-3, "scale": 1.0,
    },
    "six classes: decay and start": {
        "K": 6, "L": 4, "width": 14, "decay": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
        "scale": [0.3, 0.5, 0.7, 1.0, 1.5],
    },
    "ten classes: decay and start": {
        "K": 10, "L": 4, "width": 24, "decay": [1e-3, 2e-3, 4e-3, 8e-3, 1.2e-2],
        "scale": [0.3, 0.6, 1.0, 1.5],
    },
}  # fmt: skip
"""The diagrams of the full profile."""

_DECAY = 4e-3  # up to here the budget is that of the smallest decay


def steps_at(decay: float, steps: int) -> int:
    r"""Return the steps that a decay needs, :math:`\text{steps} \cdot \max(1, 0.004/\lambda)`.

    What a run has too much at its start, and the singular values that are to vanish, decay at the rate λ;
    at an equal number of steps a small λ would be judged by what it has not yet lost.

    Args:
        decay: λ, positive.
        steps: the number for λ = 0.004 and above.

    Raises:
        ValueError: an argument is not positive.

    >>> steps_at(1e-3, 1500), steps_at(1e-2, 1500)
    (6000, 1500)
    """
    if not (decay > 0 and steps > 0):
        raise ValueError(f"decay and steps must be positive, got {decay} and {steps}")
    return round(steps * max(1.0, _DECAY / decay))


def summary(phases: Phases) -> dict[str, Any]:
    """Say in plain numbers what the runs of every cell ended in.

    Args:
        phases: a diagram of any shape (…).

    Returns:
        ``share``, for each of the kinds its share of the runs, shape (…); the share ``unconverged``; the mean
        ranks at the levels 2, 3, … of the converged runs that are collapsed or low-rank, ``ranks`` (…, D),
        and of the low-rank ones alone, ``low_ranks``, None where there is no such run or level; and
        ``least``, the lowest loss over that of the collapse.

    >>> found = phase_diagram(minimise, K=2, L=3, width=[6, 8], decay=5e-3, runs=4, steps=400)
    >>> summary(found)["share"]["low-rank"], summary(found)["low_ranks"][0]
    ([0.0, 0.0], [None, None])
    """
    return {
        "share": {kind: phases.share(kind).tolist() for kind in KINDS},
        "unconverged": phases.unconverged.tolist(),
        "ranks": _numbers(phases.mean_ranks("collapsed", "low-rank")),
        "low_ranks": _numbers(phases.mean_ranks("low-rank")),
        "least": (phases.loss.amin(-1) / phases.reference).tolist(),
    }


def _numbers(values: Tensor) -> Any:
    """Nested lists, with None for what is not a number: a record holds no NaN."""
    if values.ndim:
        return [_numbers(x) for x in values]
    return float(values) if bool(values.isfinite()) else None


@experiment(
    "deep-phases",
    "Shares of collapsed, low-rank and zero runs of the deep model over depth, width, decay and start.",
    quick={"diagrams": SMALL, "runs": 56, "steps": 1200, "lr": 0.05, "seeds": 1},
    full={"diagrams": LARGE, "runs": 24, "steps": 2200, "lr": 0.04, "seeds": 1},
)
def deep_phases(
    seeds: list[int], diagrams: dict[str, dict[str, Any]], runs: int, steps: int, lr: float
) -> Pieces:
    """Draw phase diagrams of the deep ReLU model with squared loss, row by row.

    Args:
        seeds: of the starting points; each seed adds ``runs`` runs to every cell.
        diagrams: for each its K and the four of :data:`AXES`, two of them lists.
        runs: the runs of a cell and seed.
        steps: the steps of the first descent, as :func:`steps_at` stretches them.
        lr: the step size from which a cosine goes to zero.

    Returns:
        For each diagram the values of its ``rows`` and ``columns``, which are its lists in the order of
        :data:`AXES`, the ``runs`` of a cell, the ``steps`` of each row, the number of ``all_runs``, and the
        :func:`summary` of its cells.

    Raises:
        ValueError: a diagram does not have two lists and two numbers.

    >>> from ncbook.experiments import run
    >>> tiny = {"tiny": {"K": 2, "L": [2, 3], "width": [4, 6], "decay": 5e-3, "scale": 1.0}}
    >>> found = run("deep-phases", "quick", diagrams=tiny, runs=3, steps=200).results["tiny"]
    >>> found["rows"], found["all_runs"], len(found["unconverged"])
    ([2, 3], 12, 2)
    """
    results: dict[str, Any] = {}
    for place, (name, diagram) in enumerate(diagrams.items()):
        row_name, column_name = _axes(name, diagram)
        found, used = [], []
        for i, row in enumerate(diagram[row_name]):
            chosen = diagram | {row_name: row}
            used.append(steps_at(min(_list(chosen["decay"])), steps))
            parts = []
            for seed in seeds:
                own = seed + 1000 * (100 * place + i + 1)  # other starting points in every row
                work = partial(_row, chosen, runs, used[-1], lr, own)
                parts.append((yield f"{name}, {row_name} = {row}, seed {seed}", work))
            found.append(_joined(parts))
        rows, columns, cell = diagram[row_name], diagram[column_name], runs * len(seeds)
        results[name] = {"rows": rows, "columns": columns, "runs": cell, "steps": used}
        results[name]["all_runs"] = cell * len(rows) * len(columns)
        results[name] |= summary(_stacked(found))
    return results


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _axes(name: str, diagram: dict[str, Any]) -> tuple[str, str]:
    if set(diagram) != {"K", *AXES}:
        raise ValueError(f"diagram {name!r} must have K, {', '.join(AXES)}, got {', '.join(diagram)}")
    lists = [axis for axis in AXES if isinstance(diagram[axis], list)]
    if len(lists) != 2 or not all(diagram[axis] for axis in lists):
        raise ValueError(f"diagram {name!r} must vary two of {', '.join(AXES)}, it varies {lists}")
    return lists[0], lists[1]


def _row(diagram: dict[str, Any], runs: int, steps: int, lr: float, seed: int) -> dict[str, Any]:
    """One row of a diagram: all its runs, as plain lists."""
    K, L, width, decay, scale = (diagram[key] for key in ("K", *AXES))
    found = phase_diagram(
        minimise, K, L, width, decay, scale=scale, runs=runs, steps=steps, lr=lr, seed=seed,
        dtype=torch.float32,
    )  # fmt: skip
    return found._asdict()


def _joined(parts: list[dict[str, Any]]) -> Phases:
    """The runs of all seeds of a row in one."""
    columns = {key: [torch.as_tensor(part[key]) for part in parts] for key in Phases._fields}
    dims = {"loss": 1, "kind": 1, "converged": 1, "ranks": 1}
    whole = {key: torch.cat(values, dims[key]) for key, values in columns.items() if key in dims}
    return Phases(reference=columns["reference"][0], **whole)


def _stacked(rows: list[Phases]) -> Phases:
    """The rows one below the other; rows of fewer levels have the rank −1 there, as everywhere."""
    levels = max(row.ranks.shape[-1] for row in rows)
    padded = [torch.nn.functional.pad(row.ranks, (0, levels - row.ranks.shape[-1]), value=-1) for row in rows]
    others = {
        key: torch.stack([getattr(row, key) for row in rows]) for key in Phases._fields if key != "ranks"
    }
    return Phases(ranks=torch.stack(padded), **others)
