"""Where recorded runs lie, and how to find or make one."""

from __future__ import annotations

import os
from pathlib import Path

from ncbook.experiments._record import BrokenFile, Record, read_record
from ncbook.experiments._registry import PROFILES, find

__all__ = ["how_to_record", "recorded"]

_PACKAGE = Path(__file__).resolve().parents[1]


def recorded(name: str, profile: str = "full") -> Record | None:
    """Return a recorded run, None where there is none.

    The file ``<name>.<profile>.json`` is looked for in ``$NCBOOK_RUNS``, in ``book/runs`` of the repository
    and in ``runs`` of the installed package, in this order; :func:`how_to_record` says so to the reader.

    Args:
        name: the name of the experiment.
        profile: ``quick`` or ``full``.

    Raises:
        ValueError: the name or the profile is unknown, or ``NCBOOK_RUNS`` names no folder.
        BrokenFile: the file found is broken, or records something else.

    >>> record = recorded("squared-loss-threshold")
    >>> record is None or record.profile == "full"
    True
    """
    for _, folder in _places(name, profile):
        path = folder / f"{name}.{profile}.json"
        if path.is_file():
            record = read_record(path)
            if (record.experiment, record.profile) != (name, profile):
                raise BrokenFile(
                    f"{path} records the {record.profile} run of {record.experiment!r}, "
                    f"not the {profile} run of {name!r}"
                )
            return record
    return None


def how_to_record(name: str, profile: str = "full") -> str:
    """Return a sentence for the reader: where a recorded run was looked for, and the command that makes it.

    >>> print(how_to_record("squared-loss-threshold"))  # doctest: +ELLIPSIS
    No full run of squared-loss-threshold is recorded (looked in ...). To make it: ...
    """
    places = ", ".join(words for words, _ in _places(name, profile))
    file = f"{name}.{profile}.json"
    return (
        f"No {profile} run of {name} is recorded (looked in {places} for {file}). "
        f"To make it: python -m ncbook run {name} --profile {profile} --out book/runs/{file}"
    )


def _places(name: str, profile: str) -> list[tuple[str, Path]]:
    find(name)
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    places = []
    chosen = os.environ.get("NCBOOK_RUNS", "").strip()
    if chosen:
        if not Path(chosen).is_dir():
            raise ValueError(f"NCBOOK_RUNS must name a folder, got {chosen!r}")
        places.append((f"$NCBOOK_RUNS = {chosen}", Path(chosen)))
    places.append(("book/runs of the repository", _PACKAGE.parent / "book" / "runs"))
    places.append(("runs of the installed package", _PACKAGE / "runs"))
    return places
