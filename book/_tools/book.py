"""The book as data: its pages in reading order, their statements, exercises and equations with their numbers.

One parser reads the MyST sources. The notebook generator, the generated pages and the tests all stand on it,
so that a theorem has the same number on the site, in its notebook and in the index of theorems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

STATEMENTS = ("theorem", "lemma", "proposition", "corollary")  # what needs a proof or a source, and a claim
NUMBERED = (
    *STATEMENTS,
    "definition",
    "remark",
    "example",
    "conjecture",
    "algorithm",
    "assumption",
    "observation",
)

_OPEN = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ \t]*(?P<argument>.*?)[ \t]*$")
_PLAIN_FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})(?P<info>[^`{]*)$")
_OPTION = re.compile(r"^:(?P<key>[\w-]+):[ \t]*(?P<value>.*)$")
_EQUATION_END = re.compile(r"^\$\$[ \t]*\((?P<label>[\w:-]+)\)[ \t]*$")


class BookError(ValueError):
    """A source of the book breaks one of the book's own rules; the message names file and line."""


@dataclass
class Block:
    """A directive, a literal fence (`name` None) or the root: its lines and inner blocks in order."""

    name: str | None = None
    argument: str = ""
    options: dict[str, str] = field(default_factory=dict)
    content: list[str | Block] = field(default_factory=list)
    fence: str = ""
    line: int = 0

    def text(self) -> str:
        """The words of the block and of all blocks in it."""
        return "\n".join(part if isinstance(part, str) else part.text() for part in self.content)

    def walk(self) -> Iterator[Block]:
        """This block and every block inside it, in reading order."""
        yield self
        for part in self.content:
            if isinstance(part, Block):
                yield from part.walk()


def parse(text: str, where: str = "text") -> Block:
    """Read MyST text into a tree of directives; literal fences keep their lines untouched."""
    root = Block()
    stack = [root]
    in_options = False
    for number, line in enumerate(text.split("\n"), 1):
        top = stack[-1]
        literal = top.name is None and top.fence
        if top.fence and re.fullmatch(f"{re.escape(top.fence[0])}{{{len(top.fence)},}}", line.strip()):
            stack.pop()
        elif literal:
            top.content.append(line)
        elif match := _OPEN.match(line):
            block = Block(match["name"], match["argument"], fence=match["fence"], line=number)
            top.content.append(block)
            stack.append(block)
            in_options = True
        elif match := _PLAIN_FENCE.match(line):
            block = Block(None, match["info"], fence=match["fence"], line=number)
            top.content.append(block)
            stack.append(block)
        elif in_options and top.name and (match := _OPTION.match(line)):
            top.options[match["key"]] = match["value"]
        else:
            in_options = in_options and not line.strip() and not top.content
            top.content.append(line)
    if len(stack) > 1:
        raise BookError(f"{where}:{stack[-1].line}: the block {{{stack[-1].name}}} is never closed")
    return root


@dataclass(frozen=True)
class Statement:
    """A theorem-like environment with its number, and how it is justified."""

    kind: str
    label: str
    title: str
    number: str
    status: str
    body: str
    page: str
    line: int


@dataclass(frozen=True)
class Exercise:
    """An exercise with its number, difficulty and expected time."""

    label: str
    title: str
    number: str
    difficulty: str
    minutes: int
    hint: bool
    solved: bool
    page: str
    line: int


