"""A claim must be able to fail: on wrong numbers, on NaN, and on a tolerance that is too wide."""

import json
import math

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import claims
from ncbook.claims import MARGIN_FLOOR, ClaimFailed, check

finite = st.floats(-1e6, 1e6)
slack_parts = st.floats(0, 1e3)
relations = st.sampled_from(["==", "<=", "<", ">=", ">"])


@pytest.fixture(autouse=True)
def fresh_ledger(monkeypatch):
    monkeypatch.setattr(claims, "_checked", {})
    monkeypatch.delenv("NCBOOK_CHAPTER", raising=False)


def claim(predicted=2.0, measured=2.0, *, id="frames-test", wrong=5.0, **changes):
    arguments = {
        "statement": "Two is two.",
        "source": "this book",
        "mistake": ("five in place of two", wrong),
        "why": "exact algebra",
    }
    return check(id, predicted, measured, **(arguments | changes))


def holds_by_definition(relation, predicted, measured, slack):
    return {
        "==": abs(measured - predicted) <= slack,
        "<=": predicted - measured + slack >= 0,
        "<": predicted - measured + slack > 0,
        ">=": measured - predicted + slack >= 0,
        ">": measured - predicted + slack > 0,
    }[relation]


# --- the relation and its margin ---------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(relations, finite, finite, slack_parts, st.floats(0, 2))
def test_a_claim_holds_exactly_when_its_relation_does(relation, predicted, measured, atol, rtol):
    claims._checked.clear()
    slack = atol + rtol * abs(predicted)
    expected = holds_by_definition(relation, predicted, measured, slack)
    wrong = measured + 1e12 if relation in ("==", ">=", ">") else measured - 1e12
    rtol_fits_the_mistake = rtol < 0.99
    if expected and rtol_fits_the_mistake:
        result = claim(predicted, measured, wrong=wrong, relation=relation, atol=atol, rtol=rtol)
        assert result.ok
        assert 0 <= result.margin <= 1
    elif not expected:
        with pytest.raises(ClaimFailed):
            claim(predicted, measured, wrong=wrong, relation=relation, atol=atol, rtol=rtol)
        (result,) = claims.checked()
        assert not result.ok
        assert MARGIN_FLOOR <= result.margin <= 0
    json.dumps([c.record() for c in claims.checked()], allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(finite, st.floats(1e-6, 1e3), st.floats(-3, 3))
def test_the_margin_of_an_equality_is_the_share_of_slack_left(predicted, atol, share):
    claims._checked.clear()
    measured = predicted + share * atol
    error = abs(measured - predicted)
    try:
        result = claim(predicted, measured, wrong=predicted + 1e9, atol=atol)
    except ClaimFailed:
        (result,) = claims.checked()
    assert result.margin == pytest.approx(1 - error / atol, rel=1e-12, abs=1e-12)
    assert result.tolerance.slack == atol


@pytest.mark.parametrize(
    ("relation", "predicted", "measured", "margin"),
    [
        ("<=", 1.0, 0.75, 0.25),  # a quarter below the bound
        (">=", 1.0, 4.0, 0.75),  # scaled by the larger of the two
        (">", 0.0, 0.3, 1.0),  # positive against zero: the best there is
        ("<=", 1.0, -9.0, 1.0),  # never above one
        ("<=", 0.0, 0.0, 0.0),  # met, with nothing left
    ],
)
def test_the_margin_of_an_inequality(relation, predicted, measured, margin):
    wrong = 100.0 if relation in (">=", ">") else -100.0
    assert claim(predicted, measured, wrong=wrong, relation=relation).margin == pytest.approx(margin)


@pytest.mark.parametrize("relation", ["<", ">"])
def test_strict_relations_refuse_equality(relation):
    with pytest.raises(ClaimFailed):
        claim(1.0, 1.0, wrong=1.0, relation=relation)


def test_without_slack_an_exact_hit_has_the_full_margin_and_a_miss_the_floor():
    exact = claim(7, 7, wrong=8)
    assert exact.margin == 1
    assert exact.mistake.margin == MARGIN_FLOOR


def test_arrays_report_their_worst_element():
    predicted = np.ones((3, 4))
    measured = predicted.copy()
    measured[1, 2] = 1.04
    measured[2, 0] = 0.99
    result = claim(predicted, measured, wrong=2.0, atol=0.05)
    assert (result.index, result.elements) == ((1, 2), 12)
    assert result.measured == 1.04
    assert result.margin == pytest.approx(0.2)
    with pytest.raises(ClaimFailed, match=r"1\.04.*worst of 12 numbers \(at index 1, 2\)"):
        claim(predicted, measured, wrong=2.0, atol=0.03)


def test_one_failing_element_is_the_worst_even_beside_equal_margins():
    with pytest.raises(ClaimFailed):
        claim(0.0, [0.0, 0.0, -1e-300], wrong=5.0, relation=">=")
    (result,) = claims.checked()
    assert result.index == (2,)


def test_the_relative_slack_follows_each_prediction():
    assert claim([1.0, 100.0], [1.0, 100.9], wrong=[1.0, 50.0], rtol=0.01).index == (1,)
    with pytest.raises(ClaimFailed):
        claim([1.0, 100.0], [1.9, 100.0], wrong=[1.0, 50.0], rtol=0.01)


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, [1.0, math.nan], torch.tensor(float("nan"), dtype=torch.float32)]
)
@pytest.mark.parametrize("relation", ["==", "<=", ">="])
def test_nan_and_infinity_fail(bad, relation):
    with pytest.raises(ClaimFailed):
        claim(0.0, bad, wrong=5.0, relation=relation, atol=1e300)
    with pytest.raises(ClaimFailed):
        claim(bad, np.zeros(2) if isinstance(bad, list) else 0.0, relation=relation, atol=1.0)
    record = claims.checked()[0].record()
    assert record["margin"] == MARGIN_FLOOR
    json.dumps(record, allow_nan=False)


