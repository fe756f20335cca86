"""Checks in the page: a claim compares what theory predicts with what was measured, and shows the outcome.

A claim must be able to fail. Each one therefore names a plausible mistake and the number that the mistake
would have predicted, and the check insists that the same tolerance rejects that number.
"""

from __future__ import annotations

import math
import os
import re
import sys
from typing import Any

import numpy as np
import torch

from ncbook.claims._compare import MARGIN_FLOOR, as_numbers, as_numbers_like, slack_of, worst
from ncbook.claims._record import RELATIONS, Claim, Mistake, Tolerance
from ncbook.claims._view import claim_html, table_html
from ncbook.runtime import is_static

__all__ = [
    "CLAIM_MIME",
    "MARGIN_FLOOR",
    "Claim",
    "ClaimFailed",
    "Mistake",
    "Tolerance",
    "check",
    "checked",
    "glue",
    "table",
]

CLAIM_MIME = "application/vnd.ncbook.claim+json"
"""The type of the structured output in which a page carries the numbers of its claims."""

_GLUE_PREFIX = "application/papermill.record/"
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)*")
_GLUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_checked: dict[str, Claim] = {}


class ClaimFailed(AssertionError):
    """A claim does not hold, or its tolerance cannot tell the right prediction from the mistake.

    >>> issubclass(ClaimFailed, AssertionError)
    True
    """


def check(
    id: str,
    predicted: Any,
    measured: Any,
    *,
    statement: str,
    source: str,
    mistake: tuple[str, Any],
    why: str,
    relation: str = "==",
    atol: float = 0.0,
    rtol: float = 0.0,
) -> Claim:
    r"""Check that ``measured relation predicted`` holds with slack ``atol + rtol·|predicted|``; show it.

    The slack always loosens the relation: ``==`` means :math:`|x - p| \le s`, ``<=`` and ``<`` mean
    :math:`x \le p + s` and :math:`x < p + s`, likewise above. Arrays are compared element by element and the
    worst element, the one of the smallest margin, stands for all. NaN and infinity fail.

    The *margin* is the share of the slack that is left, :math:`1 - |x-p|/s` for ``==``. For an inequality
    with the signed distance :math:`\delta` (:math:`p - x` for an upper, :math:`x - p` for a lower bound) it
    is :math:`(\delta + s)/\max(|p|, |x|, s)`. Margins lie between :data:`MARGIN_FLOOR` and 1; a claim that
    holds has one of at least 0. Without slack, an exact hit has margin 1 and a miss has the floor.

    The mistake's prediction must fail against the same measurement: same relation, same ``atol`` and
    ``rtol``, with the larger of its own slack and that of the right prediction.

    In a notebook the outcome is displayed, with its record as :data:`CLAIM_MIME`, before a failure is raised.

    Args:
        id: lower-case words joined by hyphens, with dots before details: ``frames-rankin.equality``. The
            same cell may run again; two different statements may not share an id.
        predicted: what theory says: a number, or an array of the shape of ``measured``. A single number
            may stand for all elements.
        measured: what was found: a number or an array.
        statement: one sentence that says what holds.
        source: a key of the bibliography, ``this book`` or ``measured``.
        mistake: words for one plausible error, and the prediction that it leads to (finite).
        why: the reason for the tolerance: exact algebra, the optimiser's accuracy, Monte Carlo error, …
        relation: one of ``==``, ``<=``, ``<``, ``>=``, ``>``.
        atol: absolute part of the slack, finite and not negative.
        rtol: relative part of the slack, finite and not negative.

    Returns:
        The record of the claim.

    Raises:
        ClaimFailed: the relation does not hold, or it holds for the mistake too.
        ValueError: an argument is empty, complex, negative, of the wrong shape or unknown.

    >>> claim = check(
    ...     "welcome-cosine", -1 / 3, -0.3333333333, statement="Four class means have cosine −1/3.",
    ...     source="this book", mistake=("K in place of K − 1", -1 / 4), why="rounding", atol=1e-9)
    >>> claim.ok, round(claim.margin, 3), claim.mistake.margin < 0
    (True, 0.967, True)
    """
    _require_words(id=id, statement=statement, source=source, why=why)
    _require_rules(id, statement, relation, atol=atol, rtol=rtol)
    words, wrong = _require_mistake(mistake)
    found = as_numbers(measured, "measured")
    right = as_numbers_like(predicted, found, "predicted")
    wrong = as_numbers_like(wrong, found, "mistake")
    if not np.isfinite(wrong).all():
        raise ValueError("the prediction of the mistake must be finite, got NaN or infinity")
    slack = slack_of(right, atol, rtol)
    at, holds, margin = worst(relation, right, found, slack)
    larger_slack = np.maximum(slack, slack_of(wrong, atol, rtol))
    wrong_at, wrong_holds, wrong_margin = worst(relation, wrong, found, larger_slack)
    claim = Claim(
        id=id,
        chapter=os.environ.get("NCBOOK_CHAPTER") or None,
        statement=statement,
        source=source,
        predicted=float(right[at]),
        measured=float(found[at]),
        relation=relation,
        tolerance=Tolerance(float(atol), float(rtol), float(slack[at])),
        why=why,
        margin=margin,
        mistake=Mistake(words, float(wrong[wrong_at]), wrong_margin, rejected=not wrong_holds),
        holds=holds,
        elements=found.size,
        index=at,
    )
    _checked[id] = claim
    _display({CLAIM_MIME: claim.record(), "text/html": claim_html(claim), "text/plain": str(claim)})
    if not claim.ok:
        raise ClaimFailed(str(claim))
    return claim


