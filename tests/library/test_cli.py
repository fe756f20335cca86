"""The command line: what it prints, the codes it ends with, and what an interruption leaves."""

import json
import os
import subprocess
import sys

import pytest

from ncbook import experiments
from ncbook.__main__ import main

SMALL = ["--set", "points=3", "--set", "seeds=2"]


@pytest.fixture(autouse=True)
def usual_seeds(monkeypatch):
    monkeypatch.delenv("NCBOOK_SEED", raising=False)


def run(path, *words):
    return main(["run", "squared-loss-threshold", "--out", str(path), *SMALL, *words])


def test_list_names_the_experiments_and_their_arguments(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "squared-loss-threshold" in out
    assert "quick: K=4" in out
    assert "full: K=10" in out


def test_run_and_show(tmp_path, capsys):
    path = tmp_path / "run.json"
    assert run(path, "--set", "K=3") == 0
    out = capsys.readouterr().out
    assert "seed 0" in out
    assert "seed 1" in out
    record = json.loads(path.read_text())
    assert record["profile"] == "quick"
    assert record["arguments"]["K"] == 3
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert 'arguments: {"K": 3' in out
    assert "predicted:" in out


def test_long_results_are_cut_and_counted(tmp_path, capsys):
    path = tmp_path / "run.json"
    words = ["--set", "points=9", "--set", "seeds=1"]
    assert main(["run", "squared-loss-threshold", "--out", str(path), *words]) == 0
    assert main(["show", str(path)]) == 0
    assert "(9 entries)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "nothing", "--out", "{}/a.json"], 2, "no experiment is named 'nothing'"),
        (["run", "squared-loss-threshold", "--out", "{}/a.txt"], 2, "must end in .json"),
        (["run", "squared-loss-threshold", "--out", "{}/no/a.json"], 1, "does not exist"),
        (["run", "squared-loss-threshold", "--out", "{}/a.json", "--set", "M=1"], 2, "no argument 'M'"),
        (["run", "squared-loss-threshold", "--out", "{}/a.json", "--set", "K=big"], 2, "must be of type int"),
        (["run", "squared-loss-threshold", "--out", "{}/a.json", *SMALL, *SMALL], 2, "twice"),
        (["show", "{}/none.json"], 1, "No such file"),
        (["show", "{}"], 1, "Is a directory"),
        (["show", "{}/broken.json"], 1, "broken.json is broken"),
    ],
)
def test_errors_are_one_line_with_a_code(tmp_path, capsys, words, code, message):
    (tmp_path / "broken.json").write_text("{")
    assert main([word.replace("{}", str(tmp_path)) for word in words]) == code
    error = capsys.readouterr().err
    assert error.startswith("ncbook: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_existing_file_is_left_alone(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text("precious")
    assert run(path) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert path.read_text() == "precious"


@pytest.mark.parametrize("words", [[], ["fly"], ["run"], ["run", "x"], ["show"]])
def test_wrong_use_shows_the_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["K", "=3"])
def test_a_setting_needs_key_and_value(tmp_path, capsys, setting):
    with pytest.raises(SystemExit):
        run(tmp_path / "run.json", "--set", setting)
    assert "KEY=VALUE" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    path = tmp_path / "run.json"
    sweep = experiments.threshold._sweep

    def interrupted(model, points, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return sweep(model, points, seed)

    with monkeypatch.context() as patch:
        patch.setattr(experiments.threshold, "_sweep", interrupted)
        assert run(path) == 130
    error = capsys.readouterr().err
    assert "run.partial.json" in error
    assert "the same command goes on" in error
    assert run(path) == 0
    assert "seed 0: kept from before" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_an_interruption_before_the_first_piece(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.threshold, "_sweep", interrupted)
    assert run(tmp_path / "run.json") == 130
    assert "nothing was finished" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_runs_as_a_module():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "ncbook", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    )
    assert "squared-loss-threshold" in done.stdout
    assert done.stderr == ""
