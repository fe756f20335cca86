"""Figures with a slider: they move in a static page without a kernel, and are widgets in a live notebook."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ncbook import runtime

__all__ = ["MAX_BYTES", "MAX_FRAMES", "Frame", "explore", "render", "static_html"]

MAX_FRAMES = 15
"""The most frames a figure may have: each of them is embedded in the page."""

MAX_BYTES = 4_000_000
"""The most that the frames of one figure may weigh together, so that the page still loads on a phone."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MIME = {"svg": "image/svg+xml", "png": "image/png"}
_PIXELS_PER_INCH = 96  # of CSS
_PNG_DOTS_PER_INCH = 144  # sharp on usual screens, at half the weight of a full doubling
_pages: dict[str, str] = {}  # digest of the page that uses a name, in builds of the site

Draw = Callable[[Any], Figure]
Alt = Callable[[Any], str]


@dataclass(frozen=True)
class Frame:
    """One picture of a slider: the value as shown, its alt text, a data URI, and its size in CSS pixels.

    >>> Frame("0.5 rad", "A sine of phase 0.5.", "data:,", 480, 320).shown
    '0.5 rad'
    """

    shown: str
    alt: str
    source: str
    width: int
    height: int


def explore(
    draw: Draw,
    values: Iterable[Any],
    *,
    name: str,
    label: str,
    alt: Alt,
    unit: str = "",
    start: Any = None,
    format: str = "svg",
    continuous: bool = False,
) -> None:
    """Show a figure with a slider over the values.

    In a page built for the site (``NCBOOK_STATIC=1``) all frames are drawn once and embedded: the slider
    then needs no kernel and asks for nothing outside the page. In a live notebook it is a widget that draws
    when it is moved. Without a notebook the frames are drawn, so that errors appear, and nothing is shown.

    Args:
        draw: makes the matplotlib figure of one value; the figure is closed afterwards.
        values: 2 to 15 different numbers or texts, in the order of the slider.
        name: the fixed id of the figure in its page: lower-case words joined by hyphens.
        label: what the slider changes, in words, e.g. ``dimension d``.
        alt: says what is seen at a value; the text must contain the value as shown (``f"{value:g}"``).
        unit: printed after the value.
        start: the value shown first; the first of the values when None.
        format: ``svg``, or ``png`` for figures of very many points.
        continuous: in a live notebook, let numbers slide freely between the first and the last.

    Raises:
        ValueError: an argument breaks one of these rules, ``draw`` returns no figure, an alt text lacks its
            value, the frames weigh too much, or one page uses a name for two different figures.

    >>> def draw(slope):
    ...     figure, axes = plt.subplots(figsize=(2, 2))
    ...     _ = axes.plot([0, slope])
    ...     return figure
    >>> explore(draw, [1, 2, 3], name="a-line", label="slope", alt=lambda slope: f"A line of slope {slope}.")
    """
    values = _require_values(values)
    _require_face(name, label, format)
    first = _require_start(values, start)
    if continuous:
        _require_increasing(values)
    if _is_live():
        picture = _Picture(draw, alt, unit, format, name)
        for value in values:  # a wrong alt text shall show before the reader moves the slider
            _alt_text(alt, value)
        _display(_widget(picture, values, first, label, unit, continuous))
        return
    frames = render(draw, values, name=name, alt=alt, unit=unit, format=format)
    page = static_html(frames, name=name, label=label, start=first)
    _register(name, page)
    _display({"text/html": page, "text/plain": frames[first].alt}, raw=True)


def render(
    draw: Draw, values: Iterable[Any], *, name: str, alt: Alt, unit: str = "", format: str = "svg"
) -> list[Frame]:
    """Draw the frames of a slider, with the arguments and the errors of :func:`explore`.

    The pictures are deterministic: the same call gives the same bytes. No figure stays open.

    >>> def draw(x):
    ...     return plt.figure(figsize=(1, 1))
    >>> frames = render(draw, [0.5, 1], name="empty", alt=lambda x: f"An empty figure at {x:g}.")
    >>> [frame.shown for frame in frames], frames[0].source[:26], plt.get_fignums()
    (['0.5', '1'], 'data:image/svg+xml;base64,', [])
    """
    values = _require_values(values)
    _require_face(name, name, format)
    picture = _Picture(draw, alt, unit, format, name)
    frames = [picture(value) for value in values]
    weight = sum(len(frame.source) for frame in frames)
    if weight > MAX_BYTES:
        raise ValueError(
            f"the frames of {name!r} weigh {weight / 1e6:.1f} MB together, {MAX_BYTES / 1e6:.0f} MB are "
            "allowed: draw fewer points, or use format='png'"
        )
    return frames


