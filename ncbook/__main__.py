"""The command line of the experiments: ``python -m ncbook list | run NAME … | show FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ncbook import experiments

__all__ = ["main"]

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted.

    Args:
        argv: the words of the command; those of the process when None.

    >>> main(["show", "no-such-file.json"])
    1
    """
    options = _parser().parse_args(argv)
    try:
        options.command(options)
    except experiments.BrokenFile as error:
        return _complain(error, FAILED)
    except ValueError as error:
        return _complain(error, MISUSED)
    except OSError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ncbook", description="Run and record the experiments of Neural Collapse, Executed."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="name the experiments and their arguments")
    listing.set_defaults(command=_list)
    running = commands.add_parser(
        "run", help="run an experiment into a file", description="An interrupted run goes on when repeated."
    )
    running.add_argument("name", metavar="NAME", help="the experiment, as `list` names it")
    running.add_argument("--profile", choices=("quick", "full"), default="quick", help="quick is the default")
    running.add_argument("--out", metavar="FILE", type=Path, required=True, help="a new .json file")
    running.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=_setting,
        action="append",
        default=[],
        dest="settings",
        help="an argument in place of the profile's, e.g. --set K=6 or --set seeds=[0,1]",
    )
    running.set_defaults(command=_run)
    showing = commands.add_parser("show", help="print a recorded run")
    showing.add_argument("file", metavar="FILE", type=Path)
    showing.set_defaults(command=_show)
    return parser


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value  # a plain word is a text


def _list(options: argparse.Namespace) -> None:
    for name in experiments.names():
        experiment = experiments.find(name)
        print(f"{name}\n  {experiment.summary}")
        for profile, sizes in experiment.sizes.items():
            print(f"  {profile}: {', '.join(f'{key}={value}' for key, value in sizes.items())}")


def _run(options: argparse.Namespace) -> None:
    settings = dict(options.settings)
    if len(settings) < len(options.settings):
        raise ValueError("--set names an argument twice")
    try:
        record = experiments.run_to_file(options.name, options.profile, options.out, settings, report=_report)
    except KeyboardInterrupt:
        partial = experiments.partial_path(options.out)
        kept = f"what is finished is kept in {partial}; the same command goes on from there"
        print(f"\ninterrupted; {kept if partial.exists() else 'nothing was finished'}", file=sys.stderr)
        raise
    print(f"{options.out}: {record.experiment}, {record.profile}, {record.seconds:.1f} s on {record.device}")


def _report(name: str, seconds: float, known: bool) -> None:
    print(f"  {name}: {'kept from before' if known else f'{seconds:.1f} s'}", flush=True)


def _show(options: argparse.Namespace) -> None:
    record = experiments.read_record(options.file)
    for key in ("experiment", "profile", "date", "seconds", "device", "torch", "commit"):
        print(f"{key}: {getattr(record, key)}")
    for key in ("arguments", "seeds", "data"):
        print(f"{key}: {json.dumps(getattr(record, key), ensure_ascii=False)}")
    print("results:")
    for key, value in record.results.items():
        print(f"  {key}: {_short(value)}")


def _short(value: Any, items: int = 6) -> str:
    """A value in one line: numbers to six digits, long lists cut and counted."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        shown = ", ".join(_short(entry, 3) for entry in value[:items])
        return f"[{shown}, …] ({len(value)} entries)" if len(value) > items else f"[{shown}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(entry, 3)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def _complain(error: Exception, code: int) -> int:
    print(f"ncbook: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
