"""The record of one run of an experiment, and its file: whole or not there, never overwritten."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["BrokenFile", "Record", "read_json", "read_record", "to_plain", "write_new", "write_whole"]


class BrokenFile(ValueError):
    """A file of recorded numbers cannot be used; the message names it and says what is wrong.

    >>> issubclass(BrokenFile, ValueError)
    True
    """


@dataclass(frozen=True)
class Record:
    """What one run of an experiment found, with all that it takes to repeat it.

    >>> from ncbook.experiments import run
    >>> record = run("squared-loss-threshold", "quick", points=3, seeds=1)
    >>> list(json.loads(record.to_json()))[:4]
    ['experiment', 'profile', 'arguments', 'seeds']
    """

    experiment: str
    """The name of the experiment."""
    profile: str
    """``quick`` or ``full``."""
    arguments: dict[str, Any]
    """The sizes that it ran with, without the seeds."""
    seeds: list[int]
    """The seeds of its random parts."""
    commit: str
    """The library's commit (``-dirty`` if files were changed), or its version outside a repository."""
    device: str
    """What it was computed on."""
    torch: str
    """The version of torch."""
    seconds: float
    """The time that it took, the parts before interruptions included."""
    date: str
    """When it ended, in UTC."""
    data: dict[str, Any]
    """``name``, ``sha256`` and ``note`` of the data it used."""
    results: dict[str, Any]
    """What it found: numbers, nested in lists and dictionaries."""

    def to_json(self) -> str:
        """Return the text of the record's file."""
        return json.dumps(asdict(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


KEYS = tuple(field.name for field in fields(Record))


def to_plain(x: Any, where: str, texts: bool = False) -> Any:
    """Turn tensors, arrays and tuples into lists of Python numbers, and refuse what JSON cannot hold.

    Args:
        x: numbers, truth values and None, nested in sequences and dictionaries with text keys.
        where: what x is called in errors.
        texts: allow texts too.

    Raises:
        ValueError: something else is inside, or a number is NaN or infinite.

    >>> to_plain({"t": torch.ones(2), "K": np.int64(3)}, "results")
    {'t': [1.0, 1.0], 'K': 3}
    """
    if isinstance(x, (torch.Tensor, np.ndarray, np.generic)):
        x = x.tolist()
    if x is None or isinstance(x, (bool, int)) or (texts and isinstance(x, str)):
        return x
    if isinstance(x, float):
        if not math.isfinite(x):
            raise ValueError(f"{where} must be finite, got {x}")
        return x
    if isinstance(x, Mapping):
        for key in x:
            if not isinstance(key, str):
                raise ValueError(f"the keys of {where} must be texts, got {key!r}")
        return {key: to_plain(value, f"{where}.{key}", texts) for key, value in x.items()}
    if isinstance(x, (list, tuple, range)):
        return [to_plain(value, f"{where}[{i}]", texts) for i, value in enumerate(x)]
    raise ValueError(f"{where} must hold plain numbers, got {type(x).__name__}")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there with all its content or not at all, whatever interrupts."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_new(path: Path, text: str) -> None:
    """Write a file like :func:`write_whole`, and refuse to touch one that exists.

    Raises:
        FileExistsError: the file exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; recorded runs are never overwritten")
    write_whole(path, text)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BrokenFile: the content is no JSON object, or holds NaN.
        OSError: there is no such file, or it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except ValueError as error:  # covers broken UTF-8 too
        raise BrokenFile(f"{path} is broken: {error}") from None
    if not isinstance(content, dict):
        raise BrokenFile(f"{path} is broken: it holds a {type(content).__name__}, not an object")
    return content


def read_record(path: Path) -> Record:
    """Read and check a recorded run.

    Raises:
        BrokenFile: the file is no record; the message names the file and the fault.
        OSError: there is no such file, or it cannot be read.
    """
    content = read_json(path)
    if set(content) != set(KEYS):
        missing, extra = sorted(set(KEYS) - set(content)), sorted(set(content) - set(KEYS))
        raise BrokenFile(f"{path} is no recorded run: keys missing: {missing}, unknown: {extra}")
    record = Record(**content)
    for name, kind in _KINDS.items():
        if not isinstance(getattr(record, name), kind):
            raise BrokenFile(f"{path} is no recorded run: {name} is {getattr(record, name)!r}")
    try:
        to_plain(record.results, "results")
    except ValueError as error:
        raise BrokenFile(f"{path} is no recorded run: {error}") from None
    return record


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("experiment", "profile", "commit", "device", "torch", "date"), str),
    **dict.fromkeys(("arguments", "data", "results"), dict),
    "seeds": list,
    "seconds": (int, float),
}


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")
