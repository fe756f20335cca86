"""Experiments: records that are whole or not there, runs that go on when interrupted, one that is real."""

import dataclasses
import json
import math
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import experiments
from ncbook.experiments import BrokenFile, _record, _registry, _run, experiment, run, run_to_file

SIZES = {"terms": 3, "scale": 1.0, "word": "plain", "seeds": 2}
KEYS = ["experiment", "profile", "arguments", "seeds", "commit", "device", "torch", "seconds", "date"]
KEYS += ["data", "results"]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(_registry, "_registry", dict(_registry._registry))
    for name in ("NCBOOK_RUNS", "NCBOOK_SEED"):
        monkeypatch.delenv(name, raising=False)


def register(function, name="a-test", **changes):
    return experiment(name, "A test.", **({"quick": SIZES, "full": SIZES} | changes))(function)


class Pieces:
    """An experiment in pieces that counts its work and can be interrupted before a piece."""

    def __init__(self):
        self.worked = []
        self.stop_at = None
        self.__qualname__ = "pieces"

    def work(self, term, scale):
        if term == self.stop_at:
            raise KeyboardInterrupt
        self.worked.append(term)
        return {"value": torch.tensor(scale * term / 3), "pair": (term, np.float64(0.1))}

    def __call__(self, terms, scale, word, seeds):
        pieces = []
        for term in range(terms):
            piece = yield f"term {term}", lambda term=term: self.work(term, scale)
            assert isinstance(piece["pair"], list)  # the same kind whether fresh or read back
            pieces.append(piece)
        return {"values": [piece["value"] for piece in pieces], "pairs": [piece["pair"] for piece in pieces]}


@pytest.fixture
def pieces():
    made = Pieces()
    register(made)
    return made


# --- the record --------------------------------------------------------------------------------------


def test_a_record_has_exactly_the_keys_and_survives_its_file(tmp_path, pieces):
    path = tmp_path / "run.json"
    record = run_to_file("a-test", "quick", path, {"scale": 2})
    content = json.loads(path.read_text())
    assert list(content) == KEYS
    assert content["arguments"] == {"terms": 3, "scale": 2.0, "word": "plain"}
    assert content["seeds"] == [0, 1]
    assert set(content["data"]) == {"name", "sha256", "note"}
    assert datetime.fromisoformat(content["date"]).tzinfo is not None
    assert content["torch"] == torch.__version__
    assert experiments.read_record(path) == record
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_results_are_plain_numbers():
    register(lambda **_: {"t": torch.ones(2), "n": np.arange(2), "nothing": None, "deep": {"yes": True}})
    assert run("a-test", "quick").results == {
        "t": [1, 1],
        "n": [0, 1],
        "nothing": None,
        "deep": {"yes": True},
    }


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"x": [1.0, math.nan]}, r"results\.x\[1\] must be finite"),
        ({"x": torch.tensor(math.inf)}, r"results\.x must be finite"),
        ({"x": "text"}, r"results\.x must hold plain numbers, got str"),
        ({"x": 1j}, r"results\.x must hold plain numbers, got complex"),
        ({"x": {1: 2}}, "keys of results.x must be texts"),
        ([1.0], "dictionary of results"),
    ],
)
def test_results_that_are_no_plain_numbers_are_named(results, words):
    register(lambda **_: results)
    with pytest.raises(ValueError, match=words):
        run("a-test", "quick")


EMPTY = experiments.Record("a", "quick", {}, [0], "c", "cpu", "2", 1.0, "now", dict(_registry.NO_DATA), {})
numbers = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
nested = st.recursive(
    numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), nested))
def test_any_plain_results_round_trip_exactly(results):
    record = dataclasses.replace(EMPTY, results=results)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        path.write_text(record.to_json(), encoding="utf-8")
        assert experiments.read_record(path) == record


def test_data_are_noted():
    note = {"name": "digits", "sha256": "0" * 64, "note": "bundled"}
    register(lambda **_: {}, data=lambda arguments: note | {"note": f"{arguments['terms']} images"})
    assert run("a-test", "quick", terms=7).data == note | {"note": "7 images"}
    register(lambda **_: {}, name="another", data=lambda arguments: {"name": "digits"})
    with pytest.raises(ValueError, match="must have name, sha256 and note"):
        run("another", "quick")


# --- writing -----------------------------------------------------------------------------------------


def test_a_recorded_run_is_never_overwritten(tmp_path, pieces):
    path = tmp_path / "run.json"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"run\.json exists"):
        run_to_file("a-test", "quick", path)
    assert path.read_text() == "precious"
    assert pieces.worked == []  # refused before the work, not after


