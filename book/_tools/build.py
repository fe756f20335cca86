"""Build the book: run every page, write ledger and indices, build the site with warnings as errors."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

import execute
import indices
import notebooks
from book import ROOT, Book, BookError, load

BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"


def fingerprint() -> str:
    """A hash of what a page's outputs depend on beside its own code: library, recorded runs, versions."""
    digest = hashlib.sha256(platform.python_version().encode())
    for variable in ("NCBOOK_PROFILE", "NCBOOK_DATA", "NCBOOK_RUNS"):
        digest.update(f"{variable}={os.environ.get(variable, '')}".encode())
    library = [f for f in (ROOT / "ncbook").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    recorded = (ROOT / "book" / "runs").glob("*.json")  # not the margins over seeds, which no page reads
    for file in sorted([*library, *recorded, ROOT / "requirements.txt"]):
        digest.update(file.relative_to(ROOT).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def forget_stale_outputs() -> None:
    """The execution cache sees a page's code only; a changed library must empty it."""
    stamp = CACHE / "fingerprint"
    now = fingerprint()
    if CACHE.exists() and (not stamp.exists() or stamp.read_text() != now):
        shutil.rmtree(CACHE)
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    stamp.write_text(now)


def execute_pages(book: Book) -> dict[str, nbformat.NotebookNode]:
    """Every executed page with its outputs, cached or fresh; fails with all errors at once."""
    cache = get_cache(str(CACHE))
    done, jobs = {}, []
    for page in book.executed:
        try:
            _, done[page.name] = cache.merge_match_into_notebook(execute.read(page))
        except KeyError:
            jobs.append(partial(execute.run, page))
    failures = []
    for run in execute.run_all(jobs):
        print(f"  {'FAILED' if run.error else 'ran'}  {run.page.name}  {run.seconds:.1f} s", flush=True)
        if run.error:
            failures.append(f"{execute.relative(run.page)}:\n{run.error}")
            continue
        bundle = CacheBundleIn(run.notebook, str(run.page.path), data={"execution_seconds": run.seconds})
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        done[run.page.name] = run.notebook
    if failures:
        raise BookError("\n\n".join(failures))
    return {page.name: done[page.name] for page in book.executed}


def ledger(book: Book, outputs: dict[str, nbformat.NotebookNode]) -> list[dict]:
    """All claims of this build, in the order of the book; a claim id belongs to one page."""
    records: list[dict] = []
    owners: dict[str, str] = {}
    for page in book.executed:
        for record in execute.claims(outputs[page.name]):
            if record["id"] in owners:
                raise BookError(f"claim {record['id']!r} stands in {owners[record['id']]} and in {page.name}")
            owners[record["id"]] = page.name
            records.append({**record, "chapter": page.stem})
    return records


def write_json(path: Path, data: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    temporary.replace(path)


def build_site() -> int:
    """jupyter-book with warnings as errors."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(ROOT), "--warningiserror", "--keep-going", "--quiet"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main() -> int:
    book = load()
    try:
        old = notebooks.stale(book)
        if old:
            raise BookError(
                "stale notebooks: " + ", ".join(p.notebook.name for p in old) + "; run `make notebooks`"
            )
        forget_stale_outputs()
        print(f"Running {len(book.executed)} pages (those that changed) ...", flush=True)
        outputs = execute_pages(book)
        records = ledger(book, outputs)
        write_json(BUILD / "claims.json", records)
        indices.write(book, records, BUILD / "generated")
    except BookError as error:
        print(f"\nThe book was not built.\n{error}", file=sys.stderr)
        return 1
    print(f"{len(records)} claims hold. Building the site ...", flush=True)
    code = build_site()
    if code:
        print("\nThe site was not built: see the warnings above (each counts as an error).", file=sys.stderr)
        return code
    print(f"\nThe book is built. Open {BUILD / 'html' / 'index.html'} or run `make serve`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