def static_html(frames: Sequence[Frame], *, name: str, label: str, start: int = 0) -> str:
    """Return the figure, its slider and its script as one piece of HTML that asks for nothing outside it.

    Args:
        frames: what :func:`render` returns.
        name: the id of the figure.
        label: what the slider changes.
        start: the position of the frame shown first.

    Raises:
        ValueError: there is no frame at the position ``start``.

    >>> frames = [Frame(str(k), f"Frame {k}", "data:,", 10, 10) for k in range(3)]
    >>> static_html(frames, name="three", label="step").count("data:,")
    4
    """
    if not 0 <= start < len(frames):
        raise ValueError(f"start must be a position among {len(frames)} frames, got {start}")
    data = [{"shown": frame.shown, "alt": frame.alt, "source": frame.source} for frame in frames]
    first = frames[start]
    fields = {
        "NAME": name,
        "LABEL": html.escape(label),
        "LAST": str(len(frames) - 1),
        "START": str(start),
        "SHOWN": html.escape(first.shown),
        "ALT": html.escape(first.alt),
        "SOURCE": first.source,
        "WIDTH": str(first.width),
        "HEIGHT": str(first.height),
        "FRAMES": json.dumps(data).replace("<", "\\u003c"),  # no text may close the script
    }
    return re.sub(r"@([A-Z]+)@", lambda match: fields[match[1]], _TEMPLATE)


# Text inherits its colour, so that it is readable on white, on the site's dark theme and in notebooks. The
# play button appears only where a script runs and the reader has not asked for less motion.
_TEMPLATE = """\
<figure class="ncbook-slider" id="@NAME@" style="margin:0;color:inherit">
<img src="@SOURCE@" alt="@ALT@" width="@WIDTH@" height="@HEIGHT@" \
style="display:block;width:100%;max-width:@WIDTH@px;height:auto;background:#fff">
<figcaption style="display:flex;flex-wrap:wrap;align-items:center;gap:.25rem .75rem;margin:.3rem 0 0;\
max-width:@WIDTH@px;color:inherit;font-family:inherit;font-weight:inherit">
<label for="@NAME@-slider" style="color:inherit;margin:0">@LABEL@</label>
<input id="@NAME@-slider" type="range" min="0" max="@LAST@" step="1" value="@START@" autocomplete="off" \
aria-valuetext="@SHOWN@" style="flex:1 1 10rem;min-width:8rem;height:2.75rem;margin:0">
<output for="@NAME@-slider" aria-live="off" style="min-width:4em;color:inherit">@SHOWN@</output>
<button type="button" hidden aria-label="Play: @LABEL@" style="min-width:4.5rem;min-height:2.75rem;\
color:inherit;background:transparent;border:1px solid currentColor;border-radius:.3rem">Play</button>
</figcaption>
<script>
(function () {
  var script = document.currentScript;
  var figure = (script && script.closest("figure")) || document.getElementById("@NAME@");
  var frames = @FRAMES@;
  var image = figure.querySelector("img"), slider = figure.querySelector("input");
  var output = figure.querySelector("output"), button = figure.querySelector("button");
  var label = figure.querySelector("label").textContent;
  var timer = null;
  function show() {
    var frame = frames[Number(slider.value)];
    image.src = frame.source;
    image.alt = frame.alt;
    output.textContent = frame.shown;
    slider.setAttribute("aria-valuetext", frame.shown);
  }
  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(step, 700) : null;
    button.textContent = on ? "Pause" : "Play";
    button.setAttribute("aria-label", button.textContent + ": " + label);
  }
  function step() {
    slider.value = Number(slider.value) + 1;
    show();
    if (slider.value === slider.max) { play(false); }
  }
  slider.addEventListener("input", function () { play(false); show(); });
  button.addEventListener("click", function () {
    if (timer) { play(false); return; }
    if (slider.value === slider.max) { slider.value = 0; show(); }
    play(true);
  });
  button.hidden = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  show();
})();
</script>
</figure>
"""


# --- frames ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """Draws the frame of a value."""

    draw: Draw
    alt: Alt
    unit: str
    format: str
    name: str

    def __call__(self, value: Any) -> Frame:
        text = _alt_text(self.alt, value)
        open_before = set(plt.get_fignums())
        try:
            figure = self.draw(value)
            if not isinstance(figure, Figure):
                raise ValueError(f"draw must return a matplotlib figure, got {type(figure).__name__}")
            content = _save(figure, self.format, self.name)
            width, height = (round(inches * _PIXELS_PER_INCH) for inches in figure.get_size_inches())
            plt.close(figure)
        finally:
            for number in set(plt.get_fignums()) - open_before:
                plt.close(number)
        source = f"data:{_MIME[self.format]};base64,{base64.b64encode(content).decode('ascii')}"
        return Frame(_shown(value, self.unit), text, source, width, height)


