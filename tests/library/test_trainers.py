"""The trainer: the objective, the course of a run, what it measures, and how it stops and resumes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ncbook import datasets, losses, networks, runtime
from ncbook.metrics import collapse_metrics, measure
from ncbook.trainers import (
    BrokenCheckpoint,
    CheckpointMismatch,
    History,
    NonFiniteLoss,
    TrainConfig,
    _checkpoint,
    _optimisation,
    record_epochs,
    train,
)
from ncbook.trainers._augment import augment_batch
from ncbook.trainers._run import Run


def small_data(per_class: int = 8, split: str = "train", **more: Any) -> datasets.Dataset:
    return datasets.gaussian_mixture(3, (2, 4, 4), per_class=per_class, split=split, seed=1, **more)


def small_network(seed: int = 0, **more: Any) -> networks.Network:
    return networks.mlp((2, 4, 4), 3, width=8, depth=2, seed=seed, **more)


def config(**more: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 5, "batch_size": 7, "lr": 0.05, "device": "cpu", **more})


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def one_run(
    settings_: TrainConfig, network: networks.Network | None = None, data: datasets.Dataset | None = None
) -> Run:
    data = small_data() if data is None else data
    return Run(network or small_network(), data, settings_, (), (), None, None)


# -- the objective and the steps -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_run_is_the_loop_that_one_would_write(batch_norm: bool, drop_last: bool) -> None:
    """Momentum, coupled weight decay, and a cosine per step, written out by hand in float64."""
    data = small_data()
    settings_ = config(weight_decay=0.01, precision="float64", drop_last=drop_last, seed=3)
    trained = small_network(batch_norm=batch_norm)
    history = train(trained, data, settings_, record=[])

    network = small_network(batch_norm=batch_norm).double()
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    generator = runtime.generator(3)
    steps_per_epoch = 24 // 7 + (0 if drop_last else 1)
    step, epoch_losses = 0, []
    for _ in range(5):
        total, seen = 0.0, 0
        order = torch.randperm(24, generator=generator)
        for rows in list(order.split(7))[:steps_per_epoch]:
            network.zero_grad()
            loss = nn.functional.cross_entropy(network(data.images[rows].double()), data.labels[rows])
            loss.backward()
            rate = 0.05 * 0.5 * (1 + math.cos(math.pi * step / (5 * steps_per_epoch)))
            with torch.no_grad():
                for p, v in zip(parameters, velocity, strict=True):
                    v.mul_(0.9).add_(p.grad + 0.01 * p)
                    p.sub_(rate * v)
            step, total, seen = step + 1, total + loss.item() * len(rows), seen + len(rows)
        epoch_losses.append(total / seen)
    for ours, theirs in zip(trained.parameters(), parameters, strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-12
    assert history.losses == pytest.approx(epoch_losses, rel=1e-12)


def test_convolutions_train_as_in_the_plain_layout() -> None:
    """Channels last is a matter of speed alone."""
    data = datasets.gaussian_mixture(3, (3, 8, 8), per_class=6, seed=1)
    trained, network = (networks.cnn((3, 8, 8), 3, widths=(4, 6), feature_dim=5) for _ in range(2))
    train(trained, data, config(epochs=2, precision="float64", schedule="constant"), record=[])
    network.double().train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    generator = runtime.generator(0)
    for _ in range(2):
        for rows in torch.randperm(18, generator=generator).split(7):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(data.images[rows].double()), data.labels[rows]).backward()
            optimiser.step()
    for ours, theirs in zip(trained.parameters(), network.parameters(), strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-10


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_that_of_the_models(smoothing: float) -> None:
    logits, labels = torch.randn(9, 4, dtype=torch.float64), torch.randint(4, (9,))
    ours = _optimisation.mean_loss(logits, labels, config(smoothing=smoothing))
    assert float(ours) == pytest.approx(
        float(losses.cross_entropy(logits.T, labels, smoothing)[0]), rel=1e-12
    )


def test_squared_loss_is_that_of_the_models() -> None:
    logits, labels = torch.randn(9, 4, dtype=torch.float64), torch.randint(4, (9,))
    ours = float(_optimisation.mean_loss(logits, labels, config(loss="mse")))
    assert ours == pytest.approx(float(losses.squared(logits.T, labels)[0]), rel=1e-12)
    targets = nn.functional.one_hot(labels, 4).double()
    assert ours == pytest.approx(4 / 2 * float(nn.functional.mse_loss(logits, targets)), rel=1e-12)


def test_feature_decay_is_a_sum_over_all_samples() -> None:
    """Averaged over the batches of an epoch, the penalty is that of the whole objective."""
    settings_ = config(feature_decay=0.03, batch_size=6, precision="float64")
    run = one_run(settings_, small_network(batch_norm=False))
    penalties = []
    for rows in torch.arange(24).split(6):
        fit, total = run.objective(*run.train_data.take(rows))
        penalties.append(float((total - fit).detach()))
    features = run.features(run.train_data.images).detach()
    assert np.mean(penalties) == pytest.approx(0.5 * 0.03 * float(features.square().sum()), rel=1e-12)


def test_feature_decay_reaches_the_gradient() -> None:
    network = small_network(batch_norm=False)
    before = weights_of(network)
    data = small_data()
    train(
        network,
        data,
        config(epochs=1, batch_size=None, feature_decay=0.2, precision="float64", momentum=0.0),
        record=[],
    )
    reference = small_network(batch_norm=False).double()
    features = reference.features(data.images.double())
    fit = nn.functional.cross_entropy(reference.head(features), data.labels)
    (fit + 0.1 * features.square().sum()).backward()
    for name, parameter in reference.named_parameters():
        expected = before[name].double() - 0.05 * parameter.grad
        assert torch.allclose(network.state_dict()[name], expected, atol=1e-12)


@pytest.mark.parametrize("decay_on", ["all", "weights", "head"])
@pytest.mark.parametrize("optimiser", ["sgd", "lbfgs"])
def test_decay_falls_on_the_chosen_parameters(decay_on: str, optimiser: str) -> None:
    settings_ = config(
        weight_decay=0.5, decay_on=decay_on, optimiser=optimiser, batch_size=None, momentum=0.0, lr=1e-3
    )
    run = one_run(replace(settings_, precision="float64"))
    run.network.train()
    decayed = {
        name
        for name, p in run.network.named_parameters()
        if decay_on == "all"
        or (decay_on == "weights" and p.ndim >= 2)
        or (decay_on == "head" and name.startswith("head."))
    }
    assert 0 < len(decayed) <= len(list(run.network.parameters()))
    values = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    fit, total = run.objective(run.train_data.images, run.train_data.labels)
    gradients = dict(zip(values, torch.autograd.grad(fit, list(run.network.parameters())), strict=True))
    if optimiser == "lbfgs":  # the penalty is part of its objective
        penalty = 0.25 * sum(float(values[name].square().sum()) for name in decayed)
        assert float((total - fit).detach()) == pytest.approx(penalty, rel=1e-12)
        return
    assert torch.equal(total, fit)
    run.optimiser.param_groups[0]["lr"] = run.optimiser.param_groups[-1]["lr"] = 1e-3
    run.step(torch.arange(24))
    for name, p in run.network.named_parameters():
        decay = 0.5 * values[name] if name in decayed else 0.0
        assert torch.allclose(p.detach(), values[name] - 1e-3 * (gradients[name] + decay), atol=1e-13)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, 0.8535533905932737, 0.5, 0.14644660940672627, 0]),
        ({"schedule": "step"}, [1, 1, 0.1, 0.01, 0.01]),
        ({"schedule": "step", "milestones": [0.25, 0.5]}, [1, 0.1, 0.01, 0.01, 0.01]),
        ({"schedule": "step", "milestones": ()}, [1, 1, 1, 1, 1]),
    ],
)
def test_schedules(more: dict[str, Any], expected: list[float]) -> None:
    settings_ = config(**more)
    assert [settings_.rate_factor(i / 4) for i in range(5)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("optimiser", "lr"), [("sgd", 0.05), ("adam", 2e-2), ("lbfgs", 1.0)])
@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_every_optimiser_fits_every_loss(optimiser: str, lr: float, loss: str) -> None:
    data = small_data(separation=8.0)
    network = small_network(batch_norm=optimiser != "lbfgs")
    settings_ = config(
        epochs=4 if optimiser == "lbfgs" else 30,
        optimiser=optimiser,
        lr=lr,
        loss=loss,
        batch_size=None if optimiser == "lbfgs" else 8,
        weight_decay=1e-4,
    )
    history = train(network, data, settings_, record=[0])
    assert history.losses[-1] < 0.1 * history.losses[0]
    assert history.train_accuracy[-1] == 1.0


def test_lbfgs_on_a_convex_problem_finds_its_minimum() -> None:
    data = small_data()
    network = networks.Network(nn.Flatten(), nn.Linear(32, 3))
    settings_ = config(
        epochs=10,
        optimiser="lbfgs",
        lr=1.0,
        batch_size=None,
        weight_decay=0.1,
        schedule="constant",
        precision="float64",
    )
    run = one_run(settings_, network, data)
    run.execute()
    _, total = run.objective(run.train_data.images, run.train_data.labels)
    gradients = torch.autograd.grad(total, list(network.parameters()))
    # torch's L-BFGS stops where a step changes the loss by less than 1e-9, which leaves a gradient of the
    # order of the root of that; without the penalty in its objective there is no minimum at all.
    assert max(float(g.abs().max()) for g in gradients) < 3e-5


def test_fixed_head_stays_fixed() -> None:
    network = small_network(feature_dim=4, head="fixed_etf")
    before = network.head.weight.clone()
    history = train(network, small_data(separation=8.0), config(epochs=40, weight_decay=1e-3), record=[0])
    assert torch.equal(network.head.weight, before)
    assert history.metrics[-1].nc2_weight_etf < 1e-6
    assert history.train_accuracy[-1] == 1.0


# -- what is measured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [None, "crop+flip"])
def test_metrics_are_those_of_the_clean_training_set_in_eval_mode(augment: str | None) -> None:
    data, test = small_data(), small_data(split="test")
    network = small_network()
    history = train(network, data, config(augment=augment), record=[0, 2], test=test)
    assert history.epochs == [0, 2, 5]
    assert not network.training
    with torch.no_grad():
        features, held_out = network.features(data.images), network.features(test.images)
        logits, test_logits = network.head(features), network.head(held_out)
    head = network.head.weight.detach(), network.head.bias.detach()
    assert history.metrics[-1] == collapse_metrics(features, data.labels, *head, num_classes=3)
    assert history.test_metrics[-1] == collapse_metrics(held_out, test.labels, *head, num_classes=3)
    assert history.train_accuracy[-1] == float((logits.argmax(1) == data.labels).double().mean())
    assert history.test_accuracy[-1] == float((test_logits.argmax(1) == test.labels).double().mean())
    # BatchNorm in train mode would measure something else.
    network.train()
    with torch.no_grad():
        wrong = collapse_metrics(network.features(data.images), data.labels, num_classes=3)
    assert abs(wrong.nc1 - history.metrics[-1].nc1) > 1e-3 * wrong.nc1


def test_epoch_zero_is_the_network_before_training() -> None:
    data, network = small_data(), small_network().eval()
    head = network.head.weight.detach(), network.head.bias.detach()
    with torch.no_grad():
        before = collapse_metrics(network.features(data.images), data.labels, *head)
    assert train(small_network(), data, config(), record=[0]).metrics[0] == before


def test_noisy_labels_are_the_ones_that_count() -> None:
    data = small_data(per_class=10, separation=8.0, label_noise=0.3)
    network = small_network()
    history = train(network, data, config(epochs=1), record=[])
    with torch.no_grad():
        predicted = network(data.images).argmax(1)
    assert history.train_accuracy[-1] == float((predicted == data.labels).double().mean())
    assert history.train_accuracy[-1] != float((predicted == data.true_labels).double().mean())


@pytest.mark.parametrize("seed", range(2))
def test_interpolation_epoch_is_the_first_without_error_in_eval_mode(seed: int) -> None:
    data = small_data(separation=3.0)
    settings_ = config(epochs=40, seed=seed)
    watched = train(small_network(seed), data, settings_, record=range(41))
    expected = next(e for e, a in zip(watched.epochs, watched.train_accuracy, strict=True) if e and a == 1.0)
    assert watched.interpolation_epoch == expected
    assert train(small_network(seed), data, settings_, record=[]).interpolation_epoch == expected
    assert expected > 1


def test_interpolation_may_never_happen() -> None:
    data = small_data(label_noise=0.5)
    assert train(small_network(), data, config(epochs=2), record=[]).interpolation_epoch is None


def test_layers_are_measured() -> None:
    data, network = small_data(), small_network(head=networks.layered_head(2, 6))
    history = train(network, data, config(), record=[0], layers="all")
    assert list(history.layers) == ["features.layer1", "features.layer2", "head.W1", "head.W2"]
    again = measure(network, [(data.images, data.labels)], features=list(history.layers), num_classes=3)
    assert isinstance(again, dict)
    for name, entries in history.layers.items():
        assert len(entries) == 2
        assert entries[-1] == again[name]
    assert history.curve("nc1_ratio", "head.W2").shape == (2,)
    assert history.curve("nc1", "features.layer2")[-1] == pytest.approx(history.curve("nc1")[-1], rel=1e-9)


def test_the_input_of_a_layer_is_a_layer_too() -> None:
    history = train(small_network(), small_data(), config(epochs=1), record=[], layers=["head:input"])
    assert history.curve("cdnv", "head:input")[0] == pytest.approx(history.curve("cdnv")[0], rel=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_are_one_classifier(bias: bool) -> None:
    head = networks.layered_head(3, 5, relu=False, bias=bias)(4, 3).double()
    weight, shift = _optimisation.classifier_of(head)
    assert weight is not None
    features = torch.randn(6, 4, dtype=torch.float64)
    assert torch.allclose(head(features), nn.functional.linear(features, weight, shift), atol=1e-12)
    assert (shift is not None) == bias


def test_a_head_with_activations_is_no_classifier() -> None:
    assert _optimisation.classifier_of(networks.layered_head(2, 5)(4, 3)) == (None, None)
    history = train(
        small_network(head=networks.layered_head(2, 5)), small_data(), config(epochs=1), record=[]
    )
    assert history.metrics[-1].nc3 is None
    with pytest.raises(ValueError, match="nc3"):
        history.curve("nc3")


def test_probe_sees_the_network_at_the_recorded_epochs() -> None:
    def probe(network: nn.Module, epoch: int) -> dict[str, Any]:
        assert not network.training
        assert not torch.is_grad_enabled()
        return {"epoch": epoch, "weight": network.get_submodule("head").weight, "note": ["a", (1, None)]}

    network = small_network()
    history = train(network, small_data(), config(), record=[0, 3], probe=probe)
    assert [entry["epoch"] for entry in history.probes] == [0, 3, 5]
    assert torch.equal(history.probes[-1]["weight"], network.head.weight)
    assert not torch.equal(history.probes[0]["weight"], history.probes[-1]["weight"])
    assert history.probes[0]["note"] == ["a", [1, None]]


def test_collapse_happens_and_is_recorded() -> None:
    """The opening recipe in small."""
    data = datasets.load("digits", per_class=20)
    network = networks.mlp(data.shape, 10, width=64)
    settings_ = TrainConfig(epochs=100, batch_size=50, lr=0.05, weight_decay=1e-2, device="cpu")
    history = train(network, data, settings_, record=5)
    assert history.train_accuracy[-1] == 1.0
    assert history.interpolation_epoch is not None
    nc1, nc3 = history.curve("nc1"), history.curve("nc3")
    assert nc1[-1] < nc1[0] / 100  # over five seeds it fell 543 to 843 times
    assert nc3[-1] < 0.4 < 1.3 < nc3[0]  # over five seeds it ended at 0.238 to 0.253


@settings(deadline=None, max_examples=60)
@given(epochs=st.integers(1, 500), points=st.integers(1, 60))
def test_recorded_epochs_are_spread_logarithmically(epochs: int, points: int) -> None:
    chosen = record_epochs(epochs, points)
    assert chosen[0] == 0
    assert chosen[-1] == epochs
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) <= points + 2
    ideal = np.geomspace(1, epochs, points) if points > 1 else np.array([])
    assert all(min(abs(e - c) for c in chosen) <= 0.5 + 1e-9 for e in ideal)


def test_a_run_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    train(small_network(), small_data(), config(), record=[0])
    assert capfd.readouterr() == ("", "")


# -- determinism and precision -------------------------------------------------------------------------


class Dropping(nn.Module):
    """Features with dropout, which draws from the global random state."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def dropping() -> Dropping:
    torch.manual_seed(0)
    return Dropping()


