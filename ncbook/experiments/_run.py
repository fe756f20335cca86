"""Running experiments: in memory, or into a file that an interrupted run can go on from."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import ncbook
from ncbook import runtime
from ncbook.experiments._record import BrokenFile, Record, read_json, to_plain, write_new, write_whole
from ncbook.experiments._registry import find

__all__ = ["partial_path", "run", "run_to_file"]

Report = Callable[[str, float, bool], None]
"""Told of each piece: its name, the seconds it took, and whether an interrupted run had finished it."""


def run(name: str, profile: str, **arguments: Any) -> Record:
    """Run an experiment and return its record; nothing is written.

    Args:
        name: the name of the experiment.
        profile: ``quick`` or ``full``.
        arguments: values in place of the profile's.

    Raises:
        ValueError: the name, the profile or an argument is unknown, or a result is no finite number.

    >>> record = run("squared-loss-threshold", "quick", points=3, seeds=[7])
    >>> record.arguments["points"], record.seeds
    (3, [7])
    """
    return _run(name, profile, arguments, None, None)


def run_to_file(
    name: str,
    profile: str,
    path: Path | str,
    arguments: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Record:
    """Run an experiment into a new file; an interrupted run goes on where it stopped.

    Each finished piece is kept in a file ``….partial.json`` beside the output, which is removed at the end.

    Args:
        name: the name of the experiment.
        profile: ``quick`` or ``full``.
        path: the file of the record, ending in ``.json``; it must not exist, its folder must.
        arguments: values in place of the profile's.
        report: called after each piece.

    Raises:
        ValueError: as in :func:`run`, or the path does not end in ``.json``.
        FileExistsError: the file exists.
        FileNotFoundError: its folder does not.
        BrokenFile: the partial file is broken, or belongs to another run.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "threshold.json"
    ...     record = run_to_file("squared-loss-threshold", "quick", path, {"points": 3, "seeds": 1})
    ...     path.read_text() == record.to_json()
    True
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"path must end in .json, got {str(path)!r}")
    if path.exists():
        raise FileExistsError(f"{path} exists; recorded runs are never overwritten")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    record = _run(name, profile, arguments or {}, partial_path(path), report)
    write_new(path, record.to_json())
    partial_path(path).unlink(missing_ok=True)
    return record


def partial_path(path: Path) -> Path:
    """Return where the finished pieces of an interrupted run are kept.

    >>> partial_path(Path("a.full.json")).name
    'a.full.partial.json'
    """
    return path.with_suffix(".partial.json")


class _Store:
    """The finished pieces of a run: in memory, and in a file where there is one."""

    def __init__(self, path: Path | None, header: dict[str, Any], report: Report | None) -> None:
        self.path, self.header, self.report = path, header, report
        self.pieces: dict[str, Any] = {}
        self.asked: set[str] = set()
        self.earlier = 0.0
        self.start = time.perf_counter()
        if path is not None and path.exists():
            self._go_on(path)

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.start

    def piece(self, name: str, work: Callable[[], Any]) -> Any:
        if name in self.asked:
            raise ValueError(f"two pieces of the experiment are named {name!r}")
        self.asked.add(name)
        known, start = name in self.pieces, time.perf_counter()
        if not known:
            # through JSON, so that a fresh piece and one read back are the same to the experiment
            self.pieces[name] = json.loads(json.dumps(to_plain(work(), name)))
            self._save()
        if self.report is not None:
            self.report(name, time.perf_counter() - start, known)
        return self.pieces[name]

    def _save(self) -> None:
        if self.path is not None:
            content = {"run": self.header, "seconds": self.seconds, "pieces": self.pieces}
            write_whole(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _go_on(self, path: Path) -> None:
        content = read_json(path)
        remedy = "remove it to begin anew"
        shapes = [type(content.get(key)) for key in ("run", "pieces", "seconds")]
        if len(content) != 3 or shapes[:2] != [dict, dict] or shapes[2] not in (int, float):
            raise BrokenFile(f"{path} is broken: it is no partial run; {remedy}")
        for key, now in self.header.items():
            then = content["run"].get(key)
            if then != now:
                raise BrokenFile(f"{path} belongs to another run: {key} {then!r}, not {now!r}; {remedy}")
        self.pieces, self.earlier = content["pieces"], float(content["seconds"])


def _run(
    name: str, profile: str, changes: Mapping[str, Any], partial: Path | None, report: Report | None
) -> Record:
    experiment = find(name)
    arguments = experiment.arguments(profile, changes)
    sizes = {key: value for key, value in arguments.items() if key != "seeds"}
    header = {
        "experiment": name,
        "profile": profile,
        "arguments": sizes,
        "seeds": arguments["seeds"],
        "commit": _commit(),
        "device": _device(),
        "torch": torch.__version__,
    }
    store = _Store(partial, header, report)
    results = to_plain(_drive(experiment.function(**arguments), store), "results")
    if not isinstance(results, dict):
        raise ValueError(f"{name} must return a dictionary of results, got {type(results).__name__}")
    data = to_plain(experiment.data(arguments), "data", texts=True)
    if set(data) != {"name", "sha256", "note"}:
        raise ValueError(f"the data of {name} must have name, sha256 and note, got {list(data)}")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(**header, seconds=round(store.seconds, 3), date=date, data=data, results=results)


def _drive(made: Any, store: _Store) -> Any:
    """Take the results of a plain function, or lead a generator from piece to piece."""
    if not isinstance(made, Generator):
        return made
    result = None
    while True:
        try:
            name, work = made.send(result)
        except StopIteration as end:
            return end.value
        result = store.piece(name, work)


def _commit() -> str:
    """The commit of the repository around the library, or the version where there is none."""
    root = Path(ncbook.__file__).resolve().parents[1]
    version = f"ncbook {ncbook.__version__}"
    if not (root / ".git").exists():
        return version
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "ncbook")
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit yet
        return version
    return f"{head}-dirty" if changed else head


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _device() -> str:
    device = runtime.device()
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"cpu: {_cpu_name()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or "unknown"
