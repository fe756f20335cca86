"""A generated notebook runs as in Colab: Colab's packages only, an empty folder, the library from a wheel."""

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement

from book import ROOT, load

COLAB = (
    "numpy",
    "scipy",
    "torch",
    "matplotlib",
    "ipywidgets",
    "scikit-learn",
    "tqdm",
    "pooch",
    "pillow",
    "ipykernel",
)
RECORDED = "book/squared_loss/10_relu"  # reads a recorded run, which comes with the library
PAGES = ("book/welcome", "book/collapse/03_frames", RECORDED)


def closure(names: tuple[str, ...]) -> set[str]:
    """The packages and all that they need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A virtual environment that sees Colab's packages (as links) and nothing else; its Python."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder, with_pip=True)
    target = next((folder / "lib").glob("python3*")) / "site-packages"
    for name in closure(COLAB):
        package = distribution(name)
        for top in {Path(str(file)).parts[0] for file in package.files or []}:
            source = Path(str(package.locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists() and not (target / top).exists():
                (target / top).symlink_to(source)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the library, built from a copy so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ncbook", "book/runs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("name", PAGES)
def test_notebook_runs_as_in_colab(name, colab, wheel, tmp_path, monkeypatch):
    page = load().page(name)
    copy = tmp_path / page.notebook.name
    shutil.copy(page.notebook, copy)
    notebook = nbformat.read(copy, as_version=4)
    probe = "import json, ncbook; print(json.dumps([ncbook.__file__, ncbook.__version__]))"
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    kernel = colab.parents[1] / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    command = [
        str(colab),
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
        "--IPKernelApp.log_level=40",
    ]
    kernel.write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(colab.parents[1]))
    place = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, kernel_name="colab", timeout=300, resources=place)
    hidden = {key: value for key, value in os.environ.items() if not key.startswith(("NCBOOK_", "PYTHON"))}
    client.execute(env=hidden | {"NCBOOK_SOURCE": str(wheel), "OMP_NUM_THREADS": "1"})
    file, version = json.loads(notebook.cells[-1].outputs[0].text)
    assert Path(file).is_relative_to(colab.parents[1])
    assert version == "0.1.0"
