"""The record of a claim, and the words in which it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["RELATIONS", "Claim", "Mistake", "Tolerance", "comparison", "number", "outcome", "sentence"]

RELATIONS = {"==": "", "<=": "at most ", "<": "less than ", ">=": "at least ", ">": "more than "}
"""The relations, and the words that stand between "predicted" and the number."""


@dataclass(frozen=True)
class Tolerance:
    """How far a measurement may miss: ``slack = atol + rtol·|predicted|``, given at the worst element.

    >>> Tolerance(atol=0.0, rtol=0.01, slack=0.02).slack
    0.02
    """

    atol: float
    rtol: float
    slack: float


@dataclass(frozen=True)
class Mistake:
    """A plausible error in the derivation, what it predicts, and the (negative) margin by which it fails.

    >>> Mistake("a dropped factor of two", predicted=0.5, margin=-49.0, rejected=True).rejected
    True
    """

    words: str
    predicted: float
    margin: float
    rejected: bool


@dataclass(frozen=True)
class Claim:
    """The record of one claim; ``predicted`` and ``measured`` are those of the worst element.

    ``margin`` is the share of the slack that is left, see :func:`check`. ``ok`` says that the relation holds
    (``holds``) and that the mistake is rejected. ``elements`` counts the numbers that were compared and
    ``index`` is the place of the worst one in the array, () for a single number.

    >>> from ncbook.claims import check
    >>> claim = check(
    ...     "welcome-worst", [1.0, 2.0], [1.0, 2.1], statement="Both numbers agree with theory.",
    ...     source="this book", mistake=("the two exchanged", [2.0, 1.0]), why="an example", rtol=0.1)
    >>> claim.index, claim.measured, round(claim.margin, 6), claim.ok
    ((1,), 2.1, 0.5, True)
    """

    id: str
    chapter: str | None
    statement: str
    source: str
    predicted: float
    measured: float
    relation: str
    tolerance: Tolerance
    why: str
    margin: float
    mistake: Mistake
    holds: bool
    elements: int
    index: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """Whether the relation holds and its tolerance tells the mistake apart."""
        return self.holds and self.mistake.rejected

    def record(self) -> dict[str, Any]:
        """Return the entry of the claims ledger: plain JSON values, ``why`` under the key ``reason``.

        Numbers are finite; a NaN or infinity that was compared appears as ``"nan"``, ``"inf"`` or ``"-inf"``.
        """
        tolerance, mistake = self.tolerance, self.mistake
        return {
            "id": self.id,
            "chapter": self.chapter,
            "statement": self.statement,
            "source": self.source,
            "predicted": _json_number(self.predicted),
            "measured": _json_number(self.measured),
            "relation": self.relation,
            "tolerance": {
                "atol": tolerance.atol,
                "rtol": tolerance.rtol,
                "slack": _json_number(tolerance.slack),
            },
            "reason": self.why,
            "margin": self.margin,
            "mistake": {"words": mistake.words, "predicted": mistake.predicted, "margin": mistake.margin},
            "ok": self.ok,
            "elements": self.elements,
            "index": list(self.index),
        }

    def __str__(self) -> str:
        tick, verdict = outcome(self)
        return f"{tick} Claim {self.id} {verdict}: {sentence(self.statement)} {comparison(self)}"

    def _ipython_display_(self) -> None:
        """Stay silent as the last expression of a cell: :func:`check` has shown the claim already."""


def _json_number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def number(x: float) -> str:
    return str(int(x)) if x.is_integer() and abs(x) < 1e6 else f"{x:.6g}"


def outcome(claim: Claim) -> tuple[str, str]:
    if claim.ok:
        return "✓", "holds"
    return "✗", "fails: its tolerance cannot tell the mistake apart" if claim.holds else "fails"


def sentence(text: str) -> str:
    return text if text.rstrip().endswith((".", "!", "?")) else f"{text.rstrip()}."


def comparison(claim: Claim) -> str:
    mistake = claim.mistake
    rejected = "rejected" if mistake.rejected else "not rejected"
    place = ", ".join(map(str, claim.index))
    worst = f", the worst of {claim.elements} numbers (at index {place})" if claim.index else ""
    return (
        f"Measured {number(claim.measured)}, predicted {RELATIONS[claim.relation]}"
        f"{number(claim.predicted)}{worst}; {_allowance(claim)} ({claim.why}). "
        f"The mistake “{mistake.words}” predicts {number(mistake.predicted)}: {rejected}."
    )


def _allowance(claim: Claim) -> str:
    difference = abs(claim.measured - claim.predicted)
    if not math.isfinite(difference):
        return "not a finite number"
    if claim.tolerance.slack == 0:
        return "no slack"
    if claim.relation == "==":
        return f"off by {difference:.2g} where {claim.tolerance.slack:.2g} is allowed"
    return f"with a slack of {claim.tolerance.slack:.2g}"
