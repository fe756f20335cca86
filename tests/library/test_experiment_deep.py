"""The experiments of the deep model: phase diagrams, searches below collapse, deep heads on images."""

import math

import numpy as np
import pytest
import torch

from ncbook import datasets, dufm, experiments
from ncbook.experiments import deep_heads, deep_phases
from ncbook.solvers import minimise

TINY = {"tiny": {"K": 2, "L": [2, 3], "width": [4, 6, 8], "decay": 5e-3, "scale": 1.0}}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", per_class=4)


@pytest.fixture(scope="module")
def trained(digits):
    return deep_heads.train_deep_heads(digits, width=14, seeds=[0, 1], body=24, steps=150)


# ---- mean ranks of a phase diagram


def hand_made():
    kind = torch.tensor([[0, 1, 1, 3], [0, 0, 0, 0]])
    ranks = torch.tensor([[[3, 2], [2, 1], [2, 3], [1, 1]], [[3, -1], [3, -1], [1, -1], [3, -1]]])
    converged = torch.tensor([[True, True, False, True], [True, True, False, True]])
    return dufm.Phases(torch.full((2, 4), 0.1), torch.full((2,), 0.1), kind, ranks, converged)


def test_mean_ranks_count_converged_runs_of_the_chosen_kinds():
    found = hand_made()
    assert found.mean_ranks("low-rank")[0].tolist() == [2.0, 1.0]
    assert found.mean_ranks("collapsed", "low-rank")[0].tolist() == [2.5, 1.5]
    assert found.mean_ranks()[0].tolist() == pytest.approx([2.0, 4 / 3])
    assert found.mean_ranks("collapsed")[1, 0] == 3  # the unconverged run of rank 1 is left out


def test_mean_ranks_are_nan_without_runs_or_levels():
    found = hand_made()
    assert found.mean_ranks("low-rank")[1].isnan().all()
    assert found.mean_ranks("collapsed")[1, 1].isnan()
    assert found.mean_ranks("zero").isnan().all()


def test_mean_ranks_refuse_an_unknown_kind():
    with pytest.raises(ValueError, match="kind must be one of"):
        hand_made().mean_ranks("collapsed", "flat")


# ---- deep-phases


def test_a_diagram_has_a_summary_for_every_cell():
    found = experiments.run("deep-phases", "quick", diagrams=TINY, runs=4, steps=300).results["tiny"]
    assert found["rows"] == [2, 3]
    assert found["columns"] == [4, 6, 8]
    assert (found["runs"], found["all_runs"], found["steps"]) == (4, 24, [300, 300])
    total = sum(np.array(found["share"][kind]) for kind in dufm.KINDS)
    assert np.allclose(total, 1)
    assert np.shape(found["unconverged"]) == np.shape(found["least"]) == (2, 3)
    assert all(cell[1] is None for cell in found["ranks"][0])  # two matrices have one hidden level
    assert np.min(found["least"]) > 1 - 1e-4  # nothing is below collapse for two classes


def test_each_seed_adds_runs_and_every_row_starts_elsewhere():
    sizes = {"diagrams": TINY, "runs": 3, "steps": 60}
    both = experiments.run("deep-phases", "quick", seeds=[5, 6], **sizes).results["tiny"]
    one = experiments.run("deep-phases", "quick", seeds=[5], **sizes).results["tiny"]
    assert both["runs"] == 6
    assert one["runs"] == 3
    assert np.all(np.array(both["least"]) <= np.array(one["least"]))
    twins = {"first": TINY["tiny"], "second": TINY["tiny"]}
    found = experiments.run("deep-phases", "quick", **(sizes | {"diagrams": twins})).results
    assert found["first"]["least"] != found["second"]["least"]


