"""Networks trained as one tensor computation: the runs are those of the trainer of single networks."""

import pytest
import torch
from torch import nn

from ncbook import datasets, networks
from ncbook.trainers import DivergedRuns, Ensemble, TrainConfig, train, train_ensemble

SHAPE = (1, 8, 8)
COMMON = {
    "epochs": 3,
    "batch_size": 70,
    "lr": 0.1,
    "weight_decay": 1e-3,
    "schedule": "step",
    "milestones": (0.5, 0.75),
    "precision": "float64",
    "device": "cpu",
}
OWN = (
    {},
    {"smoothing": 0.1},
    {"loss": "mse", "lr": 0.05},
    {"smoothing": 0.3, "weight_decay": 1e-2},
)


def make_networks(count=4, **changes):
    sizes = {"width": 16, "depth": 2, "feature_dim": 12} | changes
    return [networks.mlp(SHAPE, 10, seed=seed, **sizes) for seed in range(count)]


def make_configs(**changes):
    return [TrainConfig(**(COMMON | changes | own), seed=seed) for seed, own in enumerate(OWN)]


@pytest.fixture(scope="module")
def data():
    return [datasets.load("digits", per_class=20, label_noise=0.2, seed=seed) for seed in range(4)]


def difference(a, b):
    """The largest difference of two networks, in parameters and running statistics."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs if x.is_floating_point())


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ({}, {}),
        ({"batch_norm": False}, {"decay_on": "weights", "schedule": "cosine"}),
        ({"depth": 3, "signed_features": True}, {"drop_last": True, "momentum": 0.0}),
        ({}, {"decay_on": "head", "batch_size": None, "schedule": "constant"}),
    ],
)
def test_every_run_is_the_single_run(data, network, config):
    together, alone = make_networks(**network), make_networks(**network)
    configs = make_configs(**config)
    history = train_ensemble(together, data, configs)
    for i in range(4):
        single = train(alone[i], data[i], configs[i], record=[3])
        assert difference(together[i], alone[i]) < 1e-11
        losses = torch.tensor(single.losses, dtype=torch.float64)
        torch.testing.assert_close(history.losses[:, i], losses, rtol=1e-11, atol=1e-11)
    fresh = make_networks(**network)
    assert difference(together[0], fresh[0]) > 1e-3  # something was trained
    assert difference(together[0], together[1]) > 1e-3


def test_single_precision_agrees_up_to_its_rounding(data):
    together, alone = make_networks(), make_networks()
    configs = make_configs(precision="float32")
    train_ensemble(together, data, configs)
    train(alone[0], data[0], configs[0], record=[3])
    assert together[0].head.weight.dtype == torch.float32
    assert difference(together[0], alone[0]) < 1e-3


def test_a_run_does_not_depend_on_its_neighbours(data):
    configs = make_configs()
    four, two = make_networks(), make_networks()
    train_ensemble(four, data, configs)
    train_ensemble(two[2:], data[2:], configs[2:])
    assert difference(four[3], two[3]) < 1e-12


def test_the_probe_sees_each_network_in_eval_mode(data):
    nets, images = make_networks(), data[0].images

    def probe(ensemble, epoch):
        return [tensor.clone() for tensor in ensemble.outputs(images)]

    history = train_ensemble(nets, data, make_configs(), record=[0, 2], probe=probe)
    assert history.epochs == [0, 2, 3]
    assert history.losses.shape == (3, 4)
    features, logits = history.probes[-1]
    for i, network in enumerate(nets):
        assert not network.training
        own = network.features(images.double())
        torch.testing.assert_close(features[i], own, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(logits[i], network.head(own), rtol=1e-12, atol=1e-12)
    start = make_networks()[1].eval().double()
    torch.testing.assert_close(history.probes[0][0][1], start.features(images.double()))


def test_trained_networks_stack_again(data):
    nets = make_networks()
    train_ensemble(nets, data, make_configs())
    features, _ = Ensemble(nets, dtype=torch.float64).outputs(data[0].images)
    torch.testing.assert_close(features[2], nets[2].features(data[0].images.double()))


def test_the_global_random_state_is_left_alone(data):
    state = torch.get_rng_state()
    train_ensemble(make_networks(), data, make_configs(epochs=1))
    assert torch.equal(state, torch.get_rng_state())


def test_a_diverging_run_is_named(data):
    configs = make_configs(epochs=12)
    wild = TrainConfig(**(COMMON | {"epochs": 12, "lr": 1e6, "loss": "mse"}), seed=9)
    with pytest.raises(DivergedRuns, match="finite") as caught:
        train_ensemble(make_networks(batch_norm=False), data, [*configs[:2], wild, configs[3]])
    assert caught.value.runs == [2]


def test_what_does_not_fit_is_refused(data):
    nets, configs = make_networks(), make_configs()
    cases = [
        ((nets[:3], data, configs), "equally many"),
        (([], [], []), "at least one"),
        (([nets[0]] * 4, data, configs), "different objects"),
        ((nets, [*data[:3], datasets.load("digits", per_class=21)], configs), "same images"),
        ((nets, data, [*configs[:3], TrainConfig(**(COMMON | {"epochs": 4}))]), "agree in epochs"),
        ((nets, data, make_configs(optimiser="adam")), "optimiser"),
        ((nets, data, make_configs(feature_decay=1e-3)), "feature_decay"),
        ((nets, data, make_configs(precision="bf16")), "precision"),
        ((nets, data, make_configs(batch_size=199)), "one image"),
        (([*nets[:3], networks.mlp(SHAPE, 10, width=8)], data, configs), "same shape"),
        ((make_networks(activation="tanh"), data, configs), "ReLU"),
        ((make_networks(head=networks.layered_head(2, 9)), data, configs), "perceptrons"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match=words):
            train_ensemble(*arguments)


def test_frozen_parameters_are_refused_and_not_trained(data):
    nets = make_networks()
    nets[2].head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        train_ensemble(nets, data, make_configs())


@pytest.mark.parametrize("changes", [{"batch_size": 199}, {"batch_size": 1, "drop_last": True}])
def test_a_batch_of_one_image_is_refused_with_batchnorm_only(data, changes):
    with pytest.raises(ValueError, match="one image"):
        train_ensemble(make_networks(), data, make_configs(**changes))
    plain = make_networks(batch_norm=False)
    history = train_ensemble(plain, data, make_configs(epochs=1, lr=1e-3, **changes))
    assert torch.isfinite(history.losses).all()


def test_norms_with_a_cumulative_average_are_refused(data):
    nets = make_networks(2)
    for network in nets:
        network.features.layer1.norm.momentum = None
    with pytest.raises(ValueError, match="momentum"):
        Ensemble(nets)


def test_convolutions_are_refused():
    images = torch.zeros(4, 1, 8, 8)
    network = networks.cnn(SHAPE, 10, widths=(2, 2), feature_dim=4)
    with pytest.raises(ValueError, match="perceptrons"):
        Ensemble([network, networks.cnn(SHAPE, 10, widths=(2, 2), feature_dim=4)]).outputs(images)


def test_norms_without_running_statistics_are_refused():
    nets = make_networks(2)
    for network in nets:
        network.features.layer1.norm = nn.BatchNorm1d(16, track_running_stats=False)
    with pytest.raises(ValueError, match="running_mean"):
        Ensemble(nets)
