"""Every page keeps the rules of the book, and every rule can fail."""

from dataclasses import dataclass

import pytest

import notebooks
import rules
from book import BookError, Page, load, parse

BOOK = load()
EXECUTED = [pytest.param(page, id=page.stem) for page in BOOK.executed]

GOOD = """# A chapter

```{prf:theorem} Two and two (this book)
:label: sample-sum

The sum is four.
```

```{prf:proof}
Count.
```

```{code-cell} python
from ncbook import claims

claims.check("sample-sum", 4, 2 + 2, statement="s", source="this book", mistake=("m", 5), why="exact")
claims.table()
```
"""


@dataclass(frozen=True)
class Sample(Page):
    """A page that exists in this test only."""

    text: str = ""

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.text


def sample(text: str, name: str = "book/sample/99_sample") -> Sample:
    return Sample(name, 99, "A part", text=text)


def exercise(body: str) -> str:
    return "```{exercise-start} Title\n:label: ex-sample\n```\n" + body + "\n```{exercise-end}\n```\n"


SOLUTION = "```{solution-start} ex-sample\n```\nSo.\n```{solution-end}\n```\n"


@pytest.mark.parametrize("page", EXECUTED)
@pytest.mark.parametrize(
    "rule",
    [
        rules.claims_are_complete,
        rules.statements_are_justified,
        rules.exercises_are_complete,
        rules.figures_have_alternative_text,
    ],
)
def test_page_keeps_the_rule(rule, page):
    assert rule(page) == []


def test_book_keeps_the_rules():
    assert rules.chapters_have_claims(BOOK.chapters) == []
    assert rules.claim_ids_are_unique(BOOK.executed) == []
    assert rules.labels_are_unique(BOOK.executed) == []


def test_every_page_of_the_contents_exists():
    assert [page.name for page in BOOK.pages if not page.path.is_file()] == []


def test_notebooks_are_current_and_hold_no_outputs():
    assert [page.name for page in notebooks.stale(BOOK)] == [], "run `make notebooks`"
    for page in BOOK.executed:
        assert '"output_type"' not in page.notebook.read_text(encoding="utf-8")


def test_a_good_page_breaks_no_rule():
    page = sample(GOOD)
    assert rules.claims_are_complete(page) == []
    assert rules.statements_are_justified(page) == []
    assert rules.chapters_have_claims([page]) == []
    assert rules.claim_ids_are_unique([page]) == []
    assert page.statements[0].number == "99.1"
    assert page.statements[0].status == "proved here"


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (('mistake=("m", 5), ', ""), rules.claims_are_complete, "without mistake"),
        (('"sample-sum", 4', "name, 4"), rules.claims_are_complete, "literal string"),
        ((":label: sample-sum\n", ""), rules.statements_are_justified, "needs a label"),
        (("{prf:proof}", "{note}"), rules.statements_are_justified, "neither proved"),
        (('"sample-sum"', '"sample-other"'), rules.statements_are_justified, "has no claim"),
        ((" Two and two (this book)", ""), rules.statements_are_justified, "no title"),
        (("claims.table()", "plt.show()"), rules.figures_have_alternative_text, "figure without"),
    ],
)
def test_a_broken_page_is_named(change, rule, words):
    text = GOOD.replace(*change)
    assert text != GOOD
    assert any(words in fault for fault in rule(sample(text)))


def test_a_chapter_without_claims_is_named():
    silent = sample(GOOD.replace("claims.check(", "print("))
    assert "without claims" in rules.chapters_have_claims([silent])[0]
    no_table = sample(GOOD.replace("claims.table()", ""))
    assert "claims.table()" in rules.chapters_have_claims([no_table])[0]


def test_a_duplicate_claim_id_and_label_are_named():
    pages = [sample(GOOD), sample(GOOD, "book/sample/98_other")]
    assert "was made at" in rules.claim_ids_are_unique(pages)[0]
    assert "stands in" in rules.labels_are_unique(pages)[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (exercise("*Hint:* x") + SOLUTION, "difficulty"),
        (exercise("*Easy · 5 minutes.* x") + SOLUTION, "no hint"),
        (exercise("*Easy · 5 minutes.* x *Hint:* y"), "no solution"),
        (exercise("*Easy · 5 minutes.* x *Hint:* y") + SOLUTION, "five or more"),
    ],
)
def test_an_incomplete_exercise_is_named(text, words):
    assert any(words in fault for fault in rules.exercises_are_complete(sample(GOOD + text)))


def test_a_stale_notebook_is_named(tmp_path, monkeypatch):
    page = sample(GOOD)
    monkeypatch.setattr(Sample, "notebook", property(lambda self: tmp_path / "99_sample.ipynb"))
    monkeypatch.setattr(notebooks, "_badge", lambda page, book: "badge")
    book = type(BOOK)((page,), BOOK.repository, BOOK.branch)
    assert notebooks.stale(book) == [page]
    page.notebook.write_text(notebooks.build(page, book), encoding="utf-8")
    assert notebooks.stale(book) == []
    page.notebook.write_text(page.notebook.read_text().replace("2 + 2", "2 + 3"), encoding="utf-8")
    assert notebooks.stale(book) == [page]


def test_an_open_block_is_named():
    with pytest.raises(BookError, match=r"x\.md:2"):
        parse("text\n```{note}\nnever closed", "x.md")