def test_a_slack_that_overflows_does_not_pass():
    with pytest.raises(ClaimFailed):
        claim(1e308, 0.0, wrong=1.0, rtol=10.0)


@pytest.mark.parametrize(
    "measured",
    [
        torch.tensor([1.0, 2.0], dtype=torch.float32),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0], requires_grad=True),
        np.array([1, 2]),
        [torch.tensor(1.0), torch.tensor(2.0)],
        (1, 2.0),
    ],
)
def test_arrays_of_every_kind_are_accepted(measured):
    assert claim([1, 2], measured, wrong=[2, 2]).ok


def test_truth_values_compare_as_numbers():
    assert claim(True, np.array([True, True]), wrong=False).ok


# --- the mistake -------------------------------------------------------------------------------------


def test_a_tolerance_that_the_mistake_would_pass_is_refused():
    assert claim(1.0, 1.001, wrong=1.1, atol=0.05).mistake.margin < 0
    with pytest.raises(ClaimFailed, match="cannot tell the mistake apart"):
        claim(1.0, 1.001, wrong=1.1, atol=0.2)
    assert not claims.checked()[0].ok
    assert claims.checked()[0].holds


def test_the_mistake_faces_the_larger_of_the_two_slacks():
    # with its own slack, rtol·0 = 0, the mistake would be rejected; yet the claim allows all of [0, 2]
    with pytest.raises(ClaimFailed, match="cannot tell"):
        claim(1.0, 1.0, wrong=0.0, rtol=1.0)


def test_a_mistake_in_the_wrong_direction_of_a_bound_is_not_rejected():
    with pytest.raises(ClaimFailed, match="cannot tell"):
        claim(1.0, 0.5, wrong=2.0, relation="<=")
    assert claim(1.0, 0.5, wrong=0.25, relation="<=", id="frames-bound").ok


def test_a_mistake_needs_to_fail_in_one_element_only():
    result = claim([1.0, 2.0], [1.0, 2.0], wrong=[1.0, 3.0], atol=0.1)
    assert result.mistake.predicted == 3.0
    assert result.mistake.margin == pytest.approx(-9.0)