@pytest.mark.parametrize("build", [small_network, dropping])
def test_a_run_is_a_function_of_its_seed(build: Callable[[], nn.Module]) -> None:
    first, second, third = build(), build(), build()
    settings_ = config(augment="crop+flip")
    history = train(first, small_data(), settings_, record=[0])
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = train(second, small_data(), settings_, record=[0])
    assert torch.equal(torch.get_rng_state(), state)
    train(third, small_data(), replace(settings_, seed=1), record=[0])
    assert same_weights(weights_of(first), weights_of(second))
    assert (history.losses, history.metrics) == (again.losses, again.metrics)
    assert not same_weights(weights_of(first), weights_of(third))


def test_recording_does_not_change_the_run() -> None:
    often, seldom = small_network(), small_network()
    train(often, small_data(), config(), record=range(6), layers="all", test=small_data(split="test"))
    train(seldom, small_data(), config(), record=[])
    assert same_weights(weights_of(often), weights_of(seldom))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("float64", torch.float64), ("bf16", torch.float32)],
)
def test_precision(precision: str, dtype: torch.dtype) -> None:
    network = small_network()
    seen: list[torch.dtype] = []

    def look(module: nn.Module, _: Any, output: Tensor) -> None:
        if module.training:
            seen.append(output.dtype)

    network.features.layer1.linear.register_forward_hook(look)
    history = train(network, small_data(separation=8.0), config(epochs=30, precision=precision), record=[0])
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else dtype}
    assert history.precision == precision
    assert history.device == "cpu"
    assert history.train_accuracy[-1] == 1.0


