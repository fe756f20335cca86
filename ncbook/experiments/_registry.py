"""The named experiments of the book: what each is, its sizes in the two profiles, and its arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from ncbook import runtime
from ncbook.experiments._record import to_plain

__all__ = ["NO_DATA", "PROFILES", "Experiment", "Pieces", "experiment", "find", "names"]

PROFILES = ("quick", "full")
NO_DATA: dict[str, Any] = {"name": None, "sha256": None, "note": "no data"}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

Pieces = Generator[tuple[str, Callable[[], Any]], Any, Mapping[str, Any]]
"""An experiment in pieces: it yields (name, work), is sent the piece's result, and returns the results."""

Function = Callable[..., Mapping[str, Any] | Pieces]
DataNote = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_registry: dict[str, Experiment] = {}


@dataclass(frozen=True)
class Experiment:
    """A named experiment: its function, the default arguments of each profile, and the data it uses.

    >>> find("squared-loss-threshold").arguments("quick", {"K": 3})["K"]
    3
    """

    name: str
    summary: str
    function: Function
    sizes: Mapping[str, Mapping[str, Any]]
    data: DataNote

    def arguments(self, profile: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a run, the seeds as a list of integers.

        Raises:
            ValueError: the profile or an argument is unknown, or an argument has the wrong type.
        """
        if profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
        sizes = self.sizes[profile]
        for name in changes:
            if name not in sizes:
                raise ValueError(f"{self.name} has no argument {name!r}, it takes {', '.join(sizes)}")
        chosen = {
            name: _fitting(changes.get(name, default), default, name) for name, default in sizes.items()
        }
        chosen["seeds"] = _seeds(chosen["seeds"])
        return chosen


def experiment(
    name: str,
    summary: str,
    *,
    quick: Mapping[str, Any],
    full: Mapping[str, Any],
    data: DataNote | None = None,
) -> Callable[[Function], Function]:
    """Register a function as a named experiment of the book.

    The function takes the arguments of ``quick`` or ``full`` as keywords, ``seeds`` among them, and returns
    its results: numbers, nested in lists and dictionaries. Long work goes in pieces: written as a generator,
    the function yields (name, work) for each piece, where ``work()`` computes it, is sent its result, and
    returns the results at the end. A recorded run that is interrupted goes on after its last whole piece.

    Args:
        name: lower-case words joined by hyphens.
        summary: one line that says what is measured.
        quick: the default arguments of the quick profile; ``seeds`` is a list, or a number of seeds, counted
            from :func:`ncbook.runtime.seed`.
        full: those of the full profile, of the same names.
        data: given the arguments, returns ``name``, ``sha256`` and ``note`` of the data; None for no data.

    Raises:
        ValueError: the name is taken or has another form, or the profiles do not fit each other.

    >>> @experiment("a-sum", "Adds.", quick={"terms": 3, "seeds": 1}, full={"terms": 9, "seeds": 1})
    ... def a_sum(terms, seeds):
    ...     return {"sum": terms * (terms + 1) // 2}
    >>> from ncbook.experiments import run
    >>> run("a-sum", "quick").results, run("a-sum", "full", terms=4).results
    ({'sum': 6}, {'sum': 10})
    >>> _ = _registry.pop("a-sum")
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be lower-case words joined by hyphens, got {name!r}")
    if not summary.strip() or "\n" in summary:
        raise ValueError(f"summary must be one line, got {summary!r}")
    if set(quick) != set(full) or "seeds" not in quick:
        both = f"{list(quick)} and {list(full)}"
        raise ValueError(f"quick and full must have the same arguments, seeds among them, got {both}")

    def register(function: Function) -> Function:
        if name in _registry and _registry[name].function.__qualname__ != function.__qualname__:
            raise ValueError(f"an experiment named {name!r} exists already")
        note = data if data is not None else lambda arguments: NO_DATA
        _registry[name] = Experiment(name, summary, function, {"quick": quick, "full": full}, note)
        return function

    return register


def names() -> list[str]:
    """Return the names of all experiments.

    >>> "squared-loss-threshold" in names()
    True
    """
    return sorted(_registry)


def find(name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        ValueError: there is none of that name.

    >>> find("squared-loss-threshold").name
    'squared-loss-threshold'
    """
    if name not in _registry:
        raise ValueError(f"no experiment is named {name!r}; there are {', '.join(names())}")
    return _registry[name]


def _fitting(value: Any, default: Any, name: str) -> Any:
    """Return an argument as plain JSON, after a look that it is of the kind of its default."""
    plain = to_plain(value, f"argument {name}", texts=True)
    if name == "seeds":
        return plain
    if isinstance(default, float) and isinstance(plain, int) and not isinstance(plain, bool):
        plain = float(plain)
    wanted = type(to_plain(default, name, texts=True))
    if type(plain) is not wanted:
        raise ValueError(f"argument {name} must be of type {wanted.__name__}, got {value!r}")
    return plain


def _seeds(value: Any) -> list[int]:
    whole = isinstance(value, int) and not isinstance(value, bool)
    seeds = [runtime.seed(offset) for offset in range(value)] if whole else value
    good = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds must be a positive number of seeds or a list of different ones from 0, got {value!r}"
        )
    return seeds
