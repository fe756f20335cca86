"""How claims look in a page."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ncbook.claims._record import Claim, comparison, number, outcome, sentence

__all__ = ["claim_html", "table_html"]

# The outputs appear on white, on the site's dark theme and in notebooks: text inherits its colour and only
# the bar at the side, which carries no meaning of its own, has one (contrast at least 3 on both grounds).
_BAR = {True: "#2e8b57", False: "#d1495b"}


def claim_html(claim: Claim) -> str:
    tick, verdict = outcome(claim)
    return (
        f'<div class="ncbook-claim" data-claim="{claim.id}" style="border-left:.3rem solid {_BAR[claim.ok]};'
        'padding:.1rem .75rem;margin:.25rem 0;color:inherit;overflow-wrap:anywhere">'
        f'<p style="margin:0;color:inherit"><strong><span aria-hidden="true">{tick}</span> '
        f"Claim {verdict}.</strong> {html.escape(sentence(claim.statement))}</p>"
        f'<p style="margin:0;color:inherit;font-size:.875em">{html.escape(comparison(claim))}</p></div>'
    )


# headings, and the columns' least widths in rem: on a phone the table scrolls sideways
_HEADINGS = ("Claim", "Predicted", "Measured", "Allowed", "Margin", "Mistake it rejects", "Source")
_WIDTHS = (18, 6, 6, 10, 5, 12, 8)
_CELL = "padding:.35rem .6rem;text-align:left;vertical-align:top;border-top:1px solid currentColor"


def table_html(claims: Sequence[Claim], caption: str) -> str:
    head = "".join(
        f'<th scope="col" style="{_CELL};min-width:{width}rem">{name}</th>'
        for name, width in zip(_HEADINGS, _WIDTHS, strict=True)
    )
    rows = "".join(_row_html(claim) for claim in claims)
    return (
        '<div class="ncbook-claims" role="region" aria-label="Table of the claims" tabindex="0" '
        'style="overflow-x:auto;color:inherit">'
        '<table style="border-collapse:collapse;margin:0;color:inherit;font-size:.875em">'
        f'<caption style="caption-side:top;text-align:left;color:inherit">{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row_html(claim: Claim) -> str:
    tick, verdict = outcome(claim)
    mistake = f"{claim.mistake.words}: {number(claim.mistake.predicted)}"
    relation = {"==": "", "<=": "≤ ", ">=": "≥ "}.get(claim.relation, f"{claim.relation} ")
    cells = (
        f"{relation}{number(claim.predicted)}",
        number(claim.measured),
        f"{claim.tolerance.slack:.2g} ({claim.why})",
        f"{claim.margin:.3g}",
        mistake,
        claim.source,
    )
    columns = "".join(f'<td style="{_CELL}">{html.escape(cell)}</td>' for cell in cells)
    return (
        f'<tr><th scope="row" style="{_CELL};font-weight:normal">'
        f'<span aria-hidden="true">{tick}</span> {html.escape(sentence(claim.statement))} '
        f"<small>({claim.id}, {verdict})</small></th>{columns}</tr>"
    )
