"""What drives collapse: one recipe on Fashion-MNIST, changed in one thing at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ncbook import datasets, networks, trainers
from ncbook.datasets import Dataset
from ncbook.experiments._registry import Pieces, experiment
from ncbook.trainers import TrainConfig

__all__ = ["SETTINGS", "clock", "fashion_ablation"]

SETTINGS: dict[str, dict[str, Any]] = {
    "reference": {},
    "decay 0": {"weight_decay": 0.0},
    "decay 0.0005": {"weight_decay": 5e-4},
    "decay 0.002": {"weight_decay": 2e-3},
    "decay 0.05": {"weight_decay": 5e-2},
    "decay of matrices only": {"decay_on": "weights"},
    "step schedule": {"schedule": "step"},
    "constant rate": {"schedule": "constant"},
    "no normalisation, decay 0.0005": {"batch_norm": False, "weight_decay": 5e-4},
    "no normalisation": {"batch_norm": False},
    "random labels": {"random_labels": True},
}
"""What each setting changes in the reference: cosine schedule, BatchNorm, decay 0.01 on all parameters."""

_REFERENCE: dict[str, Any] = {"lr": 0.05, "weight_decay": 1e-2, "schedule": "cosine", "decay_on": "all"}
_METRICS = ("nc1", "nc1_ratio", "cdnv", "nc2_norm", "nc2_angle", "nc2_etf", "nc3", "nc4")
_SMALL = {"per_class": 100, "width": 64, "epochs": 60, "batch_size": 250, "points": 8, "seeds": 1}
_LARGE = {"per_class": 200, "width": 256, "epochs": 300, "batch_size": 250, "points": 16, "seeds": 3}


def clock(config: TrainConfig, samples: int) -> float:
    r"""Return how many e-folds weight decay alone would do in a run: the sum over all steps of its rate,

    .. math:: T = \sum_t \frac{\mathrm{lr}_t\, \lambda}{1 - \mathrm{momentum}} .

    Args:
        config: a run of stochastic gradient descent.
        samples: N, the size of its training set.

    Raises:
        ValueError: the optimiser is not ``sgd``, or there are no samples.

    Source: the sum of the rows of a classifier decays by just this factor, to leading order in lr_t λ.

    >>> round(clock(TrainConfig(epochs=300, batch_size=250, lr=0.05, weight_decay=1e-2), 2000), 2)
    6.0
    """
    if config.optimiser != "sgd":
        raise ValueError(f"config must be a run of sgd, got the optimiser {config.optimiser!r}")
    if samples < 1:
        raise ValueError(f"samples must be a positive number, got {samples}")
    batch = min(config.batch_size or samples, samples)
    steps = config.epochs * max(1, samples // batch if config.drop_last else -(-samples // batch))
    rates = sum(config.lr * config.rate_factor(step / steps) for step in range(steps))
    return rates * config.weight_decay / (1 - config.momentum)


def _data_note(arguments: Mapping[str, Any]) -> dict[str, Any]:
    data = datasets.load("fashion-mnist", per_class=arguments["per_class"])
    note = f"the first {arguments['per_class']} training images of each class"
    return {"name": data.name, "sha256": data.sha256, "note": note}


@experiment(
    "fashion-ablation",
    "Collapse of an MLP on Fashion-MNIST with another decay, schedule, or no normalisation.",
    quick=_SMALL,
    full=_LARGE,
    data=_data_note,
)
def fashion_ablation(
    seeds: list[int], per_class: int, width: int, epochs: int, batch_size: int, points: int
) -> Pieces:
    """Train the reference and its variants, and measure each along the way.

    Args:
        seeds: of the initial weights and of the order of the data; each setting runs once with each.
        per_class: training images of a class; of the test images half as many are used, 200 at most.
        width: of the three hidden layers.
        epochs: of each run.
        batch_size: of each run.
        points: measurements along a run, evenly spread in its epochs, and one before it.

    Returns:
        For each of :data:`SETTINGS`: its ``weight_decay`` and :func:`clock`; the ``epochs`` measured; ``nc1``
        there, (seeds, epochs); of each seed at the end the ``final`` metrics, the test set's ``test_cdnv``,
        ``train_accuracy``, ``test_accuracy``, the ``interpolation_epoch`` (None where there was none) and
        the ``test_accuracy_then``, and, for networks whose whole last block decays, the ``wrong_class``
        probability and the ``objective``: mean loss and decay of the head and of the last BatchNorm.

    Raises:
        ValueError: a size is not positive, or there are fewer images than asked for.

    >>> from ncbook.experiments import run
    >>> sizes = {"per_class": 5, "width": 8, "epochs": 2, "batch_size": 25, "points": 1}
    >>> found = run("fashion-ablation", "quick", **sizes).results["reference"]
    >>> found["epochs"], len(found["nc1"])
    ([0, 2], 1)
    """
    if points < 1:
        raise ValueError(f"points must be a positive number, got {points}")
    found: dict[str, Any] = {}
    for name, changes in SETTINGS.items():
        plain = {key: value for key, value in changes.items() if key not in ("batch_norm", "random_labels")}
        runs = []
        for seed in seeds:
            config = TrainConfig(epochs=epochs, batch_size=batch_size, seed=seed, **(_REFERENCE | plain))
            work = partial(_train, changes, config, per_class, width, points)
            runs.append((yield f"{name}, seed {seed}", work))
        found[name] = {"weight_decay": config.weight_decay, "clock": clock(config, per_class * 10)}
        found[name]["epochs"] = runs[0]["epochs"]
        found[name] |= {key: [run[key] for run in runs] for key in runs[0] if key != "epochs"}
    return found


def _load(per_class: int, random_labels: bool, seed: int) -> tuple[Dataset, Dataset]:
    """The training and the test set; random labels are a permutation of the true ones."""
    noise: dict[str, Any] = {"label_noise": 0.9, "noise": "permute", "seed": seed} if random_labels else {}
    test = datasets.load("fashion-mnist", split="test", per_class=min(200, max(1, per_class // 2)))
    return datasets.load("fashion-mnist", per_class=per_class, **noise), test


def _train(
    changes: Mapping[str, Any], config: TrainConfig, per_class: int, width: int, points: int
) -> dict[str, Any]:
    train, test = _load(per_class, changes.get("random_labels", False), config.seed)
    batch_norm = changes.get("batch_norm", True)
    network = networks.mlp(
        train.shape, train.num_classes, width=width, batch_norm=batch_norm, seed=config.seed
    )
    record = sorted({round(config.epochs * i / points) for i in range(points + 1)})
    history = trainers.train(network, train, config, record=record, test=test)
    accuracies = history.test_accuracy
    then = history.interpolation_epoch
    after = [i for i, epoch in enumerate(history.epochs) if then is not None and epoch >= then]
    last = history.metrics[-1]
    return {
        "epochs": history.epochs,
        "nc1": [_finite(entry.nc1) for entry in history.metrics],
        "final": {name: _finite(getattr(last, name)) for name in _METRICS},
        "test_cdnv": _finite(history.test_metrics[-1].cdnv),
        "train_accuracy": history.train_accuracy[-1],
        "test_accuracy": accuracies[-1],
        "interpolation_epoch": then,
        "test_accuracy_then": accuracies[after[0]] if after else None,
        **_ending(network, train, config, batch_norm),
    }


@torch.no_grad()
def _ending(network: nn.Module, train: Dataset, config: TrainConfig, batch_norm: bool) -> dict[str, Any]:
    """Wrong-class probability and objective of the last block, the whole training set being one batch."""
    if not batch_norm or config.decay_on != "all" or config.weight_decay == 0:
        return {"wrong_class": None, "objective": None}
    network.train()  # BatchNorm with the statistics of this very batch
    parameter = next(network.parameters())
    logits = network(train.images.to(parameter)).double()
    network.eval()
    labels = train.labels.to(logits.device)
    own = torch.softmax(logits, 1).gather(1, labels[:, None])
    last_block = [*network.get_submodule("head").parameters()]
    last_block += [*network.get_submodule("features.layer3.norm").parameters()]
    decay = sum(float(p.double().square().sum()) for p in last_block) * config.weight_decay / 2
    return {
        "wrong_class": float((1 - own).mean()) / (train.num_classes - 1),
        "objective": float(nn.functional.cross_entropy(logits, labels)) + decay,
    }


def _finite(value: float) -> float | None:
    """A record holds no infinity: a metric without a value is None."""
    return value if value < float("inf") else None
