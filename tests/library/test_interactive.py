"""Sliders: pages without a kernel and without outside requests, alt texts that name their value, widgets."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import interactive
from ncbook.interactive import explore, render, static_html

VALUES = [0.1 * k for k in range(1, 10)]


def draw(value):
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([0, 1], [0, value])
    return figure


def alt(value):
    return f"A line that rises to {value:g}."


@pytest.fixture(autouse=True)
def fresh_page(monkeypatch):
    monkeypatch.setattr(interactive, "_pages", {})
    monkeypatch.delenv("NCBOOK_STATIC", raising=False)
    yield
    assert plt.get_fignums() == []


@pytest.fixture(scope="module")
def frames():
    return render(draw, VALUES, name="rising-line", alt=alt, unit="m")


@pytest.fixture(scope="module")
def page(frames):
    return static_html(frames, name="rising-line", label="height <y>", start=3)


def embedded(page):
    return json.loads(re.search(r"var frames = (\[.*\]);", page)[1])


# --- the static page ---------------------------------------------------------------------------------


def test_all_frames_are_in_the_page_with_value_and_alt(page):
    data = embedded(page)
    assert [frame["shown"] for frame in data] == [f"{value:g} m" for value in VALUES]
    for frame, value in zip(data, VALUES, strict=True):
        assert f"{value:g}" in frame["alt"]
        assert b"<svg" in base64.b64decode(frame["source"].split(",")[1])
    assert len({frame["source"] for frame in data}) == len(VALUES)
    assert f'max="{len(VALUES) - 1}"' in page
    assert 'value="3"' in page
    assert 'alt="A line that rises to 0.4."' in page
    assert 'aria-valuetext="0.4 m"' in page


def test_the_page_asks_for_nothing_outside(page):
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http:" not in page
    assert "https:" not in page
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)
    assert "import" not in page
    assert "fetch" not in page


def test_the_pictures_are_opaque_and_ask_for_nothing(frames):
    for frame in frames:
        svg = base64.b64decode(frame.source.split(",")[1]).decode()
        assert "fill: #ffffff" in svg
        assert not re.search(r'href="(?!#)', svg)
        assert "@import" not in svg


def test_texts_cannot_leave_their_place():
    nasty = '</script><script>alert("1")</script>'
    frames = render(draw, ["a", "b"], name="nasty", alt=lambda value: f"{nasty} {value}", unit=nasty)
    page = static_html(frames, name="nasty", label=nasty)
    assert page.count("<script>") == page.count("</script>") == 1
    assert html.escape(nasty) in page
    assert embedded(page)[0]["alt"] == f"{nasty} a"


def test_label_output_and_button_belong_to_the_slider(page):
    assert '<label for="rising-line-slider"' in page
    assert '<input id="rising-line-slider"' in page
    assert '<output for="rising-line-slider"' in page
    assert "height &lt;y&gt;" in page
    assert 'width="288" height="192"' in page  # 3 by 2 inches of 96 CSS pixels


@pytest.mark.parametrize("format", ["svg", "png"])
def test_the_output_is_deterministic(format):
    first, second = (render(draw, [1, 2], name="again", alt=alt, format=format) for _ in range(2))
    assert first == second


def test_figures_opened_on_the_side_are_closed_and_others_left_alone():
    outer = plt.figure()

    def careless(value):
        plt.figure()
        return draw(value)

    def failing(value):
        plt.figure()
        raise RuntimeError("no picture")

    render(careless, [1, 2], name="careless", alt=alt)
    with pytest.raises(RuntimeError, match="no picture"):
        render(failing, [1, 2], name="failing", alt=alt)
    assert plt.get_fignums() == [outer.number]
    plt.close(outer)


def test_numpy_and_torch_values():
    frames = render(draw, np.linspace(0, 1, 3), name="array", alt=alt)
    assert [frame.shown for frame in frames] == ["0", "0.5", "1"]
    assert [f.shown for f in render(draw, torch.arange(1, 3), name="tensor", alt=alt)] == ["1", "2"]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """
<script>
var s = document.querySelector("input"), seen = [];
for (var k = 0; k <= Number(s.max); k++) {
  s.value = k; s.dispatchEvent(new Event("input"));
  var i = document.querySelector("figure img");
  var shown = document.querySelector("output").textContent;
  seen.push([i.alt, i.src.length, shown, s.getAttribute("aria-valuetext")]);
}
document.body.setAttribute("data-seen", JSON.stringify(seen));
document.body.setAttribute("data-button", document.querySelector("button").hidden);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to try the slider in")
def test_the_slider_moves_in_a_browser(page, frames, tmp_path):
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset='utf-8'><body>{page}{PROBE}</body>")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    dom = subprocess.run(
        [*command, "--dump-dom", f"file://{tmp_path}/page.html"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
    assert seen == [[f.alt, len(f.source), f.shown, f.shown] for f in frames]
    assert 'data-button="false"' in dom


# --- arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": [1]}, "values must be 2 to 15"),
        ({"values": range(16)}, "values must be 2 to 15"),
        ({"values": [1, 1.0]}, "look different"),
        ({"values": [1.0, 1.0 + 1e-12]}, "look different"),
        ({"values": [1, float("nan")]}, "finite numbers"),
        ({"values": [1, None]}, "finite numbers"),
        ({"values": [True, False]}, "finite numbers"),
        ({"name": "Rising line"}, "name must be lower-case"),
        ({"name": "1-line"}, "name must be lower-case"),
        ({"label": ""}, "label"),
        ({"format": "gif"}, "format must be one of svg, png"),
        ({"start": 7}, "start must be one of the values"),
        ({"alt": lambda value: ""}, "non-empty text"),
        ({"alt": lambda value: None}, "non-empty text"),
        ({"alt": lambda value: "A line."}, "must contain the value shown, '1'"),
        ({"alt": lambda value: f"A line to {value}0."}, "must contain the value shown"),
        ({"alt": lambda value: f"A line to -{value}."}, "must contain the value shown"),
        ({"alt": lambda value: f"A line to {value}.5."}, "must contain the value shown"),
        ({"draw": lambda value: None}, "draw must return a matplotlib figure, got NoneType"),
        ({"values": ["b", "a"], "alt": str, "continuous": True}, "continuous needs increasing numbers"),
        ({"values": [2, 1], "continuous": True}, "continuous needs increasing numbers"),
    ],
)
def test_bad_arguments_are_named(changes, words):
    arguments = {"draw": draw, "values": [1, 2], "name": "line", "label": "height", "alt": alt} | changes
    drawing, values = arguments.pop("draw"), arguments.pop("values")
    with pytest.raises(ValueError, match=words):
        explore(drawing, values, **arguments)


def test_an_alt_callable_is_required():
    with pytest.raises(TypeError, match="alt"):
        explore(draw, [1, 2], name="line", label="height")


@settings(deadline=None, max_examples=100)
@given(
    st.floats(-1e9, 1e9), st.sampled_from(["{:g}", "x = {:g}, seen", "({:g})", "{:g}. And more", "{:g} m"])
)
def test_any_number_is_found_in_a_text_that_holds_it_alone(value, text):
    value = float(f"{value:g}")
    assert interactive._alt_text(text.format, value) == text.format(value)
    assert interactive._alt_text(lambda v: text.format(v).replace("-", "−"), value)
    with pytest.raises(ValueError, match="must contain"):
        interactive._alt_text(lambda v: f"7{v:g}7", value)


def test_frames_that_weigh_too_much_are_refused(monkeypatch):
    monkeypatch.setattr(interactive, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="weigh"):
        explore(draw, [1, 2], name="heavy", label="height", alt=alt)


def test_in_a_site_build_a_name_belongs_to_one_figure(monkeypatch):
    monkeypatch.setenv("NCBOOK_STATIC", "1")
    explore(draw, [1, 2], name="line", label="height", alt=alt)
    explore(draw, [1, 2], name="line", label="height", alt=alt)  # the same cell again
    with pytest.raises(ValueError, match="'line' is already the id of another figure"):
        explore(draw, [1, 3], name="line", label="height", alt=alt)


# --- notebooks ---------------------------------------------------------------------------------------

SETUP = """
import matplotlib.pyplot as plt
from ncbook import interactive
def draw(x):
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot([0, x])
    return figure
arguments = dict(name="a-line", label="slope", alt=lambda x: f"Slope {x:g}.", unit="m")
"""
CELLS = [
    SETUP,
    "interactive.explore(draw, [1, 2, 3], **arguments)",
    "interactive.explore(draw, [1, 2, 3], continuous=True, **arguments)",
    "interactive.explore(draw, [0.5, 1.0], continuous=True, start=1.0, **arguments)",
]


def execute(cells, static, folder):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    environment = os.environ | {"NCBOOK_STATIC": static, "PYTHONWARNINGS": "error::DeprecationWarning:ncbook"}
    client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120)
    client.execute(cwd=str(folder), env=environment)
    return [cell.outputs for cell in notebook.cells]


def test_in_a_live_kernel_it_is_a_widget(tmp_path):
    setup, *sliders = execute(CELLS, "0", tmp_path)
    assert setup == []
    for outputs in sliders:
        (output,) = outputs  # no picture, no warning beside the widget
        assert "application/vnd.jupyter.widget-view+json" in output.data


def test_in_a_build_of_the_site_it_is_a_page(tmp_path):
    _, (output,) = execute(CELLS[:2], "1", tmp_path)
    assert set(output.data) == {"text/html", "text/plain"}
    assert output.data["text/plain"] == "Slope 1."
    assert len(embedded(output.data["text/html"])) == 3
    assert sys.executable not in output.data["text/html"]


@pytest.mark.parametrize(
    ("values", "continuous", "moves"),
    [
        ([1, 2, 3], False, [3, 2]),
        ([1, 5], True, [4]),
        ([0.5, 1.0], True, [0.75]),
        (["few", "many"], False, ["many"]),
    ],
)
def test_moving_the_widget_draws_each_value_once(values, continuous, moves):
    drawn = []

    def recording(value):
        drawn.append(value)
        return draw(1)

    picture = interactive._Picture(recording, lambda value: f"At {value}.", "m", "png", "line")
    image, slider = interactive._widget(picture, values, 0, "height", "m", continuous).children
    for value in moves:
        slider.value = value
        assert f'alt="At {value}."' in image.value
    slider.value = values[0]
    assert drawn == [values[0], *moves]