@dataclass(frozen=True)
class Page:
    """One page of the book. `number` is the chapter number that the site prints, if it has one."""

    name: str
    number: int | None
    part: str | None
    before: tuple[Page, ...] = ()  # pages without a number that come earlier: their numbering runs on

    @property
    def path(self) -> Path:
        return ROOT / f"{self.name}.md"

    @property
    def notebook(self) -> Path:
        return self.path.with_suffix(".ipynb")

    @property
    def stem(self) -> str:
        """`03_frames` for `book/collapse/03_frames`."""
        return self.path.stem

    @cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def body(self) -> str:
        """The source without its front matter, with as many lines, so that line numbers stay true."""
        match = re.match(r"---\n.*?\n---\n", self.source, re.S)
        return "\n" * match[0].count("\n") + self.source[match.end() :] if match else self.source

    @cached_property
    def tree(self) -> Block:
        return parse(self.body, str(self.path.relative_to(ROOT)))

    @cached_property
    def executed(self) -> bool:
        """Whether the page has code to run."""
        return any(block.name == "code-cell" for block in self.tree.walk())

    @cached_property
    def title(self) -> str:
        match = re.search(r"^# (.+)$", self.body, re.M)
        if not match:
            raise BookError(f"{self.name}.md has no title (a line that starts with '# ')")
        return match[1].strip()

    @cached_property
    def code_cells(self) -> list[tuple[int, str]]:
        """(line, code) of every code cell, without its options."""
        cells = []
        for block in self.tree.walk():
            if block.name == "code-cell":
                text = "\n".join(part for part in block.content if isinstance(part, str))
                cells.append((block.line, re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)))
        return cells

    def numbered(self, index: int, kind: str) -> str:
        """The number that the site gives to the index-th of a kind (an attribute of pages) on this page."""
        if self.number is not None:
            return f"{self.number}.{index}"
        return str(index + sum(len(getattr(page, kind)) for page in self.before))

    @cached_property
    def statements(self) -> list[Statement]:
        """All numbered environments, in the order in which the site numbers them."""
        found = []
        blocks = [block for block in self.tree.walk() if block.name]
        index = 0
        for position, block in enumerate(blocks):
            kind = (block.name or "").removeprefix("prf:")
            if (
                not (block.name or "").startswith("prf:")
                or kind not in NUMBERED
                or "nonumber" in block.options
            ):
                continue
            index += 1
            following = next((b for b in blocks[position + 1 :] if (b.name or "").startswith("prf:")), None)
            proved = following is not None and following.name == "prf:proof"
            found.append(
                Statement(
                    kind=kind,
                    label=block.options.get("label", ""),
                    title=block.argument,
                    number=self.numbered(index, "statements"),
                    status=_status(block, proved),
                    body=block.text(),
                    page=self.name,
                    line=block.line,
                )
            )
        return found

    @cached_property
    def exercises(self) -> list[Exercise]:
        solved = {b.argument for b in self.tree.walk() if b.name in ("solution-start", "solution")}
        found = []
        lines = self.body.split("\n")
        for block in self.tree.walk():
            if block.name not in ("exercise", "exercise-start"):
                continue
            text = _exercise_text(block, lines)
            match = re.search(r"\*(Easy|Medium|Hard) · (\d+) minutes\.\*", text)
            label = block.options.get("label", "")
            found.append(
                Exercise(
                    label=label,
                    title=block.argument,
                    number=self.numbered(len(found) + 1, "exercises"),
                    difficulty=match[1] if match else "",
                    minutes=int(match[2]) if match else 0,
                    hint="*Hint" in text,
                    solved=label in solved,
                    page=self.name,
                    line=block.line,
                )
            )
        return found

    @cached_property
    def equations(self) -> dict[str, str]:
        """Label of each labelled equation -> its number."""
        labels = []
        for block in self.tree.walk():
            if block.name == "code-cell" or (block.name is None and block.fence):
                continue
            if block.name == "math" and "label" in block.options:
                labels.append((block.line, block.options["label"]))
        code = {
            n for b in self.tree.walk() if b.fence and b.name in (None, "code-cell") for n in _lines_of(b)
        }
        for number, line in enumerate(self.body.split("\n"), 1):
            match = _EQUATION_END.match(line.strip())
            if match and number not in code:
                labels.append((number, match["label"]))
        return {label: self.numbered(i, "equations") for i, (_, label) in enumerate(sorted(labels), 1)}


def _lines_of(block: Block) -> range:
    return range(block.line, block.line + len(block.text().split("\n")) + len(block.options) + 1)


def _status(block: Block, proved: bool) -> str:
    """How a statement is justified; the empty string where it is not."""
    classes = block.options.get("class", "").split()
    for status in ("measured", "open"):
        if status in classes:
            return status
    if proved:
        return "proved here"
    if "{cite" in block.text() or "{cite" in block.argument:
        return "cited"
    return "stated" if (block.name or "").removeprefix("prf:") not in STATEMENTS else ""


def _exercise_text(block: Block, lines: list[str]) -> str:
    if block.name == "exercise":
        return block.text()
    text = []
    for line in lines[block.line :]:
        if "{exercise-end}" in line:
            break
        text.append(line)
    return "\n".join(text)


@dataclass(frozen=True)
class Book:
    """Pages in reading order, and what is global to the book."""

    pages: tuple[Page, ...]
    repository: str
    branch: str

    @property
    def chapters(self) -> list[Page]:
        """The numbered pages."""
        return [page for page in self.pages if page.number is not None]

    @property
    def executed(self) -> list[Page]:
        return [page for page in self.pages if page.executed]

    @property
    def site(self) -> str:
        """Where the published site lives, derived from the address of the repository."""
        owner, name = self.repository.removeprefix("https://github.com/").split("/")
        return f"https://{owner}.github.io/{name}"

    def page(self, key: str) -> Page:
        """The page with this name, file stem or chapter number (`03`, `3`, `03_frames`)."""
        for page in self.pages:
            if key in (page.name, page.stem, page.stem.split("_")[0], str(page.number)):
                return page
        known = ", ".join(page.stem for page in self.executed)
        raise BookError(f"there is no page {key!r}; the executed pages are {known}")


@cache
def load() -> Book:
    """Read `_config.yml` and `_toc.yml`."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [Page(toc["root"], None, None)]
    number = 0
    for part in toc["parts"]:
        for entry in part["chapters"]:
            number += bool(part.get("numbered"))
            before = tuple(page for page in pages if page.number is None)
            pages.append(
                Page(entry["file"], number if part.get("numbered") else None, part["caption"], before)
            )
    return Book(tuple(pages), config["repository"]["url"], config["repository"]["branch"])