@settings(deadline=None, max_examples=60)
@given(finite, st.floats(0, 10), st.floats(-20, 20))
def test_equality_rejects_exactly_the_mistakes_outside_the_slack(value, atol, shift):
    claims._checked.clear()
    wrong = value + shift
    if abs(value - wrong) > atol:
        assert claim(value, value, wrong=wrong, atol=atol).mistake.margin < 0
    else:
        with pytest.raises(ClaimFailed):
            claim(value, value, wrong=wrong, atol=atol)


# --- arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"statement": " "}, "statement must be a non-empty text"),
        ({"source": ""}, "source"),
        ({"why": None}, "why"),
        ({"id": ""}, "id"),
        ({"id": "Frames Rankin"}, "id must be lower-case"),
        ({"id": "frames--rankin"}, "id must be lower-case"),
        ({"relation": "~"}, "relation must be one of"),
        ({"atol": -1e-9}, "atol must be a finite number that is not negative"),
        ({"rtol": math.nan}, "rtol"),
        ({"rtol": math.inf}, "rtol"),
        ({"atol": "1"}, "atol"),
        ({"predicted": 1j}, "predicted must hold real numbers"),
        ({"measured": torch.tensor([1j])}, "measured must hold real numbers"),
        ({"measured": "2"}, "measured must hold real numbers"),
        ({"measured": None}, "measured must hold real numbers"),
        ({"measured": []}, "measured must hold at least one number"),
        ({"measured": np.ones((2, 0))}, "measured must hold at least one number"),
        ({"measured": [[1.0], [1.0, 2.0]]}, "measured must be a rectangular array"),
        ({"predicted": [1.0, 2.0]}, "predicted must have the shape of measured"),
        ({"predicted": np.ones((2, 1)), "measured": np.ones(2)}, "predicted must have the shape"),
        ({"measured": np.ones(2), "wrong": np.ones(3)}, "mistake must have the shape of measured"),
        ({"wrong": math.nan}, "prediction of the mistake must be finite"),
        ({"wrong": math.inf}, "prediction of the mistake must be finite"),
        ({"mistake": "a dropped n"}, "mistake must be a pair"),
        ({"mistake": ("a dropped n",)}, "mistake must be a pair"),
        ({"mistake": ("", 3.0)}, "words of mistake"),
    ],
)
def test_bad_arguments_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        claim(**changes)
    assert claims.checked() == []


def test_a_claim_cannot_be_made_without_a_mistake():
    with pytest.raises(TypeError, match="mistake"):
        check("frames-test", 1.0, 1.0, statement="One is one.", source="this book", why="exact algebra")


def test_the_same_cell_may_run_again_but_an_id_has_one_statement():
    claim(2.0, 2.0)
    claim(2.0, 2.0 + 1e-12, atol=1e-10)
    assert [c.measured for c in claims.checked()] == [2.0 + 1e-12]
    with pytest.raises(ValueError, match="already stands for another statement"):
        claim(2.0, 2.0, statement="Three is three.")


# --- record and display ------------------------------------------------------------------------------


def test_the_record_survives_json_with_the_keys_of_the_ledger(monkeypatch):
    monkeypatch.setenv("NCBOOK_CHAPTER", "book/collapse/03_frames")
    result = claim(torch.eye(2), np.eye(2) + 1e-12, wrong=torch.ones(2, 2), atol=1e-10)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert record == result.record()
    ledger = ["id", "chapter", "statement", "source", "predicted", "measured", "relation", "tolerance"]
    ledger += ["reason", "margin", "mistake", "ok"]
    assert list(record)[: len(ledger)] == ledger
    assert record["chapter"] == "book/collapse/03_frames"
    assert set(record["tolerance"]) == {"atol", "rtol", "slack"}
    assert set(record["mistake"]) == {"words", "predicted", "margin"}
    assert record["reason"] == "exact algebra"
    assert record["ok"] is True