def test_a_file_that_appears_during_the_run_is_not_overwritten(tmp_path):
    path = tmp_path / "run.json"

    def slow(**_):
        path.write_text("precious")
        return {"x": 1}

    register(slow)
    with pytest.raises(FileExistsError):
        run_to_file("a-test", "quick", path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_nothing_half_written(tmp_path, monkeypatch, pieces, step):
    path = tmp_path / "run.json"

    def crash(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(_record.os, step, crash)
        with pytest.raises(OSError, match="disk is full"):
            _record.write_new(path, "content")
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(_record.os, step, crash)
        with pytest.raises(OSError, match="disk is full"):
            _record.write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [("run.txt", ValueError, "must end in .json"), ("no/run.json", FileNotFoundError, "does not exist")],
)
def test_a_bad_path_is_refused_before_the_work(tmp_path, pieces, path, error, words):
    with pytest.raises(error, match=words):
        run_to_file("a-test", "quick", tmp_path / path)
    assert pieces.worked == []


# --- going on ----------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_finds_the_same(tmp_path, pieces):
    path, told = tmp_path / "run.json", []
    whole = run("a-test", "quick", terms=4)
    pieces.worked.clear()
    pieces.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_to_file("a-test", "quick", path, {"terms": 4})
    assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run.partial.json"]
    pieces.stop_at = None
    record = run_to_file(
        "a-test", "quick", path, {"terms": 4}, report=lambda name, _, known: told.append((name, known))
    )
    assert pieces.worked == [0, 1, 2, 3]  # no piece twice
    assert told == [("term 0", True), ("term 1", True), ("term 2", False), ("term 3", False)]
    assert record.results == whole.results
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_the_time_before_an_interruption_counts(tmp_path, monkeypatch, pieces):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(_run.time, "perf_counter", lambda: float(next(clock)))
    pieces.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_to_file("a-test", "quick", tmp_path / "run.json")
    before = json.loads((tmp_path / "run.partial.json").read_text())["seconds"]
    assert before > 0
    pieces.stop_at = None
    assert run_to_file("a-test", "quick", tmp_path / "run.json").seconds > before


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"scale": 3.0}, "arguments"), ({"seeds": [5]}, "seeds"), ({"profile": "full"}, "profile")],
)
def test_a_partial_run_of_something_else_is_not_mixed_in(tmp_path, pieces, changes, word):
    pieces.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_to_file("a-test", "quick", tmp_path / "run.json")
    kept = (tmp_path / "run.partial.json").read_text()
    arguments = dict(changes)
    with pytest.raises(BrokenFile, match=rf"run\.partial\.json belongs to another run: {word}"):
        run_to_file("a-test", arguments.pop("profile", "quick"), tmp_path / "run.json", arguments)
    assert (tmp_path / "run.partial.json").read_text() == kept


def test_a_partial_run_of_another_commit_is_not_mixed_in(tmp_path, monkeypatch, pieces):
    pieces.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_to_file("a-test", "quick", tmp_path / "run.json")
    monkeypatch.setattr(_run, "_commit", lambda: "another")
    with pytest.raises(BrokenFile, match="commit"):
        run_to_file("a-test", "quick", tmp_path / "run.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"run": 1, "pieces": {}, "seconds": 1}', "\x00"])
def test_a_broken_partial_file_is_named(tmp_path, pieces, content):
    (tmp_path / "run.partial.json").write_text(content)
    with pytest.raises(BrokenFile, match=r"run\.partial\.json is broken"):
        run_to_file("a-test", "quick", tmp_path / "run.json")


def test_two_pieces_of_one_name_are_refused():
    def twice(**_):
        yield "same", lambda: 1
        yield "same", lambda: 2
        return {}

    register(twice)
    with pytest.raises(ValueError, match="two pieces of the experiment are named 'same'"):
        run("a-test", "quick")


# --- arguments ---------------------------------------------------------------------------------------


def test_seeds_are_counted_from_the_base_seed(monkeypatch, pieces):
    monkeypatch.setenv("NCBOOK_SEED", "7")
    assert run("a-test", "quick", seeds=3).seeds == [7, 8, 9]
    assert run("a-test", "quick", seeds=[4, 2]).seeds == [4, 2]


@pytest.mark.parametrize(
    ("profile", "arguments", "words"),
    [
        ("large", {}, "profile must be one of quick, full"),
        ("quick", {"K": 3}, "no argument 'K', it takes terms, scale, word, seeds"),
        ("quick", {"terms": 1.5}, "argument terms must be of type int"),
        ("quick", {"terms": True}, "argument terms must be of type int"),
        ("quick", {"scale": "1"}, "argument scale must be of type float"),
        ("quick", {"scale": math.nan}, "argument scale must be finite"),
        ("quick", {"word": 1}, "argument word must be of type str"),
        ("quick", {"seeds": 0}, "seeds must be a positive number"),
        ("quick", {"seeds": [1, 1]}, "seeds must be a positive number"),
        ("quick", {"seeds": [-1]}, "seeds must be a positive number"),
        ("quick", {"seeds": [0.5]}, "seeds must be a positive number"),
        ("quick", {"seeds": "0"}, "seeds must be a positive number"),
    ],
)
def test_bad_arguments_are_named(pieces, profile, arguments, words):
    with pytest.raises(ValueError, match=words):
        run("a-test", profile, **arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "A Test"}, "name must be lower-case"),
        ({"name": "squared-loss-threshold"}, "exists already"),
        ({"quick": {"seeds": 1, "n": 1}}, "must have the same arguments"),
        ({"quick": {"n": 1}, "full": {"n": 1}}, "seeds among them"),
    ],
)
def test_an_experiment_is_registered_properly(changes, words):
    with pytest.raises(ValueError, match=words):
        register(lambda **_: {}, **changes)


