"""The experiment of the noisy labels: its cases, its numbers, and a miniature run."""

import math

import numpy as np
import pytest
import torch

from ncbook import experiments
from ncbook.experiments import noisy_labels as study
from ncbook.experiments.noisy_labels import Case
from ncbook.memorization_dilation.measured import measure_memorization

TINY = study.SETTINGS["digits"]._replace(per_class=30, width=32, d=16, epochs=12)


@pytest.fixture(scope="module")
def trained():
    cases = [Case(loss, noise, 5) for loss in study.LOSSES for noise in (0.0, 0.2)]
    return cases, *study.train_cases(TINY, cases)


@pytest.fixture(scope="module")
def record():
    changes = {"settings": ["tiny"], "noises": [0.0, 0.2, 0.4], "seeds": [3, 4]}
    study.SETTINGS["tiny"] = TINY._replace(epochs=4)
    try:
        yield experiments.run("noisy-labels", "quick", **changes)
    finally:
        del study.SETTINGS["tiny"]


def test_every_number_of_every_case_is_recorded(record):
    results = record.results["tiny"]
    assert list(results) == list(study.LOSSES)
    for loss in results.values():
        assert list(loss) == list(study.MEASURED)
        for name, values in loss.items():
            assert np.shape(values) == (3, 2)
            if name == "memorised":
                assert values[0] == [None, None]
                assert all(0 <= x <= 1 for row in values[1:] for x in row)
            else:
                assert all(math.isfinite(x) for row in values for x in row)
        assert loss["displacement"][0] == [0, 0]
        assert all(x > 0 for x in loss["displacement"][1])


def test_rows_are_noise_rates_and_columns_seeds(record):
    rates = [0.0, 0.2, 0.4]
    cases = [Case("CE", rate, 4) for rate in rates]
    nets, train, test, _ = study.train_cases(TINY._replace(epochs=4), cases)
    found = [row["accuracy"] for row in study.measure_all(nets, train, test)]
    recorded = [row[1] for row in record.results["tiny"]["CE"]["accuracy"]]
    # batches of another size may round differently: one of 597 images may flip
    assert np.abs(np.array(found) - recorded).max() < 0.01


def test_losses_and_seeds_change_the_run(record):
    ends = [x for loss in record.results["tiny"].values() for x in loss["distance"][1]]
    assert len(set(ends)) == 8


def test_a_record_names_the_data():
    found = experiments.find("noisy-labels").data({"settings": ["digits", "fashion"]})
    assert "120 training images" in found["note"]
    assert "fashion-mnist" in found["note"]
    assert len(found["sha256"].split(", ")) == 2


def test_cases_of_one_seed_share_labels_and_weights():
    cases = [Case("CE", 0.2, 1), Case("squared", 0.2, 1), Case("CE", 0.4, 1), Case("CE", 0.2, 2)]
    train, test = study.load_noisy(TINY, cases)
    assert torch.equal(train[0].labels, train[1].labels)
    assert not torch.equal(train[0].labels, train[3].labels)
    assert all(data.images is train[0].images for data in train)
    assert [int(data.noisy.sum()) for data in train] == [60, 60, 120, 60]
    assert not test.noisy.any()


def test_numbers_are_those_of_each_network_by_itself(trained):
    cases, nets, train, test, _ = trained
    rows = study.measure_all(nets, train, test)
    for i in (0, 3, 7):
        with torch.no_grad():
            h, g = nets[i].features(train[i].images), nets[i].features(test.images)
            found = measure_memorization(
                h,
                train[i].labels,
                train[i].true_labels,
                g,
                test.labels,
                predictions=nets[i].head(h).argmax(1),
                test_predictions=nets[i].head(g).argmax(1),
            )
        for name in study.MEASURED:
            expected = getattr(found, name)
            if expected is None:
                assert rows[i][name] is None
            else:
                assert rows[i][name] == pytest.approx(expected, rel=1e-4)
    assert cases[0].noise == 0
    assert rows[0]["memorised"] is None


def test_noise_costs_accuracy_under_cross_entropy(trained):
    cases, nets, train, test, _ = trained
    rows = dict(zip(cases, study.measure_all(nets, train, test), strict=True))
    clean, noisy = rows[Case("CE", 0.0, 5)], rows[Case("CE", 0.2, 5)]
    assert clean["accuracy"] > 0.93
    assert noisy["accuracy"] < clean["accuracy"] - 0.02
    assert noisy["dilation"] > 1.1 * clean["dilation"]
    assert rows[Case("α = 0.3", 0.2, 5)]["displacement"] < noisy["displacement"]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="cases"):
        study.train_cases(TINY, [])
    with pytest.raises(ValueError, match="hinge"):
        study.train_cases(TINY, [Case("hinge", 0.1, 0)])
    with pytest.raises(ValueError, match="cifar"):
        experiments.run("noisy-labels", "quick", settings=["cifar"])