def test_outside_a_notebook_nothing_is_printed(capsys):
    claim()
    claims.glue("frames-number", 1.0)
    assert capsys.readouterr().out == ""


def test_the_table_as_text(capsys):
    claim()
    claims.table()
    out = capsys.readouterr().out
    assert "Claims checked: 1; holding: 1." in out
    assert "Two is two." in out


@pytest.mark.parametrize(
    ("name", "value", "format", "words"),
    [
        ("two words", 1.0, "{}", "name"),
        ("a:b", 1.0, "{}", "name"),
        ("x", math.nan, "{}", "finite"),
        ("x", torch.ones(2), "{}", "one number"),
        ("x", 1.0, "{:d}", "format"),
        ("x", 1.0, "{key}", "format"),
    ],
)
def test_glue_refuses_what_would_spoil_the_prose(name, value, format, words):
    with pytest.raises(ValueError, match=words):
        claims.glue(name, value, format)


NOTEBOOK = [
    """
from ncbook import claims
common = dict(source="this book", mistake=("a <lost> sign", 3.0), why="exact algebra")
claims.check("frames-first", -3.0, -3.0, statement="A & B are < 0", **common)
""",
    """
try:
    claims.check("frames-second", -3.0, float("nan"), statement="NaN fails", **common)
except claims.ClaimFailed as failure:
    print(failure)
""",
    'claims.glue("frames-number", 0.1, "{:.2f}")',
    "claims.table()",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in NOTEBOOK])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute(
        cwd=str(tmp_path_factory.mktemp("notebook"))
    )
    nbformat.validate(notebook)
    return [cell.outputs for cell in notebook.cells]


def test_a_notebook_shows_each_claim_once_with_its_record(executed):
    (output,) = executed[0]
    assert output.output_type == "display_data"
    record = output.data[claims.CLAIM_MIME]
    assert record["id"] == "frames-first"
    assert record["ok"] is True
    assert "A &amp; B are &lt; 0." in output.data["text/html"]
    assert "a &lt;lost&gt; sign" in output.data["text/html"]
    assert output.data["text/plain"].startswith("✓ Claim frames-first holds")


def test_a_failing_claim_is_shown_before_it_raises(executed):
    shown, printed = executed[1]
    assert shown.data[claims.CLAIM_MIME]["ok"] is False
    assert shown.data[claims.CLAIM_MIME]["measured"] == "nan"
    assert "✗ Claim frames-second fails" in printed.text


def test_glue_says_the_number_in_a_live_notebook_and_nothing_on_the_site(executed, monkeypatch):
    (output,) = executed[2]
    assert output.data["text/plain"] == "⟨frames-number⟩ = 0.10"
    shown = []
    monkeypatch.setattr(claims, "_display", lambda bundle, metadata: shown.append(bundle))
    monkeypatch.setenv("NCBOOK_STATIC", "1")
    claims.glue("frames-number", 0.1, "{:.2f}")
    assert "text/plain" not in shown[0]


def test_glue_publishes_what_myst_nb_collects(executed):
    (output,) = executed[2]
    assert output.metadata["scrapbook"]["name"] == "frames-number"
    prefix = output.metadata["scrapbook"]["mime_prefix"]
    assert f"{prefix}text/plain" in output.data
    glue = pytest.importorskip("myst_nb.ext.glue")
    variables = pytest.importorskip("myst_nb.core.variables")
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(json.loads(json.dumps(output)))])
    ((key, found),) = glue.extract_glue_data_cell(cell)
    assert key == "frames-number"
    assert variables.format_plain_text(found["data"]["text/plain"], "s") == "0.10"


def test_the_table_is_accessible(executed):
    (output,) = executed[3]
    page = output.data["text/html"]
    assert page.count('scope="col"') == 7
    assert page.count('scope="row"') == 2
    assert "<caption" in page
    assert 'tabindex="0"' in page
    assert "overflow-x:auto" in page
    assert "2; holding: 1." in page
    assert "nan" in page