def test_small_decays_get_more_steps():
    decays = {"decays": TINY["tiny"] | {"L": 3, "width": 6, "decay": [1e-3, 8e-3], "scale": [0.1, 1.0]}}
    found = experiments.run("deep-phases", "quick", diagrams=decays, runs=3, steps=100).results["decays"]
    assert found["steps"] == [400, 100]
    assert found["rows"] == [1e-3, 8e-3]
    assert found["share"]["zero"][1][0] == 1.0
    assert [deep_phases.steps_at(x, 10) for x in (2e-3, 4e-3, 1.0)] == [20, 10, 10]


@pytest.mark.parametrize("arguments", [(0.0, 10), (-1.0, 10), (math.nan, 10), (1e-3, 0)])
def test_steps_at_refuses_what_is_not_positive(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        deep_phases.steps_at(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"L": 3}, "must vary two"),
        ({"decay": [1e-3, 2e-3]}, "must vary two"),
        ({"L": []}, "must vary two"),
        ({"colour": 1}, "must have K"),
    ],
)
def test_a_diagram_varies_two_axes(change, message):
    wrong = {"wrong": TINY["tiny"] | change}
    with pytest.raises(ValueError, match=message):
        experiments.run("deep-phases", "quick", diagrams=wrong, runs=2, steps=20)


def test_the_quick_diagram_is_one_of_at_least_five_hundred_narrow_runs():
    sizes = experiments.find("deep-phases").arguments("quick", {})
    (diagram,) = sizes["diagrams"].values()
    assert diagram["K"] == 6
    assert max(diagram["width"]) <= 14
    assert len(diagram["L"]) * len(diagram["width"]) * sizes["runs"] >= 500


def test_the_summary_agrees_with_the_phases():
    phases = dufm.phase_diagram(minimise, 3, [[2], [4]], [4, 8], 4e-3, runs=5, steps=300)
    found = deep_phases.summary(phases)
    assert found["unconverged"] == phases.unconverged.tolist()
    assert found["share"]["other"] == phases.share("other").tolist()
    assert found["least"][1][1] == pytest.approx(float(phases.loss[1, 1].min() / phases.reference[1, 1]))


# ---- deep-search


def test_a_search_reports_the_least_loss_and_the_counts():
    found = experiments.run("deep-search", "quick", cells=[[2, 3], [3, 4]], runs=40, steps=900).results
    assert found["width"] == [8, 8]
    assert found["below"][0] == 0
    assert found["least"][0] >= -1e-9
    assert found["below"][1] > 0  # three classes, four matrices: collapse is not optimal
    assert found["least"][1] < -0.01
    for i in range(2):
        assert found["below"][i] + found["collapsed"][i] + found["other"][i] == found["runs"][i] == 40


# ---- deep-heads


def test_the_objective_is_that_of_plain_tensors(trained, digits):
    point, n = trained.params, 4
    order = digits.labels.argsort(stable=True)
    Y = torch.nn.functional.one_hot(digits.labels[order], 10).double().T
    for run in range(2):
        X = point.H[run]
        for i, W in enumerate(point.weights):
            X = W[run] @ (X.relu() if i else X)
        penalty = sum(W[run].square().sum() for W in point.weights) + point.H[run].square().sum() / n
        value = (X - Y).square().sum() / (2 * len(digits)) + 4e-3 / 2 * penalty
        assert float(value) == pytest.approx(float(trained.loss[-1, run]), rel=1e-5)
        without_n = float(value) + 4e-3 / 2 * (1 - 1 / n) * float(point.H[run].square().sum())
        assert without_n != pytest.approx(float(trained.loss[-1, run]), rel=1e-2)