def test_automatic_precision() -> None:
    cpu = torch.device("cpu")
    assert _optimisation.choose_precision("auto", cpu, convolutional=False) == "float32"
    expected = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    assert _optimisation.choose_precision("auto", cpu, convolutional=True) == expected
    assert _optimisation.choose_precision("auto", torch.device("mps"), convolutional=True) == "float32"
    assert _optimisation.choose_precision("float64", cpu, convolutional=True) == "float64"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_on_a_gpu(precision: str) -> None:
    data = datasets.load("digits", per_class=30)
    network = networks.cnn(data.shape, 10, widths=(8, 16))
    settings_ = TrainConfig(
        epochs=20, batch_size=50, device="cuda", precision=precision, augment="crop", weight_decay=1e-3
    )
    history = train(
        network, data, settings_, record=5, layers="all", test=datasets.load("digits", split="test")
    )
    assert history.device.startswith("cuda")
    assert history.train_accuracy[-1] > 0.9


# -- augmentation ----------------------------------------------------------------------------------------


def numbered(count: int = 200) -> Tensor:
    return (torch.arange(count * 5 * 6 * 2, dtype=torch.float32) + 1).reshape(count, 5, 6, 2)


def test_no_augmentation_is_the_identity() -> None:
    images = numbered()
    assert augment_batch(images, None, runtime.generator(0)) is images


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = numbered()
    result = augment_batch(images, "flip", runtime.generator(0))
    mirrored = images.flip(2)
    kept = (result == images).flatten(1).all(1)
    flipped = (result == mirrored).flatten(1).all(1)
    assert bool((kept ^ flipped).all())
    assert abs(int(flipped.sum()) - 100) < 6 * 50**0.5