def _save(figure: Figure, format: str, salt: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    with plt.rc_context({"svg.hashsalt": salt, "savefig.bbox": None}):
        figure.savefig(
            buffer,
            format=format,
            dpi=_PNG_DOTS_PER_INCH,
            facecolor="white",
            transparent=False,
            metadata=metadata,
        )
    return buffer.getvalue()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bare(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else str(value)


def _shown(value: Any, unit: str) -> str:
    return f"{_bare(value)} {unit}".rstrip()


def _alt_text(alt: Alt, value: Any) -> str:
    """Return the alt text of a value, after a look that it names that very value (0.5 is not in −0.5)."""
    text, bare = alt(value), _bare(value)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"alt must return a non-empty text for each value, got {text!r} at {bare}")
    around = (r"(?<![\d.\-])", r"(?!\d|[.,]\d)") if _is_number(value) else ("", "")
    if not re.search(around[0] + re.escape(bare) + around[1], text.replace("−", "-")):
        raise ValueError(f"the alt text must contain the value shown, {bare!r}, got {text!r}")
    return text


# --- arguments ---------------------------------------------------------------------------------------


def _require_values(values: Iterable[Any]) -> list[Any]:
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    if not 2 <= len(plain) <= MAX_FRAMES:
        raise ValueError(f"values must be 2 to {MAX_FRAMES} numbers or texts, got {len(plain)}")
    for value in plain:
        if not (isinstance(value, str) and value.strip()) and not (
            _is_number(value) and math.isfinite(value)
        ):
            raise ValueError(f"values must be finite numbers or non-empty texts, got {value!r}")
    if len({_bare(value) for value in plain}) < len(plain):
        raise ValueError(f"values must look different when shown, got {[_bare(value) for value in plain]}")
    return plain


def _require_face(name: str, label: str, format: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name must be lower-case words joined by hyphens, got {name!r}")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label must be a non-empty text, got {label!r}")
    if format not in _MIME:
        raise ValueError(f"format must be one of {', '.join(_MIME)}, got {format!r}")


def _require_start(values: list[Any], start: Any) -> int:
    if start is None:
        return 0
    if start not in values:
        raise ValueError(f"start must be one of the values {values}, got {start!r}")
    return values.index(start)


def _require_increasing(values: list[Any]) -> None:
    if not all(_is_number(value) for value in values) or sorted(values) != values:
        raise ValueError(f"continuous needs increasing numbers as values, got {values}")


def _register(name: str, page: str) -> None:
    digest = hashlib.sha256(page.encode()).hexdigest()
    if runtime.is_static() and _pages.setdefault(name, digest) != digest:
        raise ValueError(f"name {name!r} is already the id of another figure of this page")


# --- display -----------------------------------------------------------------------------------------


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _is_live() -> bool:
    return not runtime.is_static() and getattr(_shell(), "kernel", None) is not None


def _display(thing: Any, raw: bool = False) -> None:
    if _shell() is None:
        return
    from IPython.display import display

    display(thing, raw=raw)


def _widget(picture: _Picture, values: list[Any], first: int, label: str, unit: str, continuous: bool) -> Any:
    """Return a picture above a slider; it draws each value once, when the slider first comes there."""
    import ipywidgets as widgets

    face = {
        "description": f"{label} ({unit})" if unit and continuous else label,
        "style": {"description_width": "initial"},
        "layout": widgets.Layout(width="95%"),
        "value": values[first],
    }
    if not continuous:
        slider = widgets.SelectionSlider(options=[(_shown(value, unit), value) for value in values], **face)
    elif all(isinstance(value, int) for value in values):
        slider = widgets.IntSlider(min=values[0], max=values[-1], **face)
    else:
        step = (values[-1] - values[0]) / 200
        slider = widgets.FloatSlider(min=values[0], max=values[-1], step=step, readout_format=".4g", **face)
    image = widgets.HTML()
    drawn: dict[Any, Frame] = {}

    def show(value: Any) -> None:
        frame = drawn.get(value) or drawn.setdefault(value, picture(value))
        image.value = (
            f'<img src="{frame.source}" alt="{html.escape(frame.alt)}" '
            f'style="width:100%;max-width:{frame.width}px;height:auto;background:#fff">'
        )

    show(values[first])
    slider.observe(lambda change: show(change["new"]), names="value")
    return widgets.VBox([image, slider])
