"""Small networks on images with wrong labels: memorization, dilation and accuracy under four losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ncbook import datasets, networks
from ncbook.datasets import Dataset
from ncbook.experiments._registry import Pieces, experiment
from ncbook.memorization_dilation.measured import measure_memorization
from ncbook.networks import Network
from ncbook.trainers import Ensemble, TrainConfig, train_ensemble

__all__ = [
    "LOSSES",
    "MEASURED",
    "SETTINGS",
    "Case",
    "Setting",
    "load_noisy",
    "measure_all",
    "measure_case",
    "noisy_labels",
    "train_cases",
]

LOSSES: dict[str, dict[str, Any]] = {
    "CE": {"loss": "ce", "smoothing": 0.0},
    "α = 0.1": {"loss": "ce", "smoothing": 0.1},
    "α = 0.3": {"loss": "ce", "smoothing": 0.3},
    "squared": {"loss": "mse", "smoothing": 0.0},
}
"""The losses: cross-entropy without and with label smoothing, and the squared loss."""

MEASURED = ("accuracy", "memorised", "displacement", "relative_displacement", "distance", "dilation", "nc1")
"""What is recorded of every network, in the names of ``MeasuredMemorization``."""


class Setting(NamedTuple):
    """A data set, a perceptron [linear - BatchNorm - ReLU] with a linear head, and how long it is trained.

    >>> SETTINGS["digits"].epochs
    25
    """

    dataset: str
    per_class: int
    test_per_class: int | None
    width: int
    depth: int
    d: int
    epochs: int
    batch_size: int
    weight_decay: float = 5e-4


SETTINGS: dict[str, Setting] = {
    "digits": Setting("digits", 120, None, 64, 2, 32, 25, 100),
    "digits, long": Setting("digits", 120, None, 128, 3, 32, 60, 100),
    "fashion": Setting("fashion-mnist", 200, 200, 128, 2, 32, 12, 100),
    "fashion, large": Setting("fashion-mnist", 500, 200, 128, 2, 32, 12, 100),
}
"""Short training, in which few of the wrong labels are memorised, and long training, in which most are."""


class Case(NamedTuple):
    """One network: its loss (a name in :data:`LOSSES`), its noise rate and its seed.

    >>> Case("CE", 0.2, 0).noise
    0.2
    """

    loss: str
    noise: float
    seed: int


def load_noisy(setting: Setting, cases: Sequence[Case]) -> tuple[list[Dataset], Dataset]:
    """Return a training set for each case, all with the same images, and the test set without noise.

    Cases of one seed and one noise rate have the same wrong labels.

    >>> train, test = load_noisy(SETTINGS["digits"], [Case("CE", 0.1, 0), Case("α = 0.1", 0.1, 0)])
    >>> int(train[0].noisy.sum()), bool((train[0].labels == train[1].labels).all()), len(test)
    (120, True, 597)
    """
    loaded: dict[tuple[float, int], Dataset] = {}
    images: Tensor | None = None
    for case in cases:
        key = (case.noise, case.seed)
        if key not in loaded:
            data = datasets.load(
                setting.dataset, per_class=setting.per_class, label_noise=case.noise, seed=case.seed
            )
            images = data.images if images is None else images
            loaded[key] = replace(data, images=images)
    test = datasets.load(setting.dataset, split="test", per_class=setting.test_per_class)
    return [loaded[case.noise, case.seed] for case in cases], test


def train_cases(
    setting: Setting, cases: Sequence[Case], **training: Any
) -> tuple[list[Network], list[Dataset], Dataset, list[Any]]:
    """Train one network for each case, all in one batch.

    SGD with momentum 0.9 and learning rate 0.1, divided by ten after a half and three quarters of the epochs;
    the decay acts on all parameters. Cases of one seed start from the same weights and see the data in the
    same order, so that losses can be compared in pairs.

    Args:
        setting: data, network and length of the training.
        cases: the networks.
        training: ``record`` and ``probe`` of :func:`ncbook.trainers.train_ensemble`.

    Returns:
        The networks, their training sets, the test set, and what the probe returned.

    Raises:
        ValueError: there is no case, or a loss is unknown.

    >>> tiny = SETTINGS["digits"]._replace(per_class=10, width=8, epochs=2)
    >>> nets, train, test, _ = train_cases(tiny, [Case("CE", 0.1, 0), Case("squared", 0.1, 0)])
    >>> len(nets), len(train[0])
    (2, 100)
    """
    if not cases:
        raise ValueError("cases must hold at least one case, got none")
    for case in cases:
        if case.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {case.loss!r}")
    train, test = load_noisy(setting, cases)
    nets, configs = [], []
    for case in cases:
        nets.append(
            networks.mlp(
                train[0].shape,
                train[0].num_classes,
                width=setting.width,
                depth=setting.depth,
                feature_dim=setting.d,
                seed=case.seed,
            )
        )
        configs.append(
            TrainConfig(
                epochs=setting.epochs,
                batch_size=setting.batch_size,
                drop_last=True,
                lr=0.1,
                momentum=0.9,
                weight_decay=setting.weight_decay,
                schedule="step",
                milestones=(0.5, 0.75),
                precision="float32",
                device="cpu",
                seed=case.seed,
                **LOSSES[case.loss],
            )
        )
    history = train_ensemble(nets, train, configs, **training)
    return nets, train, test, history.probes


def measure_case(
    train: Dataset, test: Dataset, outputs: tuple[Tensor, Tensor], test_outputs: tuple[Tensor, Tensor]
) -> dict[str, float | None]:
    """Measure one network from its features and logits on both sets: the numbers named in MEASURED.

    >>> tiny = SETTINGS["digits"]._replace(per_class=10, width=8, epochs=2)
    >>> nets, (train,), test, _ = train_cases(tiny, [Case("CE", 0.1, 0)])
    >>> features = nets[0].features(train.images), nets[0].features(test.images)
    >>> found = measure_case(train, test, *[(h, nets[0].head(h)) for h in features])
    >>> sorted(found) == sorted(MEASURED)
    True
    """
    (features, logits), (test_features, test_logits) = outputs, test_outputs
    found = measure_memorization(
        features,
        train.labels,
        train.true_labels,
        test_features,
        test.labels,
        predictions=logits.argmax(1),
        test_predictions=test_logits.argmax(1),
        num_classes=train.num_classes,
    )
    numbers = asdict(found)
    return {name: numbers[name] for name in MEASURED}


def _data_note(arguments: Mapping[str, Any]) -> dict[str, Any]:
    notes, digests = [], []
    for name in arguments["settings"]:
        setting = SETTINGS[name]
        data = datasets.load(setting.dataset, per_class=setting.per_class)
        notes.append(f"{name}: the first {setting.per_class} training images of each class of {data.name}")
        digests.append(data.sha256)
    return {"name": ", ".join(arguments["settings"]), "sha256": ", ".join(digests), "note": "; ".join(notes)}


@experiment(
    "noisy-labels",
    "Perceptrons on images with wrong labels: memorization, dilation and accuracy under four losses.",
    quick={"settings": ["digits"], "noises": [0.0, 0.2, 0.4], "seeds": 2},
    full={
        "settings": ["digits", "digits, long", "fashion, large"],
        "noises": [0.0, 0.05, 0.1, 0.2, 0.3, 0.4],
        "seeds": 10,
    },
    data=_data_note,
)
def noisy_labels(seeds: list[int], settings: list[str], noises: list[float]) -> Pieces:
    """Train all losses at all noise rates with all seeds, in each setting, and measure every network.

    Args:
        seeds: of the noise, the initial weights and the order of the data.
        settings: names in :data:`SETTINGS`.
        noises: the noise rates η.

    Returns:
        For each setting a dictionary from the name of a loss to a dictionary from the name of a number in
        MEASURED to its values (noises, seeds); ``memorised`` is None where nothing is wrong.

    Raises:
        ValueError: a setting is unknown.

    >>> from ncbook.experiments import run
    >>> found = run("noisy-labels", "quick", noises=[0.2], seeds=[0]).results["digits"]["CE"]
    >>> 0.8 < found["accuracy"][0][0] < 1
    True
    """
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(f"settings must be among {', '.join(SETTINGS)}, got {name!r}")
    results: dict[str, Any] = {}
    for name in settings:
        by_seed = []
        for seed in seeds:
            by_seed.append((yield f"{name}, seed {seed}", partial(_study, SETTINGS[name], noises, seed)))
        results[name] = {
            loss: {
                number: np.swapaxes(np.array([one[loss][number] for one in by_seed], object), 0, 1).tolist()
                for number in MEASURED
            }
            for loss in LOSSES
        }
    return results


def _study(setting: Setting, noises: Sequence[float], seed: int) -> dict[str, dict[str, list[Any]]]:
    """One seed: every loss at every noise rate, in one batch."""
    cases = [Case(loss, noise, seed) for loss in LOSSES for noise in noises]
    nets, train, test, _ = train_cases(setting, cases)
    found = measure_all(nets, train, test)
    return {
        loss: {
            number: [row[number] for case, row in zip(cases, found, strict=True) if case.loss == loss]
            for number in MEASURED
        }
        for loss in LOSSES
    }


def measure_all(
    nets: Ensemble | Sequence[Network], train: Sequence[Dataset], test: Dataset
) -> list[dict[str, float | None]]:
    """Measure all networks of :func:`train_cases`, :func:`measure_case` for each.

    Args:
        nets: the networks, or the ensemble that a probe is given.
        train: their training sets, all with the same images.
        test: the test set.

    >>> tiny = SETTINGS["digits"]._replace(per_class=10, width=8, epochs=2)
    >>> nets, train, test, _ = train_cases(tiny, [Case("CE", 0.1, 0), Case("squared", 0.1, 0)])
    >>> len(measure_all(nets, train, test))
    2
    """
    ensemble = nets if isinstance(nets, Ensemble) else Ensemble(nets)
    on_train, on_test = ensemble.outputs(train[0].images), ensemble.outputs(test.images)
    return [
        measure_case(data, test, (on_train[0][i], on_train[1][i]), (on_test[0][i], on_test[1][i]))
        for i, data in enumerate(train)
    ]
