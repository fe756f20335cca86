"""Write the Colab notebook beside every executed page: `python book/_tools/notebooks.py [--check]`.

The MyST source stays the only source. The notebook has the same code, the same numbers of theorems, equations
and exercises, no outputs, a badge, and a first cell that installs the library where it is missing. The bytes
depend on the sources alone, so that a test can tell when a notebook is stale.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import sys
from functools import cache

import jupytext
import nbformat
from pybtex.database import parse_file

from book import NUMBERED, ROOT, Block, Book, BookError, Page, load, parse

ADMONITIONS = (
    "note",
    "tip",
    "warning",
    "important",
    "hint",
    "caution",
    "attention",
    "seealso",
    "margin",
    "sidebar",
)
TRANSPARENT = (
    "div",
    "container",
    "admonition",
    "dropdown",
    "grid",
    "grid-item",
    "grid-item-card",
    "card",
    "figure-md",
)

SETUP = """\
# Setup: installs the book's library where it is missing (in Colab, say); elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("ncbook") is None:
    import os
    import subprocess
    import sys

    source = os.environ.get("NCBOOK_SOURCE", "git+{repository}@{branch}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", source], check=True)
    importlib.invalidate_caches()
"""


def build(page: Page, book: Book) -> str:
    """The notebook of one page as text."""
    source = jupytext.reads(page.source, fmt="md:myst")
    setup = SETUP.format(repository=book.repository, branch=book.branch)
    cells = [nbformat.v4.new_markdown_cell(_badge(page, book)), nbformat.v4.new_code_cell(setup.rstrip())]
    writer = Writer(page, book)
    for cell in source.cells:
        if cell.cell_type == "markdown":
            text = writer.markdown(cell.source)
            if text:
                cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            cells.append(_code_cell(cell, hidden=writer.in_solution))
    for index, cell in enumerate(cells):
        cell["id"] = f"{index:03d}-" + hashlib.sha1(cell.source.encode()).hexdigest()[:8]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=_METADATA)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "colab": {"provenance": []},
}


def _badge(page: Page, book: Book) -> str:
    path = page.notebook.relative_to(ROOT).as_posix()
    colab = book.repository.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (
        f"[Open in Colab]({colab}/blob/{book.branch}/{path}) "
        f"· [Read on the site]({book.site}/{page.name}.html) · "
        f"generated from `{page.path.name}`: change that file, not this one."
    )


def _code_cell(cell: nbformat.NotebookNode, hidden: bool) -> nbformat.NotebookNode:
    metadata: dict[str, object] = {}
    tags = list(cell.metadata.get("tags", []))
    if tags:
        metadata["tags"] = tags
    if hidden:
        metadata["cellView"] = "form"
    if hidden or "hide-input" in tags or "hide-cell" in tags:
        metadata["jupyter"] = {"source_hidden": True}
    return nbformat.v4.new_code_cell(cell.source, metadata=metadata)


class Writer:
    """Turns MyST text into Markdown for a plain notebook; keeps its place from cell to cell."""

    def __init__(self, page: Page, book: Book) -> None:
        self.page = page
        self.book = book
        self.in_solution = False
        self._open_details = False
        self.statements = {s.label: s for p in book.pages if p.executed for s in p.statements}
        self.exercises = {e.label: e for p in book.pages if p.executed for e in p.exercises}
        self._unlabelled = iter([s for s in page.statements if not s.label])

    def markdown(self, text: str) -> str:
        """One markdown cell."""
        self._open_details = self.in_solution
        lines = ["<details><summary>The solution goes on</summary>", ""] if self.in_solution else []
        lines += self._blocks(parse(text, self.page.name))
        lines += ["", "</details>"] if self._open_details else []
        text = "\n".join(lines)
        text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.M)
        text = re.sub(r"^%.*\n", "", text, flags=re.M)
        text = re.sub(r"\n{3,}", "\n\n", text)
        text = re.sub(r"<details><summary>[^<]*</summary>\s*</details>\n*", "", text)
        return text.strip("\n")

    def _blocks(self, block: Block) -> list[str]:
        lines: list[str] = []
        plain: list[str] = []
        for part in [*block.content, None]:
            if isinstance(part, str):
                plain.append(part)
                continue
            lines += self._inline("\n".join(plain)).split("\n") if plain else []
            plain = []
            if part is not None:
                lines += self._directive(part)
        return lines

    def _directive(self, block: Block) -> list[str]:
        name = block.name or ""
        kind = name.removeprefix("prf:")
        if block.name is None:
            return [block.fence + block.argument, *_raw(block), block.fence]
        if name.startswith("prf:") and kind in NUMBERED:
            return ["", f"**{self._statement_heading(block, kind)}.**", "", *self._blocks(block), ""]
        if name == "prf:proof":
            return ["", "**Proof.**", "", *self._blocks(block), "", "∎", ""]
        if name in ("exercise", "exercise-start"):
            exercise = self.exercises[block.options["label"]]
            return [
                "",
                f"**Exercise {exercise.number}{_bracket(block.argument)}.**",
                "",
                *self._blocks(block),
                "",
            ]
        if name == "solution-start":
            self.in_solution = self._open_details = True
            return ["", *self._solution_heading(block)]
        if name == "solution-end":
            self.in_solution = self._open_details = False
            return ["", "</details>", ""]
        if name == "solution":
            return ["", *self._solution_heading(block), *self._blocks(block), "", "</details>", ""]
        if name == "exercise-end":
            return [""]
        if name == "math":
            number = self.page.equations.get(block.options.get("label", ""))
            return ["", "$$", *_raw(block), *([rf"\tag{{{number}}}"] if number else []), "$$", ""]
        if name == "list-table":
            return ["", *_table(self._inline(block.text())), ""]
        if name in ADMONITIONS:
            return [
                "",
                f"**{name.capitalize() if name not in ('margin', 'sidebar') else 'Aside'}.**",
                "",
                *self._blocks(block),
                "",
            ]
        if name in TRANSPARENT:
            title = [f"**{self._inline(block.argument)}**", ""] if block.argument and name != "div" else []
            return ["", *title, *self._blocks(block), ""]
        raise BookError(
            f"{self.page.name}.md: the notebook generator does not know the directive {{{name}}} "
            f"(line {block.line} of its cell); teach it in book/_tools/notebooks.py"
        )

    def _solution_heading(self, block: Block) -> list[str]:
        return [
            f"<details><summary>Solution of exercise {self.exercises[block.argument].number}</summary>",
            "",
        ]

    def _statement_heading(self, block: Block, kind: str) -> str:
        label = block.options.get("label")
        statement = self.statements[label] if label else next(self._unlabelled)
        return f"{kind.capitalize()} {statement.number}{self._inline(_bracket(block.argument))}"

    def _inline(self, text: str) -> str:
        text = re.sub(r"^(\$\$)[ \t]*\(([\w:-]+)\)[ \t]*$", self._tag, text, flags=re.M)
        return re.sub(r"\{([\w:-]+)\}`([^`]+)`", lambda m: self._role(m[1], m[2]), text)

    def _tag(self, match: re.Match[str]) -> str:
        return rf"\tag{{{self.page.equations[match[2]]}}}" + "\n$$"

    def _role(self, role: str, content: str) -> str:
        match = re.fullmatch(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", content, re.S)
        text, target = (match["text"], match["target"]) if match else ("", content.strip())
        if role == "doc":
            page = next((p for p in self.book.pages if target.lstrip("/") == p.name), None)
            if page is None:
                raise BookError(f"{self.page.name}.md: {{doc}}`{target}` names no page of _toc.yml")
            return f"[{text or page.title}]({self.book.site}/{page.name}.html)"
        if role == "eq":
            return self._equation(target)
        if role in ("prf:ref", "ref", "numref"):
            return self._reference(target, text)
        if role in ("cite:t", "cite:p", "cite", "cite:ts", "cite:ps"):
            return _citation(content, narrative=role.startswith("cite:t"))
        if role == "glue:text":
            return f"⟨{target}⟩"
        raise BookError(
            f"{self.page.name}.md: the notebook generator does not know the role {{{role}}}`{content}`"
        )

    def _equation(self, label: str) -> str:
        for page in [self.page, *self.book.pages]:
            if page.executed and label in page.equations:
                number = f"({page.equations[label]})"
                return number if page is self.page else f"[{number}]({self.book.site}/{page.name}.html)"
        raise BookError(f"{self.page.name}.md: {{eq}}`{label}` names no labelled equation")

    def _reference(self, label: str, text: str) -> str:
        if label in self.statements:
            found = self.statements[label]
            name = f"{found.kind.capitalize()} {found.number}"
        elif label in self.exercises:
            found = self.exercises[label]
            name = f"Exercise {found.number}"
        elif text:
            page = next((p for p in self.book.pages if f"({label})=" in p.source), self.page)
            return f"[{text}]({self.book.site}/{page.name}.html#{label})"
        else:
            raise BookError(
                f"{self.page.name}.md: {{ref}}`{label}` needs a text of its own: {{ref}}`words <{label}>`"
            )
        if found.page == self.page.name:
            return text or name
        return f"[{text or name}]({self.book.site}/{found.page}.html#{label})"


def _bracket(title: str) -> str:
    return f" ({title})" if title else ""


def _raw(block: Block) -> list[str]:
    return [part for part in block.content if isinstance(part, str)]


def _table(text: str) -> list[str]:
    """A MyST list-table as a Markdown table (its first row is the header)."""
    rows: list[list[str]] = []
    for line in text.split("\n"):
        if match := re.match(r"^\* - (.*)$", line):
            rows.append([match[1]])
        elif match := re.match(r"^  - (.*)$", line):
            rows[-1].append(match[1])
        elif line.strip() and rows:
            rows[-1][-1] += " " + line.strip()
    widths = "|" + " --- |" * len(rows[0])
    lines = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows]
    return [lines[0], widths, *lines[1:]]


@cache
def _bibliography() -> dict[str, tuple[str, str]]:
    """Key -> (authors, year) as a sentence prints them."""
    entries = parse_file(str(ROOT / "book" / "references.bib")).entries
    return {key: (_names(entry), entry.fields.get("year", "n.d.")) for key, entry in entries.items()}


def _names(entry) -> str:
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [re.sub(r"[{}]", "", _unescape(" ".join([*p.prelast_names, *p.last_names]))) for p in people]
    if len(names) > 3:
        return f"{names[0]} et al."
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _unescape(name: str) -> str:
    from latexcodec import codec  # noqa: F401 - registers the codec

    return codecs.decode(name, "ulatex") if "\\" in name else name


def _citation(keys: str, narrative: bool) -> str:
    parts = []
    for key in (k.strip() for k in keys.split(",")):
        if key not in _bibliography():
            raise BookError(f"book/references.bib has no entry {key!r}")
        names, year = _bibliography()[key]
        parts.append(f"{names} ({year})" if narrative else f"{names}, {year}")
    return "; ".join(parts) if narrative else f"({'; '.join(parts)})"


def stale(book: Book) -> list[Page]:
    """The pages whose notebook is missing or not the one that the source gives."""
    return [
        p for p in book.executed if not p.notebook.exists() or p.notebook.read_text("utf-8") != build(p, book)
    ]


def main(arguments: list[str]) -> int:
    book = load()
    try:
        old = stale(book)
        for page in old:
            if "--check" not in arguments:
                page.notebook.write_text(build(page, book), encoding="utf-8")
            print(f"{'stale' if '--check' in arguments else 'wrote'}: {page.notebook.relative_to(ROOT)}")
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    return bool(old) if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
