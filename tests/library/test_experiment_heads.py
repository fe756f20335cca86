"""The experiment of the two-layer heads: its networks, its numbers, and a miniature run."""

import math

import pytest
import torch
from torch import nn

from ncbook import datasets, experiments, networks
from ncbook.experiments import heads

SIZES = {"per_class": 4, "width": 16, "d": 12, "epochs": 3, "seeds": [0, 1]}


@pytest.fixture(scope="module")
def record():
    return experiments.run("two-layer-heads", "quick", **SIZES)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", per_class=8)


@pytest.fixture(scope="module")
def trained(digits):
    """One network of each penalty under a ReLU head, near a stationary point."""
    sizes = {"width": 32, "d": 32, "epochs": 25, "seed": 3}
    return {
        penalty: heads.train_head(digits, head="ReLU", penalty=penalty, **sizes)[0]
        for penalty in heads.PENALTIES
    }


def test_every_case_is_measured_for_every_seed(record):
    assert list(record.results) == list(heads.PENALTIES)
    for penalty, by_head in record.results.items():
        assert list(by_head) == list(heads.HEADS)
        for found in by_head.values():
            assert found["decay"] == heads.PENALTIES[penalty]["decay"]
            assert found["n"] == 4
            assert found["epochs"][0] == 0
            assert found["epochs"][-1] == 3
            assert len(found["final"]) == len(found["nc1_ratio"]) == 2
            for curves in found["nc1_ratio"]:
                assert len(curves) == len(heads.LAYERS)
                assert all(len(curve) == len(found["epochs"]) for curve in curves)


def test_seeds_cases_and_penalties_change_the_run(record):
    ends = [final["objective"] for p in record.results.values() for h in p.values() for final in h["final"]]
    assert len(set(ends)) == len(ends) == 12


def test_a_record_names_the_data(record):
    assert record.data["name"] == "fashion-mnist"
    assert "4 training images" in record.data["note"]


@pytest.mark.parametrize("name", list(heads.HEADS))
def test_the_network_has_no_bias_and_the_head_it_names(name):
    choice = heads.HEADS[name]
    network = heads.bias_free_network((1, 8, 8), 10, 16, 12, seed=0, **choice)
    assert not any(key.endswith("bias") for key, _ in network.named_parameters())
    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (network.features(images).min() < 0) == choice["signed"]
    assert any(isinstance(part, nn.ReLU) for part in network.head) == choice["relu"]
    # without biases the network is positively homogeneous in its input
    torch.testing.assert_close(network(2 * images), 2 * network(images))


def test_the_seed_decides_the_weights_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    a, b, c = (
        heads.bias_free_network((4,), 3, 5, 6, signed=True, relu=True, seed=seed).head.W1.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_the_pull_on_the_features_is_the_gradient_of_the_loss(digits):
    for choice in heads.HEADS.values():
        network = heads.bias_free_network(digits.shape, 10, 16, 12, seed=1, **choice)
        found = heads.head_numbers(network, digits, 1e-3)
        double = network.double()
        H1 = double.features(digits.images.double()).detach().requires_grad_()
        A = H1 @ double.head.W1.weight.T
        A = (A.relu() if choice["relu"] else A).detach().requires_grad_()
        onehot = nn.functional.one_hot(digits.labels, 10).double()
        g_H = (double.head(H1) - onehot).square().sum() / (2 * len(digits))
        g_A = (A @ double.head.W2.weight.T - onehot).square().sum() / (2 * len(digits))
        for name, loss, F in (("lambda_H", g_H, H1), ("lambda_A", g_A, A)):
            (gradient,) = torch.autograd.grad(loss, F)
            expected = float((-(gradient * F).sum() / F.square().sum()).detach())
            # the features were computed in float32
            assert math.isclose(found[name], expected, rel_tol=1e-4)


def test_penalised_features_return_their_decay(digits, trained):
    found = heads.head_numbers(trained["features"], digits, 5e-3)
    assert math.isclose(8 * found["lambda_H"], 5e-3, rel_tol=0.05)
    assert math.isclose(8 * found["lambda_H_by_norms"], 5e-3, rel_tol=0.05)
    assert found["alignment"] > 0.98
    assert found["of_A"] < 0.1
    assert found["cos_H1"][1] < 0.05
    assert found["accuracy"] == 1


def test_penalised_weights_balance_but_do_not_align(digits, trained):
    found = heads.head_numbers(trained["weights"], digits, 3e-3)
    assert math.isclose(found["lambda_H"], found["lambda_H_by_norms"], rel_tol=0.2)
    assert found["alignment"] < 0.95


def test_numbers_of_a_linear_head_do_not_know_a_relu(digits):
    network = heads.bias_free_network(digits.shape, 10, 16, 12, signed=True, relu=False, seed=2)
    found = heads.head_numbers(network, digits, 1e-3)
    assert math.isclose(found["nuclear"], 1, abs_tol=1e-12)
    assert found["cos_A"] == found["cos_X"]
    for name in ("Z", "W1", "W2", "H1", "A"):
        assert len(found[name]) == 10
        assert found[name] == sorted(found[name], reverse=True)


def test_bad_arguments_are_named(digits):
    sizes = {"width": 8, "d": 8, "epochs": 1, "seed": 0}
    with pytest.raises(ValueError, match="head"):
        heads.train_head(digits, head="cubic", penalty="features", **sizes)
    with pytest.raises(ValueError, match="penalty"):
        heads.train_head(digits, head="ReLU", penalty="none", **sizes)
    with pytest.raises(ValueError, match="width"):
        heads.bias_free_network((1, 8, 8), 10, 0, 8, signed=True, relu=True, seed=0)
    with pytest.raises(ValueError, match="W1 and W2"):
        heads.head_numbers(networks.mlp(digits.shape, 10, width=8), digits, 1e-3)
    uneven = datasets.load("digits", per_class=[3] * 9 + [4])
    network = heads.bias_free_network(digits.shape, 10, 8, 8, signed=True, relu=True, seed=0)
    with pytest.raises(ValueError, match="equally many"):
        heads.head_numbers(network, uneven, 1e-3)
