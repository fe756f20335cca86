"""Run pages of the book in kernels of their own, several at once, and read their claims."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from book import ROOT, Page

CLAIM = "application/vnd.ncbook.claim+json"
TIMEOUT = 300


@dataclass(frozen=True)
class Run:
    """A page that was run: its notebook with outputs, seconds, and what went wrong (None if nothing did)."""

    page: Page
    notebook: nbformat.NotebookNode
    seconds: float
    error: str | None


def read(page: Page) -> nbformat.NotebookNode:
    """The page as the site's parser reads it, so that the outputs fit its cache."""
    from myst_nb.core.read import read_myst_markdown_notebook

    return read_myst_markdown_notebook(page.source, add_source_map=False, path=str(page.path))


def run(page: Page, seed: int = 0, allow_errors: bool = False) -> Run:
    """Execute one page in a fresh kernel, in its own folder, as the site's build does."""
    notebook = read(page)
    environment = os.environ | {
        "NCBOOK_STATIC": "1",
        "NCBOOK_CHAPTER": page.stem,
        "NCBOOK_SEED": str(seed),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        allow_errors=allow_errors,
        record_timing=False,  # times would become part of the cache's key
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(page.path.parent)}},
    )
    start = time.perf_counter()
    error = None
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        error = str(failure)
    return Run(page, notebook, time.perf_counter() - start, error or _stderr(notebook))


def _stderr(notebook: nbformat.NotebookNode) -> str | None:
    """A page must not write to stderr: a warning is an error."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                return f"the cell\n{cell.source}\nwrote to stderr:\n{output.text}"
    return None


def run_all(jobs: Iterable[Callable[[], Run]], workers: int | None = None) -> Iterable[Run]:
    """Run the jobs, as many at once as there are cores, and yield each as it ends."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for future in as_completed([pool.submit(job) for job in jobs]):
            yield future.result()


def claims(notebook: nbformat.NotebookNode) -> list[dict]:
    """The claims that a run emitted, in order; of a claim that was checked twice, the last record."""
    found: dict[str, dict] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if CLAIM in output.get("data", {}):
                record = output["data"][CLAIM]
                found[record["id"]] = record
    return list(found.values())


def relative(page: Page) -> str:
    return page.path.relative_to(ROOT).as_posix()