def checked() -> list[Claim]:
    """Return the claims checked so far in this process, in the order of their first check.

    >>> all(claim.ok for claim in checked())
    True
    """
    return list(_checked.values())


def table() -> None:
    """Show all claims checked so far as a table; outside a notebook print them as text.

    >>> table()  # doctest: +ELLIPSIS
    Claims checked: ...
    """
    claims = checked()
    holding = sum(claim.ok for claim in claims)
    caption = f"Claims checked: {len(claims)}; holding: {holding}."
    text = "\n".join([caption, *(str(claim) for claim in claims)])
    if _shell() is None:
        print(text)
    else:
        _display({"text/html": table_html(claims, caption), "text/plain": text})


def glue(name: str, value: Any, format: str = "{}") -> None:
    """Publish a number for the prose: the text quotes it with the role ``{glue:text}`` and this name.

    On the site nothing is shown: the output has the form that MyST-NB collects. In a live notebook, whose
    text says ⟨name⟩ in place of the number, the output says ``⟨name⟩ = number``.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``; unique in the book.
        value: a number, a one-element tensor or array, or a text.
        format: how to write it, for :meth:`str.format`, e.g. ``"{:.3f}"``.

    Raises:
        ValueError: the name has other characters, the value is not finite, or the format does not fit it.

    >>> glue("welcome-nc1", 0.00123, "{:.1e}")
    """
    if not isinstance(name, str) or not _GLUE_NAME.fullmatch(name):
        raise ValueError(f"name must be letters, digits, '_', '-' and '.', got {name!r}")
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        if math.prod(value.shape) != 1:
            raise ValueError(f"value of glue {name!r} must be one number, got shape {tuple(value.shape)}")
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"value of glue {name!r} must be finite, got {value}")
    try:
        text = format.format(value)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"format {format!r} does not fit the value of glue {name!r}: {error}") from None
    # MyST-NB reads the text with literal_eval: the quotes of repr keep "0.10" from becoming 0.1
    metadata = {"scrapbook": {"name": name, "mime_prefix": _GLUE_PREFIX}}
    bundle = {f"{_GLUE_PREFIX}text/plain": repr(text)}
    if not is_static():
        bundle["text/plain"] = f"⟨{name}⟩ = {text}"
    _display(bundle, metadata)


def _require_words(**arguments: str) -> None:
    for name, text in arguments.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a non-empty text, got {text!r}")


def _require_rules(id: str, statement: str, relation: str, **tolerances: float) -> None:
    if not _ID.fullmatch(id):
        raise ValueError(
            f"id must be lower-case words joined by hyphens, with dots before details, got {id!r}"
        )
    if id in _checked and _checked[id].statement != statement:
        raise ValueError(
            f"id {id!r} already stands for another statement ({_checked[id].statement!r}); "
            "choose another id, or restart the kernel if the statement was edited"
        )
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {' '.join(RELATIONS)}, got {relation!r}")
    for name, value in tolerances.items():
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")


def _require_mistake(mistake: tuple[str, Any]) -> tuple[str, Any]:
    if not isinstance(mistake, (tuple, list)) or len(mistake) != 2:
        raise ValueError(f"mistake must be a pair (words, wrong prediction), got {mistake!r}")
    words, wrong = mistake
    if not isinstance(words, str) or not words.strip():
        raise ValueError(f"the words of mistake must be a non-empty text, got {words!r}")
    return words, wrong


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _display(bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    if _shell() is None:
        return
    from IPython.display import display

    display(bundle, raw=True, metadata=metadata)