@pytest.mark.parametrize("kind", ["crop", "crop+flip"])
def test_crops_are_windows_of_the_padded_image(kind: str) -> None:
    images = numbered(150)
    result = augment_batch(images, kind, runtime.generator(1))
    padded = torch.zeros(150, 13, 14, 2)
    padded[:, 4:-4, 4:-4] = images
    found = set()
    for i in range(150):
        windows = {
            (r, c, m): padded[i, r : r + 5, c : c + 6].flip(1) if m else padded[i, r : r + 5, c : c + 6]
            for r in range(9)
            for c in range(9)
            for m in ((0, 1) if "flip" in kind else (0,))
        }
        matching = [key for key, window in windows.items() if torch.equal(result[i], window)]
        assert matching
        found.add(matching[0])
    assert {r for r, _, _ in found} == set(range(9))
    assert {c for _, c, _ in found} == set(range(9))
    assert {m for _, _, m in found} == ({0, 1} if "flip" in kind else {0})


def test_each_image_has_its_own_draw() -> None:
    same = numbered(1).expand(50, -1, -1, -1)
    result = augment_batch(same, "crop", runtime.generator(0))
    assert len({image.numpy().tobytes() for image in result}) > 25


# -- checkpoints -----------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for whatever stops a session."""


RESUMABLE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "sgd": (small_network, {"weight_decay": 1e-2}),
    "adam": (small_network, {"optimiser": "adam", "lr": 1e-3, "decay_on": "head", "feature_decay": 1e-3}),
    "lbfgs": (small_network, {"optimiser": "lbfgs", "lr": 0.5, "batch_size": 12, "precision": "float64"}),
    "augmented": (small_network, {"augment": "crop+flip"}),
    "dropout": (dropping, {}),
    "bf16 convolutions": (
        lambda: networks.cnn((2, 4, 4), 3, widths=(4, 4), feature_dim=6),
        {"precision": "bf16", "augment": "flip"},
    ),
}


