"""Frozen heads and narrow features: what stays fixed in training, and what the counts are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncbook import datasets, frames, networks, trainers

K, WIDE = 10, 512


def last_block(d: int) -> int:
    """Parameters of a ResNet18 that depend on the feature dimension, without the head."""
    shortcut = 0 if d == WIDE else WIDE * d + 2 * d
    return 9 * WIDE * d + 2 * d + shortcut


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    return datasets.load("digits", per_class=12)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "lbfgs"])
def test_training_with_decay_leaves_a_frozen_head_as_it_was(digits: datasets.Dataset, optimiser: str) -> None:
    head = networks.fixed_etf_head(scale=2.0, bias=True, seed=3)
    network = networks.mlp(digits.shape, K, width=16, depth=1, feature_dim=12, head=head)
    before = network.head.weight.clone()
    features = network.features.layer1.linear.weight.detach().clone()
    bias = network.head.bias.detach().clone()
    config = trainers.TrainConfig(
        epochs=2,
        batch_size=60,
        optimiser=optimiser,
        lr=0.1,
        weight_decay=0.1,
        feature_decay=1e-3,
        decay_on="all",
        device="cpu",
    )
    trainers.train(network, digits, config, record=[2])
    assert torch.equal(network.head.weight, before)
    assert not torch.equal(network.features.layer1.linear.weight, features)
    assert not torch.equal(network.head.bias, bias)  # a bias of a frozen head is trained


def test_a_frozen_head_is_saved_but_not_counted(digits: datasets.Dataset) -> None:
    network = networks.mlp(digits.shape, K, width=16, head="fixed_etf")
    assert "head.weight" in network.state_dict()
    assert all(not name.startswith("head") for name, _, _ in networks.parameter_table(network))
    twin = networks.mlp(digits.shape, K, width=16, head=networks.fixed_etf_head(seed=1))
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin.head.weight, network.head.weight)


def test_the_metrics_see_the_frozen_simplex(digits: datasets.Dataset) -> None:
    network = networks.mlp(digits.shape, K, width=16, depth=1, feature_dim=K, head="fixed_etf")
    history = trainers.train(
        network, digits, trainers.TrainConfig(epochs=1, batch_size=60, device="cpu"), record=[1]
    )
    weight_etf = history.metrics[-1].nc2_weight_etf
    assert weight_etf is not None
    assert weight_etf < 1e-6
    learned = networks.mlp(digits.shape, K, width=16, depth=1, feature_dim=K)
    gram = frames.gram(learned.head.weight.detach().double().T)
    assert frames.frame_distance(gram, frames.gram(frames.simplex_etf(K))) > 0.1


@settings(deadline=None, max_examples=8)
@given(d=st.integers(1, 700), classes=st.integers(2, 300), stem=st.sampled_from(["3x3", "7x7"]))
def test_the_feature_dimension_changes_the_last_block_and_the_head_alone(
    d: int, classes: int, stem: str
) -> None:
    with torch.device("meta"):
        narrow = networks.resnet18(classes, stem=stem, feature_dim=d)
        wide = networks.resnet18(classes, stem=stem)
    saved = networks.parameter_count(wide) - networks.parameter_count(narrow)
    assert saved == last_block(WIDE) - last_block(d) + classes * (WIDE - d)


def test_a_frozen_head_of_a_resnet_frees_its_weights() -> None:
    with torch.device("meta"):
        learned = networks.resnet18(K, stem="7x7")
        frozen = networks.resnet18(K, stem="7x7", head=networks.fixed_etf_head(bias=True))
        bare = networks.resnet18(K, stem="7x7", head="fixed_etf")
    assert networks.parameter_count(learned) - networks.parameter_count(frozen) == K * WIDE
    assert networks.parameter_count(frozen) - networks.parameter_count(bare) == K
