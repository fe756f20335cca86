"""One style for all figures: theory as a black line, measurements as coloured markers with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ncbook import runtime

__all__ = [
    "COLOURS",
    "MARKERS",
    "class_style",
    "draw_frame",
    "figure",
    "log_axis",
    "measured",
    "theory_level",
    "theory_line",
    "use_style",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""The colours of Okabe and Ito, the pale ones last and without the black, which belongs to theory."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
"""Markers that differ without colour; with the seven colours they make 70 different pairs."""

_STYLE: Any = {
    "figure.figsize": (6.4, 3.9),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.dpi": 120,
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "savefig.dpi": 144,
    "axes.facecolor": "white",
    "axes.edgecolor": "black",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.labelsize": 11.5,
    "axes.prop_cycle": cycler(color=COLOURS),
    "font.size": 11,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "image.cmap": "cividis",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "text.color": "black",
    "svg.hashsalt": "ncbook",
}


def use_style() -> None:
    """Set matplotlib's defaults to the style of the book.

    The ground is opaque white, so that figures can be read on a dark page; letters are large enough for a
    phone; maps use cividis; the layout is constrained, so that no label is cut off.

    >>> use_style()
    >>> plt.rcParams["figure.facecolor"], plt.rcParams["image.cmap"]
    ('white', 'cividis')
    """
    mpl.rcParams.update(_STYLE)


def class_style(k: int) -> dict[str, Any]:
    """Return colour and marker of class k, the same in all figures and fit for ``plot`` and ``scatter``.

    Args:
        k: the class, from 0; the first 70 classes differ in colour or marker, the first ten in the marker.

    Raises:
        ValueError: k is not a non-negative integer.

    >>> class_style(0)
    {'color': '#0072B2', 'marker': 'o'}
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise ValueError(f"k must be a class number from 0, got {k!r}")
    return {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}


def figure(
    width: float = 6.4, height: float = 3.9, *, rows: int = 1, columns: int = 1, projection: str | None = None
) -> tuple[Figure, Any]:
    """Return a new figure of the book's style and its axes (an array of axes where there are several).

    Args:
        width: in inches.
        height: in inches.
        rows: of the grid of axes.
        columns: of the grid of axes.
        projection: ``"3d"`` for axes of three dimensions.

    Raises:
        ValueError: the size or the grid is not positive.

    >>> fig, axes = figure(6, 3, columns=2)
    >>> axes.shape
    (2,)
    >>> plt.close(fig)
    """
    if not (width > 0 and height > 0 and rows >= 1 and columns >= 1):
        raise ValueError(
            f"width, height, rows and columns must be positive, got {width}, {height}, {rows}, {columns}"
        )
    with mpl.rc_context(_STYLE):
        return plt.subplots(rows, columns, figsize=(width, height), subplot_kw={"projection": projection})


def theory_line(ax: Axes, x: Any, y: Any, *, label: str | None = "theory", **style: Any) -> None:
    """Draw what theory predicts as a black line, above the measurements.

    Args:
        ax: the axes.
        x: the abscissas, (m,).
        y: the prediction there, (m,).
        label: for the legend; None for none.
        style: further arguments of ``Axes.plot``, e.g. ``linestyle="--"`` for a second theory.

    Raises:
        ValueError: x and y are not finite or not of one length.

    >>> fig, ax = figure()
    >>> theory_line(ax, [0, 1], [0, 1])
    >>> ax.lines[0].get_color()
    'black'
    >>> plt.close(fig)
    """
    abscissas, values = _vector(x, "x"), _vector(y, "y")
    if abscissas.shape != values.shape:
        raise ValueError(f"y must have one value for each x, got {values.size} for {abscissas.size}")
    look: dict[str, Any] = {"color": "black", "linewidth": 1.5, "zorder": 3, "label": label}
    ax.plot(abscissas, values, **(look | style))


