"""The ablation on Fashion-MNIST: a miniature run, its clock, and what its numbers must satisfy."""

import math

import pytest

from ncbook import experiments
from ncbook.experiments import _run
from ncbook.experiments.ablation import SETTINGS, clock
from ncbook.trainers import TrainConfig

SIZES = {"per_class": 20, "width": 24, "epochs": 20, "batch_size": 100, "points": 2, "seeds": [0, 1]}


@pytest.fixture(scope="module")
def record():
    return experiments.run("fashion-ablation", "quick", **SIZES)


def test_every_setting_is_measured_for_every_seed(record):
    assert list(record.results) == list(SETTINGS)
    for found in record.results.values():
        assert found["epochs"] == [0, 10, 20]
        assert [len(curve) for curve in found["nc1"]] == [3, 3]
        for name in ("final", "test_cdnv", "train_accuracy", "test_accuracy", "interpolation_epoch"):
            assert len(found[name]) == 2
        for key in ("nc1", "nc2_etf", "nc3", "nc4"):
            assert all(math.isfinite(final[key]) for final in found["final"])
        assert [final["nc1"] for final in found["final"]] == [curve[-1] for curve in found["nc1"]]


def test_seeds_and_settings_change_the_run(record):
    curves = [tuple(curve) for found in record.results.values() for curve in found["nc1"]]
    assert len(set(curves)) == len(curves)
    # one network for all settings with normalisation and true labels: the first point is before training
    starts = {found["nc1"][0][0] for name, found in record.results.items() if "normal" not in name}
    assert len(starts) == 2  # the true labels and the random ones


def test_the_objective_is_above_its_floor_and_only_where_the_last_block_decays(record):
    for name, found in record.results.items():
        decays = found["weight_decay"] > 0 and "normalisation" not in name and "matrices" not in name
        for objective, wrong in zip(found["objective"], found["wrong_class"], strict=True):
            assert (objective is not None) == (wrong is not None) == decays
            if decays:
                least = found["weight_decay"] / 3  # λ/√(K−1)
                floor = -(1 - 9 * least) * math.log(1 - 9 * least) - 9 * least * math.log(least)
                assert floor < objective
                assert 0 < wrong < 1 / 9


def test_random_labels_stay_at_chance(record):
    assert max(record.results["random labels"]["test_accuracy"]) < 0.35
    assert min(record.results["reference"]["test_accuracy"]) > 0.5


def test_settings_change_what_they_say(record):
    last = {name: [curve[-1] for curve in found["nc1"]] for name, found in record.results.items()}
    for seed in range(2):  # four seeds gave ratios of 5.6 to 18
        assert last["no normalisation"][seed] > 3 * last["reference"][seed]
    clocks = {name: found["clock"] for name, found in record.results.items()}
    assert clocks["decay 0"] == 0
    assert clocks["step schedule"] < clocks["reference"] < clocks["constant rate"]
    assert math.isclose(clocks["decay 0.05"], 5 * clocks["reference"])


def test_a_record_names_the_data(record):
    assert record.data["name"] == "fashion-mnist"
    assert len(record.data["sha256"]) == 64
    assert "20 training images" in record.data["note"]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    sizes = SIZES | {"per_class": 4, "epochs": 2, "width": 8, "points": 1, "seeds": [0]}
    monkeypatch.setattr("ncbook.experiments.ablation.SETTINGS", dict(list(SETTINGS.items())[:3]))
    path, known = tmp_path / "run.json", []
    monkeypatch.setattr(_run, "write_new", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        experiments.run_to_file("fashion-ablation", "quick", path, sizes)
    monkeypatch.undo()
    monkeypatch.setattr("ncbook.experiments.ablation.SETTINGS", dict(list(SETTINGS.items())[:3]))
    experiments.run_to_file("fashion-ablation", "quick", path, sizes, lambda *piece: known.append(piece[2]))
    assert known == [True] * 3
    assert experiments.read_record(path).results["decay 0"]["clock"] == 0


def test_the_clock_is_the_sum_of_the_decay_rates():
    config = TrainConfig(epochs=30, batch_size=100, lr=0.1, weight_decay=0.01, momentum=0.5)
    steps = [0.1 * config.rate_factor(step / 90) for step in range(90)]
    assert math.isclose(clock(config, 250), sum(steps) * 0.01 / 0.5)
    constant = TrainConfig(epochs=30, batch_size=None, lr=0.1, weight_decay=0.01, schedule="constant")
    assert math.isclose(clock(constant, 250), 30 * 0.1 * 0.01 / (1 - 0.9))
    dropped = TrainConfig(
        epochs=30, batch_size=100, lr=0.1, weight_decay=0.01, schedule="constant", drop_last=True
    )
    assert math.isclose(clock(dropped, 250), 60 * 0.1 * 0.01 / (1 - 0.9))


@pytest.mark.parametrize(
    ("config", "samples", "named"),
    [(TrainConfig(epochs=1, optimiser="adam"), 10, "config"), (TrainConfig(epochs=1), 0, "samples")],
)
def test_the_clock_refuses_what_it_does_not_describe(config, samples, named):
    with pytest.raises(ValueError, match=named):
        clock(config, samples)


@pytest.mark.parametrize(("changes", "named"), [({"points": 0}, "points"), ({"per_class": 0}, "per_class")])
def test_bad_sizes_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        experiments.run("fashion-ablation", "quick", **(SIZES | changes))
