"""Imports run downwards only: to the floors below and, on the same floor, to the modules before."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "ncbook"

FLOORS = (
    ("runtime", "frames", "losses", "protocol"),
    ("statistics", "metrics"),
    ("ufm", "dufm", "memorization_dilation", "ridge_asymptotics", "rainbow"),
    ("solvers", "landscape"),
    ("datasets", "networks", "trainers"),
    ("experiments",),
)
LEAVES = ("claims", "figures", "interactive")  # imported by chapters only
ORDER = [module for floor in FLOORS for module in floor]


def room(path: Path) -> str:
    """The module of the house that a file belongs to: `solvers` for solvers/lbfgs.py."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imported(source: str, inside: str) -> set[str]:
    """The rooms that a file imports; `inside` is its package, for relative imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = inside.split(".")[: len(inside.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return {name.split(".")[1] for name in names if name.startswith("ncbook.")} - {"__version__"}


def faults(name: str, source: str, inside: str = "ncbook") -> list[str]:
    """Imports of room `name` that run upwards or sideways."""
    others = imported(source, inside) - {name}
    if name in LEAVES:
        return [f"{name} imports {other}" for other in others if other in ("experiments", *LEAVES)]
    if name not in ORDER:
        return [f"{name} has no floor: give it one in this test and in the design"]
    below = ORDER[: ORDER.index(name)]
    return [f"{name} imports {other}, which does not stand below it" for other in sorted(others - set(below))]


FILES = [p for p in sorted(LIBRARY.rglob("*.py")) if p.name != "__main__.py" and p.parent.name != "data"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_imports_run_downwards(path):
    name = room(path)
    if name == "__init__":
        assert imported(path.read_text(encoding="utf-8"), "ncbook") == set()
        return
    inside = ".".join(["ncbook", *path.relative_to(LIBRARY).parts[:-1]])
    assert faults(name, path.read_text(encoding="utf-8"), inside) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("metrics", "from ncbook import trainers"),
        ("runtime", "import ncbook.frames"),
        ("losses", "from .ufm import SquaredLossUFM"),
        ("ufm", "from ncbook.claims import check"),
        ("claims", "from ncbook import figures"),
        ("newroom", ""),
    ],
)
def test_an_upward_import_is_named(name, source):
    assert faults(name, source) != []


def test_a_downward_import_is_fine():
    assert faults("trainers", "from ncbook import metrics, runtime\nfrom .losses import squared") == []


def test_every_package_is_installed():
    """`pip install` takes the packages that pyproject.toml lists, and no other."""
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    )
    there = {"ncbook", "ncbook.data", "ncbook.runs"}
    there |= {f"ncbook.{path.parent.name}" for path in LIBRARY.glob("*/__init__.py")}
    assert listed == there


def _tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listing.stdout.split("\n") if name]


def test_the_address_of_the_repository_stands_in_one_place():
    """Everything else is derived from `_config.yml`; the notebooks are generated, and say so."""
    address = re.search(r"url: (\S+)", (ROOT / "_config.yml").read_text(encoding="utf-8"))[1]
    name = address.removeprefix("https://")
    holders = [
        path.relative_to(ROOT).as_posix()
        for path in _tracked()
        if path.suffix in {".md", ".py", ".yml", ".toml", ".txt", ".cff", ""}
        and path.is_file()
        and name in path.read_text(encoding="utf-8", errors="ignore")
    ]
    assert holders == ["_config.yml"]
