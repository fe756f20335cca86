"""The generated pages: the claims ledger, the theorems by status, the exercises by difficulty."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from book import ROOT, STATEMENTS, Book, Page, Statement

SEEDS = ROOT / "book" / "runs" / "seeds"
STATUS_TITLES = {
    "proved here": "Proved in this book",
    "cited": "Cited: proved in the source, checked here",
    "measured": "Measured: seen in experiments, not proved",
    "open": "Open",
}


def write(book: Book, records: list[dict], folder: Path) -> None:
    """Write the text that the appendix pages include."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "claims": claims_text(book, records, seed_margins(book)),
        "theorems": theorems_text(book, records),
        "exercises": exercises_text(book),
    }
    for name, text in texts.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def seed_margins(book: Book) -> dict[str, dict]:
    """Claim id -> its record over the seeds 0..19, where `make seeds` has been run for the page."""
    margins: dict[str, dict] = {}
    for page in book.executed:
        path = SEEDS / f"{page.stem}.json"
        if path.exists():
            margins.update(json.loads(path.read_text(encoding="utf-8"))["claims"])
    return margins


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return str(text).replace("\n", " ").replace("|", "\\|")


def claims_text(book: Book, records: list[dict], margins: dict[str, dict]) -> str:
    held = sum(record["ok"] for record in records)
    text = [f"This build checked **{len(records)} claims**; {held} hold.\n"]
    for page in book.executed:
        mine = [record for record in records if record["chapter"] == page.stem]
        if not mine:
            continue
        text.append(f"## {_chapter(page)}\n")
        text.append(f"{{doc}}`/{page.name}`, {len(mine)} claims.\n")
        text += [_claim(record, margins.get(record["id"])) for record in mine]
    return "\n".join(text)


def _claim(record: dict, over_seeds: dict | None) -> str:
    mistake = record["mistake"]
    relation = f"measured {RELATIONS[record['relation']]} predicted, {_tolerance(record['tolerance'])}"
    lines = [
        f"`{record['id']}` {'holds' if record['ok'] else '**fails**'}",
        f": {record['statement']}",
        f"  *Predicted* {number(record['predicted'])}, *measured* {number(record['measured'])} "
        f"({relation}). Margin left: {_share(record['margin'])}.",
        f"  *Why this tolerance:* {record['reason']}",
        f"  *A mistake it rejects:* {mistake['words']} (would predict {number(mistake['predicted'])}).",
        f"  *Source:* {record['source']}.",
    ]
    if over_seeds:
        runs = over_seeds["runs"]
        held = f"held in {over_seeds['held']} of {runs}, least margin {_share(over_seeds['least_margin'])}"
        lines.append(f"  *Over the seeds 0 to {runs - 1}:* {held}.")
    return "\n  \n".join([lines[0] + "\n" + lines[1], *lines[2:]]) + "\n"


RELATIONS = {"==": "equals", "<=": "is at most", "<": "is below", ">=": "is at least", ">": "is above"}


def number(value: object) -> str:
    """A number, or the first few of a nested list, with four digits."""
    if isinstance(value, list):
        flat = _flat(value)
        shown = ", ".join(number(v) for v in flat[:4])
        return f"[{shown}{', …' if len(flat) > 4 else ''}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _flat(value: object) -> list:
    return [x for item in value for x in _flat(item)] if isinstance(value, list) else [value]


def _tolerance(tolerance: dict) -> str:
    parts = [f"{key} {tolerance[key]:.3g}" for key in ("atol", "rtol") if tolerance[key]]
    return f"within {' + '.join(parts)}" if parts else "without slack"


def _share(margin: object) -> str:
    return f"{margin:.0%}" if isinstance(margin, (int, float)) else str(margin)


def theorems_text(book: Book, records: list[dict]) -> str:
    statements = [s for page in book.executed for s in page.statements if s.kind in STATEMENTS]
    text = []
    for status, title in STATUS_TITLES.items():
        mine = [s for s in statements if s.status == status]
        if mine:
            rows = [
                (f"{{prf:ref}}`{s.label}`", s.title, f"{{doc}}`/{s.page}`", _claims_of(s, records))
                for s in mine
            ]
            text.append(f"## {title}\n\n" + table(["statement", "what, and whose", "page", "claims"], rows))
    return "\n".join(text)


def _claims_of(statement: Statement, records: list[dict]) -> str:
    mine = [r for r in records if belongs(r["id"], statement.label)]
    if not mine:
        return "no claim: the statement says why"
    return ", ".join(f"`{r['id']}` {'✓' if r['ok'] else '✗'}" for r in mine)


def belongs(claim: str, label: str) -> bool:
    """Claim ids are the label of their statement, or the label, a dot and a detail."""
    return claim == label or claim.startswith(label + ".")


def exercises_text(book: Book) -> str:
    exercises = [e for page in book.executed for e in page.exercises]
    text = [f"{len(exercises)} exercises, each with a hint and a solution that runs.\n"]
    for difficulty in ("Easy", "Medium", "Hard"):
        mine = [e for e in exercises if e.difficulty == difficulty]
        rows = [
            (f"{{ref}}`{e.number} <{e.label}>`", e.title, f"{{doc}}`/{e.page}`", f"{e.minutes} min")
            for e in mine
        ]
        if rows:
            text.append(f"## {difficulty}\n\n" + table(["exercise", "about", "chapter", "time"], rows))
    return "\n".join(text)


def _chapter(page: Page) -> str:
    return f"{page.number}. {page.title}" if page.number else page.title
