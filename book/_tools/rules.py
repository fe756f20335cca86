"""The rules that every page keeps, each a function that returns what breaks it. `tests/book` runs them all.

A rule takes a page (or the pages) and returns sentences, each naming file and line; no sentence, no fault.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from book import STATEMENTS, Page
from indices import belongs

CHECK_ARGUMENTS = {"statement", "source", "mistake", "why"}
LABEL = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _calls(page: Page, name: str) -> Iterator[tuple[int, ast.Call]]:
    """(line in the source, call) of every `claims.<name>(...)` or `<name>(...)` in the page's code."""
    for start, code in page.code_cells:
        try:
            tree = ast.parse(_without_magics(code))
        except SyntaxError as error:
            raise SyntaxError(f"{page.path.name}:{start}: {error}") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (f"claims.{name}", name):
                yield start + node.lineno, node


def _without_magics(code: str) -> str:
    return re.sub(r"^([%!].*)$", "pass", code, flags=re.M)


def claim_ids(page: Page) -> list[tuple[int, str]]:
    """(line, id) of the claims that the page checks; ids that are not plain strings are left out."""
    return [
        (line, call.args[0].value)
        for line, call in _calls(page, "check")
        if call.args and isinstance(call.args[0], ast.Constant)
    ]


def claims_are_complete(page: Page) -> list[str]:
    """Each claim has a literal id of its own page and names statement, source, mistake and why."""
    faults = []
    for line, call in _calls(page, "check"):
        place = f"{page.path.name}:{line}"
        if not call.args or not isinstance(call.args[0], ast.Constant):
            faults.append(f"{place}: the id of a claim must be a literal string")
        missing = CHECK_ARGUMENTS - {keyword.arg for keyword in call.keywords}
        if missing:
            faults.append(f"{place}: a claim without {', '.join(sorted(missing))}")
    return faults


def chapters_have_claims(pages: Iterable[Page]) -> list[str]:
    """A numbered chapter checks something and ends with the table of what it checked."""
    faults = []
    for page in pages:
        if not claim_ids(page):
            faults.append(f"{page.path.name}: a chapter without claims")
        elif not any(True for _ in _calls(page, "table")):
            faults.append(f"{page.path.name}: the chapter does not show its claims: call claims.table()")
    return faults


def claim_ids_are_unique(pages: Iterable[Page]) -> list[str]:
    """No claim id stands twice in the book."""
    owners: dict[str, str] = {}
    faults = []
    for page in pages:
        for line, name in claim_ids(page):
            place = f"{page.path.name}:{line}"
            if name in owners:
                faults.append(f"{place}: claim {name!r} was made at {owners[name]} already")
            owners.setdefault(name, place)
    return faults


def statements_are_justified(page: Page) -> list[str]:
    """Each theorem has a label, a title, a proof or a source, and a claim or a reason for having none."""
    ids = [name for _, name in claim_ids(page)]
    faults = []
    for statement in page.statements:
        place = f"{page.path.name}:{statement.line}: {statement.kind} {statement.label or '(no label)'}"
        if not LABEL.fullmatch(statement.label):
            faults.append(f"{place} needs a label of lower-case words joined by hyphens")
        if statement.kind not in STATEMENTS:
            continue
        if not statement.title:
            faults.append(f"{place} has no title that says what it is and whose")
        if not statement.status:
            faults.append(f"{place} is neither proved, nor cited, nor marked measured or open")
        claimed = any(belongs(name, statement.label) for name in ids)
        if not claimed and "Not checked by a claim:" not in statement.body:
            faults.append(f"{place} has no claim and does not say why")
    return faults


def exercises_are_complete(page: Page) -> list[str]:
    """Each exercise has difficulty, time, hint and solution; a chapter has five or more."""
    faults = []
    for exercise in page.exercises:
        place = f"{page.path.name}:{exercise.line}: exercise {exercise.label or exercise.title}"
        if not exercise.difficulty:
            faults.append(f"{place} does not say its difficulty and time, as in *Easy · 10 minutes.*")
        if not exercise.hint:
            faults.append(f"{place} has no hint")
        if not exercise.solved:
            faults.append(f"{place} has no solution")
    if page.number is not None and len(page.exercises) < 5:
        faults.append(f"{page.path.name}: {len(page.exercises)} exercises, a chapter has five or more")
    return faults


def figures_have_alternative_text(page: Page) -> list[str]:
    """A cell that shows a figure says in words what is seen."""
    faults = []
    for block in page.tree.walk():
        if block.name == "code-cell":
            text = block.text()
            if "plt.show()" in text and not re.search(r"^\s*alt:\s*\S", text, re.M):
                faults.append(f"{page.path.name}:{block.line}: a figure without mystnb: image: alt")
    return faults


def labels_are_unique(pages: Iterable[Page]) -> list[str]:
    """Labels of statements, exercises and equations stand once in the book."""
    owners: dict[str, str] = {}
    faults = []
    for page in pages:
        labels = [s.label for s in page.statements] + [e.label for e in page.exercises] + list(page.equations)
        for label in filter(None, labels):
            if label in owners:
                faults.append(f"{page.path.name}: label {label!r} stands in {owners[label]} already")
            owners.setdefault(label, page.path.name)
    return faults
