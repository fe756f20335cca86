"""The built site as a reader meets it: on a desk and on a phone, in light and dark, by screen reader."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from conftest import NODE, ROOT, SITE

from book import load

PAGES = [page.name for page in load().pages]
CHAPTERS = [page for page in load().pages if page.executed]
VIEWS = {
    "desktop-light": {"width": 1280, "scheme": "light"},
    "desktop-dark": {"width": 1280, "scheme": "dark"},
    "phone-light": {"width": 390, "height": 844, "scheme": "light"},
    "phone-dark": {"width": 390, "height": 844, "scheme": "dark"},
}
THOROUGH = ("desktop-light", "phone-dark")
AXE = (NODE / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
CUT_FORMULAS = """async () => {
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
  const cut = (formula) => {
    const column = formula.closest("p, li, dd, td, th, div");
    return formula.firstElementChild.getBoundingClientRect().width > column.clientWidth + 1
      && getComputedStyle(formula).overflowX !== "auto";
  };
  return [...document.querySelectorAll("article mjx-container")].filter(cut).map((one) => one.textContent);
}"""


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PAGES)
def test_page(visit, name, view):
    """One visit serves all looks at a page, for typesetting its formulas is what takes the time."""
    seen = visit(name, **VIEWS[view])
    assert_quiet_and_fits(seen, name)
    if view in THOROUGH:
        assert_every_image_has_alternative_text(seen)
        assert_no_serious_accessibility_fault_of_ours(seen)
        assert_sliders_move_without_a_kernel(seen)


def assert_quiet_and_fits(seen, name):
    """No console message, no request but MathJax, no sideways scrolling, every formula typeset."""
    assert seen.messages == []
    assert seen.foreign == []
    overflow = seen.page.evaluate(
        "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    )
    assert overflow <= 1, f"{name} is {overflow} px wider than the screen"
    raw = seen.page.evaluate("document.querySelectorAll('span.math, div.math').length")
    typeset = seen.page.evaluate("document.querySelectorAll('mjx-container').length")
    assert typeset >= raw
    assert seen.page.evaluate("document.querySelectorAll('mjx-merror, .merror').length") == 0
    assert seen.page.evaluate(CUT_FORMULAS) == []


def assert_no_serious_accessibility_fault_of_ours(seen):
    """axe-core on the article, which is ours; the frame around it belongs to the theme."""
    seen.page.evaluate(AXE)
    result = seen.page.evaluate("axe.run('article', {resultTypes: ['violations']})")
    faults = [
        f"{fault['id']} ({fault['impact']}): {node['html'][:160]} :: {node['failureSummary'][:200]}"
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
    assert faults == []


def assert_every_image_has_alternative_text(seen):
    images = seen.page.evaluate(
        "[...document.querySelectorAll('article img')]"
        ".map(image => [image.getAttribute('alt'), image.src.slice(0, 60)])"
    )
    for alt, source in images:
        assert alt, f"{source} has no alternative text"
        assert not re.search(r"\.(png|svg|jpe?g)$|^_images|^\S*$", alt), f"{alt!r} is a file name"
        assert len(alt) > 20, f"{alt!r} does not say what is seen"


def assert_sliders_move_without_a_kernel(seen):
    """Each slider has four frames or more (a depth, a number of classes), another picture for each, and its
    number in the alt text."""
    sliders = seen.page.locator("figure:has(input[type=range])")
    for index in range(sliders.count()):
        figure = sliders.nth(index)
        control = figure.locator("input[type=range]")
        last = int(control.get_attribute("max"))
        assert last >= 3
        box = control.bounding_box()
        assert box is not None
        assert box["height"] >= 24, "too small to touch"
        pictures = set()
        control.focus()
        control.press("Home")
        for step in range(last + 1):
            shown = figure.locator("output").inner_text().strip()
            alt = figure.locator("img").get_attribute("alt")
            number = re.search(r"-?\d[\d.,]*", shown)
            assert number, f"the slider shows {shown!r}, which has no number"
            assert number[0] in alt, f"{number[0]} is missing in {alt!r}"
            pictures.add(figure.locator("img").get_attribute("src"))
            assert int(control.input_value()) == step
            control.press("ArrowRight")
        assert len(pictures) == last + 1


def test_the_book_has_sliders(visit):
    assert any(visit(page.name).page.locator("figure input[type=range]").count() for page in CHAPTERS)


def _links():
    for file in sorted(SITE.rglob("*.html")):
        for link in re.findall(r'<a [^>]*href="([^"]+)"', file.read_text(encoding="utf-8")):
            yield file, link


def test_internal_links_lead_somewhere():
    ids: dict[Path, set[str]] = {}
    broken = []
    for file, link in _links():
        if re.match(r"[a-z]+:", link) or link == "#":
            continue
        path, fragment = urldefrag(urljoin(f"http://site/{file.relative_to(SITE).as_posix()}", link))
        target = SITE / unquote(path.removeprefix("http://site/"))
        if not target.is_file():
            broken.append(f"{file.name}: {link}")
        elif fragment and target.suffix == ".html":
            if target not in ids:
                ids[target] = set(re.findall(r'(?:id|name)="([^"]+)"', target.read_text(encoding="utf-8")))
            if unquote(fragment) not in ids[target]:
                broken.append(f"{file.name}: {link} (no such place)")
    assert broken == []


def test_colab_links_point_at_notebooks_that_exist():
    book = load()
    prefix = book.repository.replace("https://github.com", "https://colab.research.google.com/github")
    found = set()
    for file, link in _links():
        if link.startswith("https://colab.research.google.com/"):
            path = link.removeprefix(f"{prefix}/blob/{book.branch}/")
            executed = any(page.notebook == ROOT / path for page in book.executed)
            if file.relative_to(SITE).with_suffix("").as_posix() in {page.name for page in book.executed}:
                assert executed, f"{file.name} sends readers to {path}, which is no notebook of the book"
                assert (ROOT / path).is_file()
                found.add(path)
    assert len(found) == len(book.executed)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_site_and_notebook_number_alike(page):
    """The numbers that the notebooks print are those that the site shows."""
    text = (SITE / f"{page.name}.html").read_text(encoding="utf-8")
    for statement in page.statements:
        title = r'[^>]*>\s*<p class="admonition-title"><span class="caption-number">([^<]+)<'
        heading = f'id="{statement.label}"' + title
        match = re.search(heading, text)
        assert match, f"{statement.label} is not on the page"
        assert match[1].strip() == f"{statement.kind.title()} {statement.number}"
    numbers = re.findall(r'<span class="eqno">\(([\d.]+)', text)
    assert sorted(numbers) == sorted(page.equations.values())
    for exercise in page.exercises:
        assert f"Exercise {exercise.number} " in text


def test_ledger_page_shows_every_claim(visit):
    claims = json.loads((ROOT / "_build" / "claims.json").read_text(encoding="utf-8"))
    text = visit("book/appendix/claims").page.inner_text("article")
    assert claims
    assert all(claim["ok"] for claim in claims)
    missing = [claim["id"] for claim in claims if claim["id"] not in text]
    assert missing == []