def theory_level(ax: Axes, value: float, *, label: str | None = "theory", **style: Any) -> None:
    """Draw a predicted value, such as an optimum below a training curve, as a dashed black level.

    Raises:
        ValueError: the value is not one finite number.

    >>> fig, ax = figure()
    >>> theory_level(ax, 0.5)
    >>> plt.close(fig)
    """
    level = runtime.as_tensor(value, "value")
    if level.numel() != 1:
        raise ValueError(f"value must be one number, got shape {tuple(level.shape)}")
    look: dict[str, Any] = {
        "color": "black",
        "linewidth": 1.5,
        "linestyle": "--",
        "zorder": 3,
        "label": label,
    }
    ax.axhline(level.item(), **(look | style))


def measured(
    ax: Axes,
    x: Any,
    samples: Any,
    *,
    k: int = 0,
    label: str | None = "measured",
    quantiles: tuple[float, float] = (0.0, 1.0),
    **style: Any,
) -> None:
    """Draw measurements as markers: the median of the runs, with bars over their spread.

    Args:
        ax: the axes.
        x: the abscissas, (m,).
        samples: (m,) values of one run, drawn without bars, or (m, R) values of R runs.
        k: picks colour and marker, as for classes.
        label: for the legend; None for none.
        quantiles: where the bars end; from the least to the largest run unless told otherwise.
        style: further arguments of ``Axes.errorbar``.

    Raises:
        ValueError: an array is not finite, the lengths differ, or the quantiles do not straddle the median.

    >>> fig, ax = figure()
    >>> measured(ax, [1, 2], [[0.9, 1.0, 1.2], [1.9, 2.0, 2.1]])
    >>> ax.containers[0].lines[0].get_ydata().tolist()
    [1.0, 2.0]
    >>> plt.close(fig)
    """
    abscissas = _vector(x, "x")
    values = _array(samples, "samples")
    if values.ndim not in (1, 2) or values.shape[0] != abscissas.size or values.size == 0:
        raise ValueError(
            f"samples must be (m,) or (m, runs) with m = {abscissas.size} as in x, got {values.shape}"
        )
    low, high = quantiles
    if not 0 <= low <= 0.5 <= high <= 1:
        raise ValueError(f"quantiles must lie in [0, 1/2] and [1/2, 1], got {quantiles}")
    middle, bars = values, None
    if values.ndim == 2:
        middle = np.median(values, axis=1)
        ends = np.quantile(values, [low, high], axis=1)
        bars = np.abs(ends - middle)
    look: dict[str, Any] = {"linestyle": "none", "capsize": 3, "markeredgecolor": "black"}
    look |= {"markeredgewidth": 0.6, "zorder": 2.5, "label": label, **class_style(k)}
    ax.errorbar(abscissas, middle, yerr=bars, **(look | style))


def log_axis(ax: Axes, which: str = "y") -> None:
    """Make an axis logarithmic, with a line at each power of ten and no crowd of small labels.

    Args:
        ax: the axes.
        which: ``"x"``, ``"y"`` or ``"both"``.

    Raises:
        ValueError: ``which`` is something else.

    >>> fig, ax = figure()
    >>> log_axis(ax)
    >>> ax.get_yscale(), ax.get_xscale()
    ('log', 'linear')
    >>> plt.close(fig)
    """
    if which not in ("x", "y", "both"):
        raise ValueError(f"which must be 'x', 'y' or 'both', got {which!r}")
    for name in ("x", "y") if which == "both" else (which,):
        ax.set(**{f"{name}scale": "log"})
        axis = ax.xaxis if name == "x" else ax.yaxis
        axis.set_major_locator(LogLocator(numticks=9))
        axis.set_minor_formatter(NullFormatter())