@pytest.mark.parametrize("kind", RESUMABLE)
@pytest.mark.parametrize("stop", [1, 5])
def test_resumed_run_is_the_uninterrupted_one(kind: str, stop: int, tmp_path: Path) -> None:
    build, more = RESUMABLE[kind]
    data, test = small_data(), small_data(split="test")
    settings_ = config(epochs=6, checkpoint=tmp_path / "run.ckpt", checkpoint_every=2, **more)
    interrupted = []

    def probe(network: nn.Module, epoch: int) -> int:
        if epoch == stop and not interrupted:
            interrupted.append(epoch)
            raise Interrupted
        return epoch

    def run(network: nn.Module, checkpointed: bool) -> History:
        chosen = settings_ if checkpointed else replace(settings_, checkpoint=None)
        return train(network, data, chosen, record=range(7), layers=["head"], test=test, probe=probe)

    with pytest.raises(Interrupted):
        run(build(), True)
    resumed = build()
    torch.manual_seed(999)  # a new session has another global state
    history = run(resumed, True)
    whole = build()
    expected = run(whole, False)
    assert same_weights(weights_of(resumed), weights_of(whole))
    for field in expected.__dataclass_fields__:
        if field != "seconds":
            assert getattr(history, field) == getattr(expected, field), field


def test_a_killed_run_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    common = f"""
    import sys, time, torch
    torch.set_num_threads({torch.get_num_threads()})
    from ncbook import datasets, networks
    from ncbook.trainers import TrainConfig, train

    def arguments(checkpoint):
        data = datasets.gaussian_mixture(5, (1, 6, 6), per_class=20, separation=2.0)
        network = networks.mlp(data.shape, 5, width=24)
        config = TrainConfig(epochs=12, batch_size=25, weight_decay=1e-2, augment="crop", device="cpu",
                             checkpoint=checkpoint, checkpoint_every=1)
        return network, data, config
    """
    script = textwrap.dedent(common) + textwrap.dedent(f"""
    def probe(network, epoch):
        print(epoch, flush=True)
        if epoch == 5:
            time.sleep(600)  # is killed here, in the middle of an epoch's end
        return epoch

    network, data, config = arguments({str(checkpoint)!r})
    train(network, data, config, record=range(13), probe=probe)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            if int(line) == 5:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    assert _checkpoint.load_checkpoint(checkpoint)["epoch"] == 4

    scope: dict[str, Any] = {}
    exec(textwrap.dedent(common), scope)
    epochs_seen: list[int] = []

    def probe(network: nn.Module, epoch: int) -> int:
        epochs_seen.append(epoch)
        return epoch

    network, data, settings_ = scope["arguments"](checkpoint)
    history = train(network, data, settings_, record=range(13), probe=probe)
    assert epochs_seen == list(range(5, 13))  # it did go on, and not from the beginning
    whole, _, plain = scope["arguments"](None)
    expected = train(whole, data, plain, record=range(13), probe=probe)
    assert same_weights(weights_of(network), weights_of(whole))
    assert history.losses == expected.losses
    assert history.metrics == expected.metrics
    assert history.probes == expected.probes


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    settings_ = config(checkpoint=tmp_path / "deep" / "run.ckpt")
    network = small_network()
    history = train(network, small_data(), settings_, record=[0])
    again = small_network()
    second = train(again, small_data(), settings_, record=[0])
    assert second == history
    assert same_weights(weights_of(network), weights_of(again))
    assert not again.training


def test_place_and_saving_may_change_between_sessions(tmp_path: Path) -> None:
    settings_ = config(checkpoint=tmp_path / "a.ckpt")
    history = train(small_network(), small_data(), settings_)
    (tmp_path / "a.ckpt").rename(tmp_path / "b.ckpt")
    moved = replace(settings_, checkpoint=str(tmp_path / "b.ckpt"), checkpoint_every=1, device=None)
    if runtime.device().type == "cpu":
        assert train(small_network(), small_data(), moved) == history


CHANGES: dict[str, tuple[str, Callable[[TrainConfig], dict[str, Any]]]] = {
    "lr": ("config.lr", lambda c: {"config": replace(c, lr=0.1)}),
    "epochs": ("config.epochs", lambda c: {"config": replace(c, epochs=6), "record": [0, 5]}),
    "seed": ("config.seed", lambda c: {"config": replace(c, seed=1)}),
    "precision": ("config.precision", lambda c: {"config": replace(c, precision="float32")}),
    "data": ("data", lambda c: {"dataset": small_data(per_class=9)}),
    "labels": ("data", lambda c: {"dataset": small_data(label_noise=0.2)}),
    "test": ("test data", lambda c: {"test": small_data(split="test")}),
    "initial weights": ("network at its start", lambda c: {"network": small_network(seed=1)}),
    "architecture": ("network at its start", lambda c: {"network": small_network(feature_dim=4)}),
    "record": ("recorded epochs", lambda c: {"record": [0, 1]}),
    "layers": ("layers", lambda c: {"layers": ["head"]}),
    "probe": ("probe", lambda c: {"probe": lambda network, epoch: epoch}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoint_of_another_run_is_refused(change: str, tmp_path: Path) -> None:
    settings_ = config(checkpoint=tmp_path / "run.ckpt", precision="auto")
    train(small_network(), small_data(), settings_, record=[0])
    before = (tmp_path / "run.ckpt").read_bytes()
    named, changed = CHANGES[change]
    arguments = {"network": small_network(), "dataset": small_data(), "config": settings_, "record": [0]}
    arguments |= changed(settings_)
    with pytest.raises(CheckpointMismatch, match=rf"run\.ckpt belongs to another run: its {named}"):
        train(**arguments)
    assert (tmp_path / "run.ckpt").read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "cut", "cut in the head", "flipped bit", "other file", "text"])
def test_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    settings_ = config(checkpoint=path)
    train(small_network(), small_data(), settings_)
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 4
    elif damage == "other file":
        torch.save({"epoch": 1}, path)
        content = bytearray(path.read_bytes())
    else:
        content = {
            "empty": bytearray(),
            "cut": content[:-1],
            "cut in the head": content[:30],
            "text": bytearray(b"hello"),
        }[damage]
    path.write_bytes(bytes(content))
    with pytest.raises(BrokenCheckpoint, match=r"run\.ckpt"):
        train(small_network(), small_data(), settings_)


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.ckpt"
    _checkpoint.save_checkpoint(path, {"epoch": 1})

    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(_checkpoint.os, name, full_disk)
            with pytest.raises(OSError, match="no space"):
                _checkpoint.save_checkpoint(path, {"epoch": 2})
        assert [entry.name for entry in tmp_path.iterdir()] == ["run.ckpt"]
        assert _checkpoint.load_checkpoint(path) == {"epoch": 1}
    _checkpoint.save_checkpoint(path, {"epoch": 3})
    assert _checkpoint.load_checkpoint(path) == {"epoch": 3}


# -- losses that are not finite ------------------------------------------------------------------------


class Breaking(nn.Module):
    """Puts out NaN from a given training call on."""

    def __init__(self, at: int, value: float = math.nan) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(32, 8))
        self.head = nn.Linear(8, 3)
        self.features.register_forward_hook(self._break)
        self.calls, self.at, self.value = 0, at, value

    def _break(self, module: nn.Module, _: Any, output: Tensor) -> Tensor:
        self.calls += module.training
        return output * self.value if module.training and self.calls >= self.at else output

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@pytest.mark.parametrize(("at", "epoch", "step"), [(1, 1, 1), (6, 2, 2), (8, 2, 4), (9, 3, 1)])
def test_a_loss_that_is_not_finite_stops_the_run_by_name(
    at: int, epoch: int, step: int, tmp_path: Path
) -> None:
    network = Breaking(at)
    path = tmp_path / "run.ckpt"
    settings_ = config(checkpoint=path, checkpoint_every=1)
    kept: dict[int, dict[str, Tensor]] = {0: weights_of(network)}

    def probe(trained: nn.Module, now: int) -> int:
        kept[now] = weights_of(trained)
        return now

    with pytest.raises(NonFiniteLoss, match=rf"epoch {epoch}, step {step}\b") as caught:
        train(network, small_data(), settings_, record=range(6), probe=probe)
    stopped = caught.value
    assert (stopped.epoch, stopped.step) == (epoch, step)
    assert math.isnan(stopped.loss)
    assert stopped.history.epochs == list(range(epoch))
    assert len(stopped.history.losses) == epoch - 1
    assert same_weights(weights_of(network), kept[epoch - 1])
    assert not network.training
    if epoch > 1:
        assert _checkpoint.load_checkpoint(path)["epoch"] == epoch - 1
    else:
        assert not path.exists()


def test_divergence_stops_the_run() -> None:
    network = small_network(batch_norm=False)
    with pytest.raises(NonFiniteLoss, match="smaller learning rate"):
        train(network, small_data(), config(epochs=200, lr=1e6, loss="mse", schedule="constant"), record=[])
    assert all(bool(torch.isfinite(value).all()) for value in weights_of(network).values())


def test_weights_that_break_in_the_last_step_are_noticed() -> None:
    network = networks.Network(nn.Flatten(), nn.Linear(32, 3))
    before = weights_of(network)
    settings_ = config(epochs=1, batch_size=None, lr=3e38, schedule="constant", momentum=0.0)
    data = datasets.from_arrays(1e3 * small_data().images, small_data().labels)
    with pytest.raises(NonFiniteLoss):
        train(network, data, settings_, record=[])
    assert same_weights(weights_of(network), before)


# -- bad arguments ---------------------------------------------------------------------------------------

BAD_CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("epochs", {"epochs": 0}),
    ("epochs", {"epochs": 2.0}),
    ("epochs", {"epochs": True}),
    ("batch_size", {"batch_size": 0}),
    ("batch_size", {"batch_size": "8"}),
    ("drop_last", {"drop_last": 1}),
    ("optimiser", {"optimiser": "adamw"}),
    ("lr", {"lr": 0.0}),
    ("lr", {"lr": -1.0}),
    ("lr", {"lr": math.nan}),
    ("lr", {"lr": math.inf}),
    ("lr", {"lr": "0.1"}),
    ("momentum", {"momentum": 1.0}),
    ("momentum", {"momentum": -0.1}),
    ("weight_decay", {"weight_decay": -1e-4}),
    ("weight_decay", {"weight_decay": math.nan}),
    ("feature_decay", {"feature_decay": -1.0}),
    ("decay_on", {"decay_on": "biases"}),
    ("schedule", {"schedule": "linear"}),
    ("milestones", {"milestones": [0.5, 0.2]}),
    ("milestones", {"milestones": [0.5, 1.0]}),
    ("milestones", {"milestones": 0.5}),
    ("loss", {"loss": "hinge"}),
    ("smoothing", {"smoothing": 1.5}),
    ("smoothing", {"smoothing": 0.1, "loss": "mse"}),
    ("precision", {"precision": "float16"}),
    ("augment", {"augment": "mixup"}),
    ("augment", {"augment": "flip", "optimiser": "lbfgs"}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": 0.5}),
    ("device", {"device": "abacus"}),
    ("checkpoint", {"checkpoint": 7}),
    ("checkpoint_every", {"checkpoint_every": 0}),
]


@pytest.mark.parametrize(
    ("argument", "more"), BAD_CONFIGS, ids=[f"{i}-{a}" for i, (a, _) in enumerate(BAD_CONFIGS)]
)
def test_bad_configurations_are_named(argument: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        TrainConfig(**{"epochs": 3, **more})


def one_class_missing() -> datasets.Dataset:
    return datasets.from_arrays(torch.zeros(4, 2, 4, 4), [0, 0, 2, 2])


BAD_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("network", {"network": nn.Linear(32, 3)}),
    ("network", {"network": torch.relu}),
    ("network", {"network": networks.mlp((2, 4, 4), 4)}),
    ("network", {"network": networks.Network(nn.Flatten(), nn.Flatten())}),
    ("dataset", {"dataset": torch.zeros(3, 2)}),
    ("dataset", {"dataset": one_class_missing()}),
    ("dataset", {"dataset": datasets.from_arrays(torch.zeros(4, 2, 4, 4), [0, 0, 0, 0])}),
    ("config", {"config": {"epochs": 3}}),
    ("test", {"test": 3}),
    ("test", {"test": one_class_missing()}),
    ("test", {"test": datasets.gaussian_mixture(4, (2, 4, 4), per_class=2)}),
    ("test", {"test": datasets.gaussian_mixture(3, (2, 4, 5), per_class=2)}),
    ("record", {"record": [6]}),
    ("record", {"record": [-1]}),
    ("record", {"record": [0.5]}),
    ("record", {"record": 0}),
    ("record", {"record": True}),
    ("record", {"record": "all"}),
    ("layers", {"layers": "head"}),
    ("layers", {"layers": ["head", "tail"]}),
    ("layers", {"layers": [3]}),
    ("layers", {"layers": "all", "network": dropping()}),
    ("batch_size", {"config": config(batch_size=23)}),
    ("probe", {"probe": lambda network, epoch: np.zeros(2)}),
    ("probe", {"probe": lambda network, epoch: {1.5: 2}}),
    ("network", {"network": networks.Network(nn.Flatten(), nn.Identity())}),
]


@pytest.mark.parametrize(
    ("argument", "more"), BAD_CALLS, ids=[f"{i}-{a}" for i, (a, _) in enumerate(BAD_CALLS)]
)
def test_bad_arguments_are_named(argument: str, more: dict[str, Any]) -> None:
    arguments = {"network": small_network(), "dataset": small_data(), "config": config(), **more}
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        train(**arguments)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("metric", lambda h: h.curve("nc5")),
        ("layer", lambda h: h.curve("nc1", "head")),
        ("layer", lambda h: h.curve("nc1", "head", test=True)),
        ("epochs", lambda h: record_epochs(0)),
        ("points", lambda h: record_epochs(10, 0)),
    ],
)
def test_bad_questions_are_named(argument: str, call: Callable[[History], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        call(History())
