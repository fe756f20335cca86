"""The figure style: opaque, legible, distinguishable without colour, and true to the numbers it draws."""

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from ncbook import figures


@pytest.fixture(autouse=True)
def no_open_figure():
    with plt.rc_context():
        yield
    plt.close("all")


def luminance(colour):
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def axes(d=2):
    return figures.figure(3, 3, projection="3d" if d == 3 else None)[1]


def test_the_style_is_opaque_and_legible():
    figures.use_style()
    assert plt.rcParams["savefig.facecolor"] == "white"
    assert not plt.rcParams["savefig.transparent"]
    assert plt.rcParams["figure.constrained_layout.use"]
    assert plt.rcParams["font.size"] >= 10
    fig, ax = figures.figure()
    ax.plot([0, 1])
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    pixels = plt.imread(io.BytesIO(buffer.getvalue()))
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all()
    assert pixels[0, 0, :3].tolist() == [1, 1, 1]


def test_figure_keeps_the_style_to_itself():
    before = dict(plt.rcParams)
    fig, grid = figures.figure(5, 4, rows=2, columns=2)
    assert grid.shape == (2, 2)
    assert fig.get_size_inches().tolist() == [5, 4]
    assert dict(plt.rcParams) == before


def test_class_styles_differ_without_colour_and_stay_readable():
    styles = [figures.class_style(k) for k in range(70)]
    assert len({(style["color"], style["marker"]) for style in styles}) == 70
    assert len({style["marker"] for style in styles[:10]}) == 10
    assert len({style["color"] for style in styles[:7]}) == 7
    assert "black" not in figures.COLOURS
    contrasts = [1.05 / (luminance(colour) + 0.05) for colour in figures.COLOURS]
    assert min(contrasts[:3]) >= 3  # lines of the first three classes stand out on white


def test_class_styles_fit_plot_and_scatter():
    ax = axes()
    ax.plot([0, 1], [0, 1], **figures.class_style(3))
    ax.scatter([0, 1], [0, 1], **figures.class_style(3))


def test_theory_is_black_and_above():
    ax = axes()
    figures.theory_line(ax, torch.arange(3), np.ones(3))
    figures.theory_level(ax, torch.tensor(0.5))
    figures.theory_line(ax, [0, 1], [0, 1], linestyle=":", label=None)
    figures.measured(ax, [0, 1], [0, 1])
    assert {line.get_color() for line in ax.lines if line.get_linestyle() in ("-", "--", ":")} == {"black"}
    assert ax.lines[0].get_zorder() > ax.containers[0].lines[0].get_zorder()
    assert ax.get_legend_handles_labels()[1] == ["theory", "theory", "measured"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=5))
def test_measurements_show_the_median_and_the_whole_spread(samples):
    ax = axes()
    figures.measured(ax, np.arange(len(samples)), samples)
    line, _, (bars,) = ax.containers[0].lines
    assert line.get_ydata() == pytest.approx(np.median(samples, axis=1))
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert ends[:, 0] == pytest.approx(np.min(samples, axis=1), abs=1e-9)
    assert ends[:, 1] == pytest.approx(np.max(samples, axis=1), abs=1e-9)
    plt.close("all")


def test_a_single_run_has_no_bars():
    ax = axes()
    figures.measured(ax, [1, 2], [1, 2])
    assert ax.containers[0].lines[2] == ()


def test_quantiles_shorten_the_bars():
    ax = axes()
    figures.measured(ax, [0], [np.arange(101.0)], quantiles=(0.25, 0.75))
    (segment,) = ax.containers[0].lines[2][0].get_segments()
    assert segment[:, 1].tolist() == [25, 75]


@pytest.mark.parametrize(("which", "scales"), [("x", "log linear"), ("y", "linear log"), ("both", "log log")])
def test_log_axes(which, scales):
    ax = axes()
    figures.log_axis(ax, which)
    assert f"{ax.get_xscale()} {ax.get_yscale()}" == scales


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("K", [1, 2, 5])
def test_frames_are_drawn_with_one_style_a_class(d, K):
    ax = axes(d)
    M = np.random.default_rng(0).normal(size=(d, K))
    figures.draw_frame(ax, M, points=np.repeat(M, 2, axis=1), labels=[f"class {k}" for k in range(K)])
    assert [text.get_text() for text in ax.texts] == [f"class {k}" for k in range(K)]
    tips = [np.array(line.get_data_3d() if d == 3 else line.get_data())[:, 1] for line in ax.lines[:K]]
    np.testing.assert_allclose(np.stack(tips, axis=1), M)
    assert [line.get_color() for line in ax.lines[:K]] == [figures.class_style(k)["color"] for k in range(K)]
    assert len(ax.collections) == 2 * K
    ax.figure.savefig(io.BytesIO())


def test_a_collapsed_frame_can_be_drawn():
    figures.draw_frame(axes(), torch.zeros(2, 3), sphere=False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: figures.class_style(-1), "k must be a class number"),
        (lambda: figures.class_style(0.5), "k must be a class number"),
        (lambda: figures.figure(0, 3), "must be positive"),
        (lambda: figures.figure(rows=0), "must be positive"),
        (lambda: figures.theory_line(axes(), [0, 1], [0]), "y must have one value for each x"),
        (lambda: figures.theory_line(axes(), [], []), "x must be a vector"),
        (lambda: figures.theory_line(axes(), [0], [np.nan]), "y must be finite"),
        (lambda: figures.theory_level(axes(), [0, 1]), "value must be one number"),
        (lambda: figures.measured(axes(), [0, 1], [[1, 2, 3]]), "samples must be"),
        (lambda: figures.measured(axes(), [0], [[]]), "samples must be"),
        (lambda: figures.measured(axes(), [0], [[np.inf]]), "samples must be finite"),
        (lambda: figures.measured(axes(), [0], [[1, 2]], quantiles=(0.6, 1)), "quantiles"),
        (lambda: figures.log_axis(axes(), "z"), "which must be"),
        (lambda: figures.draw_frame(axes(), np.ones((4, 3))), "M must be"),
        (lambda: figures.draw_frame(axes(), np.ones((2, 0))), "M must be"),
        (lambda: figures.draw_frame(axes(), np.ones((3, 3))), "ax must have 3 dimensions"),
        (lambda: figures.draw_frame(axes(3), np.ones((2, 3))), "ax must have 2 dimensions"),
        (lambda: figures.draw_frame(axes(), np.ones((2, 3)), labels=["a"]), "labels must be 3"),
        (lambda: figures.draw_frame(axes(), np.ones((2, 3)), points=np.ones((2, 4))), "points must be"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