def test_an_unknown_experiment_is_named():
    for call in (lambda: run("nothing", "quick"), lambda: experiments.recorded("nothing")):
        with pytest.raises(ValueError, match=r"no experiment is named 'nothing'; there are .*threshold"):
            call()


# --- recorded runs -----------------------------------------------------------------------------------


def test_recorded_runs_are_looked_for_in_order(tmp_path, monkeypatch, pieces):
    package, chosen = tmp_path / "repository" / "ncbook", tmp_path / "chosen"
    monkeypatch.setattr("ncbook.experiments._recorded._PACKAGE", package)
    places = [package / "runs", tmp_path / "repository" / "book" / "runs", chosen]
    assert experiments.recorded("a-test") is None
    for scale, place in enumerate(places, start=1):
        place.mkdir(parents=True)
        run_to_file("a-test", "full", place / "a-test.full.json", {"scale": float(scale)})
        if place == chosen:
            monkeypatch.setenv("NCBOOK_RUNS", str(chosen))
        assert experiments.recorded("a-test").arguments["scale"] == scale
    assert experiments.recorded("a-test", "quick") is None


def test_a_missing_run_comes_with_places_and_command(tmp_path, monkeypatch, pieces):
    monkeypatch.setenv("NCBOOK_RUNS", str(tmp_path))
    text = experiments.how_to_record("a-test")
    for words in (
        str(tmp_path),
        "book/runs",
        "a-test.full.json",
        "python -m ncbook run a-test --profile full",
    ):
        assert words in text
    monkeypatch.setenv("NCBOOK_RUNS", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="NCBOOK_RUNS must name a folder"):
        experiments.recorded("a-test")


def broken_versions():
    good = {
        **dict.fromkeys(("commit", "device", "torch", "date"), "x"),
        "experiment": "a-test",
        "profile": "full",
        "arguments": {},
        "seeds": [0],
        "seconds": 1.0,
        "data": {},
        "results": {"x": 1},
    }
    yield good | {"profile": "quick"}, "records the quick run"
    yield good | {"experiment": "another"}, "records the full run of 'another'"
    yield good | {"results": {"x": "text"}}, "plain numbers"
    yield good | {"results": [1]}, "results is"
    yield good | {"note": "more"}, "unknown: .'note'"
    yield {key: value for key, value in good.items() if key != "commit"}, "keys missing: .'commit'"


@pytest.mark.parametrize(("content", "words"), list(broken_versions()))
def test_a_broken_record_is_named(tmp_path, monkeypatch, pieces, content, words):
    monkeypatch.setenv("NCBOOK_RUNS", str(tmp_path))
    path = tmp_path / "a-test.full.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BrokenFile, match=words) as caught:
        experiments.recorded("a-test")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [b"", b'{"seconds": NaN}', b"\xff\xfe", b"[1]", b'{"experiment": "a-t'])
def test_a_torn_record_is_named(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_bytes(text)
    with pytest.raises(BrokenFile, match=r"run\.json is broken"):
        experiments.read_record(path)


# --- the experiment of the book ----------------------------------------------------------------------


def test_the_threshold_experiment_meets_the_closed_form_and_rejects_others():
    results = run("squared-loss-threshold", "quick", seeds=2).results
    q, predicted = np.array(results["q"]), np.array(results["predicted"])
    largest, smallest = np.array(results["largest"]), np.array(results["smallest"])
    assert q.min() < 1 < q.max()
    assert results["converged"] == 1
    assert np.array(results["loss"]) == pytest.approx(np.tile(results["predicted_loss"], (2, 1)), abs=1e-10)
    # the least curvature of the sweep, at the q next to 1, is 5e-3: a gradient of 1e-10 leaves some 2e-8
    below = q < 1
    for measured in (largest, smallest):
        assert np.abs(measured - predicted).max() < 1e-7
        assert (measured[:, below] > 0.1).all()
        assert (measured[:, ~below] < 1e-7).all()
    n, ratio = 5, 4.0
    without_n = np.sqrt(np.sqrt(ratio) * np.clip(1 - q, 0, None))
    without_ratio = predicted / ratio**0.25
    for wrong in (without_n, without_ratio, predicted / math.sqrt(2)):
        assert np.abs(largest - wrong).max() > 0.1
    assert predicted[0] == pytest.approx(math.sqrt(2 * math.sqrt(n) * (1 - q[0])))


def test_too_narrow_features_leave_directions_out():
    narrow = run("squared-loss-threshold", "quick", d=2, seeds=1).results
    assert np.abs(np.array(narrow["smallest"]) - narrow["predicted"]).max() < 1e-7
    assert narrow["predicted_loss"][0] > run("squared-loss-threshold", "quick", seeds=1).results["loss"][0][0]


@pytest.mark.parametrize("changes", [{"points": 0}, {"q_max": -1.0}, {"ratio": 0.0}, {"K": 0}])
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(ValueError, match="must be"):
        run("squared-loss-threshold", "quick", **changes)