def draw_frame(
    ax: Axes, M: Any, *, points: Any = None, labels: Sequence[str] | None = None, sphere: bool = True
) -> None:
    """Draw the vectors of a frame as arrows from the origin, in the plane or in space, one style a class.

    Args:
        ax: the axes; for d = 3 made with ``projection="3d"``.
        M: (d, K) columns, d = 2 or 3.
        points: (d, N) further points, class-ordered with N/K a class, drawn small; None for none.
        labels: K texts at the tips; None for the numbers 1, …, K.
        sphere: draw the circle or sphere through the longest vector.

    Raises:
        ValueError: d is not 2 or 3, the axes do not fit d, or the points or labels do not fit M.

    >>> fig, ax = figure(3, 3)
    >>> draw_frame(ax, [[1.0, -0.5, -0.5], [0.0, 0.866, -0.866]])
    >>> len(ax.texts)
    3
    >>> plt.close(fig)
    """
    vectors = _array(M, "M")
    if vectors.ndim != 2 or vectors.shape[0] not in (2, 3) or vectors.shape[1] == 0:
        raise ValueError(f"M must be (d, K) with d = 2 or 3 and K at least 1, got {vectors.shape}")
    d, K = vectors.shape
    if (ax.name == "3d") != (d == 3):
        raise ValueError(f"ax must have {d} dimensions for M of shape {vectors.shape}, got {ax.name!r} axes")
    names = [str(k + 1) for k in range(K)] if labels is None else list(labels)
    if len(names) != K:
        raise ValueError(f"labels must be {K} texts, one for each column of M, got {len(names)}")
    if points is not None:
        _draw_points(ax, _array(points, "points"), d, K)
    radius = float(np.linalg.norm(vectors, axis=0).max())
    radius = radius if radius > 0 else 1.0  # a collapsed frame is a point in a unit circle
    for k in range(K):
        _draw_arrow(ax, vectors[:, k], k, names[k], gap=(0.12 if d == 2 else 0.2) * radius)
    if sphere:
        _draw_sphere(ax, d, radius)
    _fit_view(ax, d, 1.25 * radius)


def _draw_arrow(ax: Any, tip: np.ndarray, k: int, name: str, gap: float) -> None:
    style = class_style(k)
    ax.plot(*np.stack([0 * tip, tip], axis=1), color=style["color"], linewidth=2, zorder=3)
    ax.scatter(*tip[:, None], s=55, edgecolors="black", linewidths=0.7, zorder=4, **style)
    length = float(np.linalg.norm(tip))
    outward = tip / length if length > 0 else np.eye(len(tip))[0]
    ax.text(*(tip + gap * outward), name, ha="center", va="center", zorder=5)


def _draw_points(ax: Any, points: np.ndarray, d: int, K: int) -> None:
    if points.ndim != 2 or points.shape[0] != d or points.shape[1] % K:
        raise ValueError(f"points must be ({d}, N) with N a multiple of {K}, got {points.shape}")
    for k, cloud in enumerate(np.split(points, K, axis=1)):
        ax.scatter(*cloud, s=12, alpha=0.5, linewidths=0, zorder=2, **class_style(k))


def _draw_sphere(ax: Any, d: int, radius: float) -> None:
    angle = np.linspace(0, 2 * np.pi, 73)
    if d == 2:
        ax.plot(radius * np.cos(angle), radius * np.sin(angle), color="#8c8c8c", linewidth=0.8, zorder=1)
        return
    around, up = radius * np.cos(angle), radius * np.sin(angle)
    look: dict[str, Any] = {"color": "#8c8c8c", "linewidth": 0.5, "alpha": 0.6}
    for longitude in np.arange(6) * np.pi / 6:  # six full circles through the poles
        ax.plot(around * np.cos(longitude), around * np.sin(longitude), up, **look)
    for latitude in np.arange(-2, 3) * np.pi / 6:
        ring, level = np.cos(latitude), np.full_like(angle, radius * np.sin(latitude))
        ax.plot(ring * around, ring * up, level, **look)


def _fit_view(ax: Any, d: int, reach: float) -> None:
    ax.set(**{f"{axis}lim": (-reach, reach) for axis in "xyz"[:d]})
    if d == 2:
        ax.set_aspect("equal")
    else:
        ax.set_box_aspect((1, 1, 1), zoom=1.6)  # the default leaves a wide empty rim
    ax.set_axis_off()


def _array(x: Any, name: str) -> np.ndarray:
    return runtime.as_tensor(x, name, runtime.DTYPE).detach().cpu().numpy()


def _vector(x: Any, name: str) -> np.ndarray:
    array = _array(x, name)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a vector of at least one number, got shape {array.shape}")
    return array