def test_training_follows_the_gradient_of_body_and_head(digits):
    """One step of Adam moves every entry against the sign of its derivative, by the step size."""
    sizes = {"width": 6, "seeds": [3], "L": 3, "body": 5}
    model, X = deep_heads._as_model(digits, 6, 3, 4e-3)
    layers, head = deep_heads._start(model, X, 5, [3])
    leaves = [V.detach().double().requires_grad_() for V in (*layers, *head)]
    H = deep_heads._features(leaves[:3], X.double())
    A = H
    for i, W in enumerate(leaves[3:]):
        A = W @ (A.relu() if i else A)
    Y = torch.eye(10).double().repeat_interleave(4, 1)
    decayed = sum(W.square().sum() for W in leaves[3:]) + H.square().sum() / 4
    ((A - Y).square().sum() / 80 + 2e-3 * decayed).backward()
    after = deep_heads.train_deep_heads(digits, **sizes, steps=1)
    for i, W in enumerate(after.params.weights):
        moved, slope = W - leaves[3 + i].detach(), leaves[3 + i].grad
        clear = slope.abs() > 1e-4
        assert clear.sum() > 5
        assert torch.allclose(moved[clear], -1e-2 * slope[clear].sign(), rtol=1e-2)
    with torch.no_grad():
        expected = [V - 2e-3 * V.grad.sign() for V in leaves[:3]]
    assert torch.allclose(after.params.H, deep_heads._features(expected, X.double()), atol=2e-3)


def test_the_loss_falls_and_the_curve_ends_at_the_measured_loss(trained):
    assert trained.steps[0] == 0
    assert trained.steps[-1] == 150
    assert bool((trained.loss[-1] < trained.loss[0]).all())
    found = deep_heads.head_measures(trained)
    assert torch.allclose(found["loss"], trained.loss[-1], rtol=1e-5)
    assert found["graph"] < found["collapse"]
    assert found["collapse"] == pytest.approx(float(dufm.DeepUFM(10, 1, 4, 14, 4e-3).collapse().loss))


def test_seeds_are_independent_of_their_batch(digits, trained):
    alone = deep_heads.train_deep_heads(digits, width=14, seeds=[1], body=24, steps=3)
    batch = deep_heads.train_deep_heads(digits, width=14, seeds=[0, 1], body=24, steps=3)
    assert torch.allclose(alone.loss[:, 0], batch.loss[:, 1], rtol=1e-4)
    assert not torch.allclose(batch.loss[:, 0], batch.loss[:, 1], rtol=1e-4)


def test_features_start_with_the_variance_of_the_model(digits):
    heads = deep_heads.train_deep_heads(digits, width=50, seeds=[0], body=16, steps=1, points=1)
    assert float(heads.params.H.std()) == pytest.approx(50**-0.5, rel=0.1)


def test_deep_heads_refuse_bad_sizes(digits):
    for change in ({"body": 0}, {"steps": 0}, {"points": 0}, {"seeds": []}):
        with pytest.raises(ValueError, match="must be positive"):
            deep_heads.train_deep_heads(digits, **({"width": 10, "seeds": [0]} | change))
    uneven = datasets.load("digits", per_class=[3] * 9 + [2])
    with pytest.raises(ValueError, match="equally many"):
        deep_heads.train_deep_heads(uneven, width=10, seeds=[0])


def test_a_record_of_deep_heads_has_every_width_and_names_its_data():
    sizes = {"names": ["digits"], "per_class": 2, "widths": [10, 12], "body": 8, "steps": 5, "seeds": [4, 9]}
    record = experiments.run("deep-heads", "quick", **sizes)
    assert record.data["name"] == "digits"
    assert "2 training images" in record.data["note"]
    assert [row["width"] for row in record.results["digits"]] == [10, 12]
    for row in record.results["digits"]:
        assert np.shape(row["ranks"]) == np.shape(row["dnc1"]) == np.shape(row["penalties"]) == (2, 5)
        assert np.shape(row["ranks_after"]) == (2, 4)
        assert np.shape(row["singular"]) == (2, 10)
        assert row["steps"][-1] == 5


@pytest.mark.parametrize("name", ["deep-phases", "deep-heads", "deep-search"])
def test_recorded_runs_are_those_of_the_full_profile(name):
    record = experiments.recorded(name)
    if record is None:
        pytest.skip(f"no full run of {name} is recorded")
    sizes = experiments.find(name).arguments("full", {})
    assert record.arguments == {key: value for key, value in sizes.items() if key != "seeds"}
