"""The trainer of real networks: the whole data set on the device, collapse measured along the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ncbook import runtime
from ncbook.datasets import Dataset
from ncbook.trainers._checkpoint import BrokenCheckpoint, CheckpointMismatch
from ncbook.trainers._config import TrainConfig
from ncbook.trainers._ensemble import DivergedRuns, Ensemble, EnsembleHistory, train_ensemble
from ncbook.trainers._history import History, epochs_to_record, record_epochs
from ncbook.trainers._run import NonFiniteLoss, Probe, Run

__all__ = [
    "BrokenCheckpoint",
    "CheckpointMismatch",
    "DivergedRuns",
    "Ensemble",
    "EnsembleHistory",
    "History",
    "NonFiniteLoss",
    "TrainConfig",
    "record_epochs",
    "train",
    "train_ensemble",
]


def train(
    network: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    record: int | Sequence[int] | None = None,
    layers: str | Sequence[str] | None = None,
    test: Dataset | None = None,
    probe: Probe | None = None,
) -> History:
    """Train a network in place and measure its collapse along the way.

    The run is a function of the network's initial weights, the data and the configuration: on a CPU with the
    same number of threads it is the same bit for bit, also when it was interrupted and resumed from its
    checkpoint. The global random state is left as it was; the network is left on its device in eval mode.

    Args:
        network: with the parts ``features`` and ``head``, such as :func:`ncbook.networks.mlp`.
        dataset: the training set.
        config: the run.
        record: when to measure: a number of epochs, spread by :func:`record_epochs`; the epochs themselves;
            or None for 20. The last epoch is always measured.
        layers: submodules whose outputs are measured as well, by name (``name:input`` for what enters it);
            ``"all"`` takes those that the network names as its layers.
        test: a test set with the same classes.
        probe: called as ``probe(network, epoch)`` at the recorded epochs, in eval mode and without gradients;
            what it returns (tensors, numbers, containers of them) is kept in ``History.probes``.

    Raises:
        ValueError: an argument does not fit.
        NonFiniteLoss: the loss became NaN or infinite.
        BrokenCheckpoint: the checkpoint file is damaged.
        CheckpointMismatch: the checkpoint file belongs to another run.

    >>> from ncbook import datasets, networks
    >>> data = datasets.load("digits", per_class=20)
    >>> network = networks.mlp(data.shape, 10, width=32)
    >>> history = train(network, data, TrainConfig(epochs=20, batch_size=50, weight_decay=1e-2), record=[0])
    >>> history.epochs, history.train_accuracy[-1]
    ([0, 20], 1.0)
    """
    _check_arguments(network, dataset, config, test)
    recorded = epochs_to_record(record, config.epochs)
    names = _layer_names(network, layers)
    device = torch.device(config.device) if config.device is not None else runtime.device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)  # for dropout and whatever else a network draws
        run = Run(network, dataset, config, recorded, names, test, probe)
        run.resume()
        return run.execute()


def _check_arguments(network: nn.Module, dataset: Dataset, config: TrainConfig, test: Dataset | None) -> None:
    for name in ("features", "head"):
        if not isinstance(network, nn.Module) or not isinstance(getattr(network, name, None), nn.Module):
            raise ValueError(
                f"network must be a torch module with the parts features and head (networks.Network joins "
                f"any two), got {type(network).__name__} without {name}"
            )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dataset must be a Dataset (datasets.from_arrays makes one), got {type(dataset).__name__}"
        )
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config must be a TrainConfig, got {type(config).__name__}")
    if dataset.num_classes < 2:
        raise ValueError(f"dataset must have at least 2 classes, got {dataset.num_classes}")
    _require_all_classes(dataset, "dataset")
    if test is None:
        return
    if not isinstance(test, Dataset):
        raise ValueError(f"test must be a Dataset, got {type(test).__name__}")
    if test.num_classes != dataset.num_classes or test.shape != dataset.shape:
        raise ValueError(
            f"test must have {dataset.num_classes} classes and images {dataset.shape} like the training set, "
            f"got {test.num_classes} and {test.shape}"
        )
    _require_all_classes(test, "test")


def _require_all_classes(dataset: Dataset, name: str) -> None:
    empty = (dataset.counts == 0).nonzero().reshape(-1).tolist()
    if empty:
        raise ValueError(
            f"{name} must hold samples of every class for collapse to be measured, got none of {empty}"
        )


def _layer_names(network: nn.Module, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    if layers is None:
        return ()
    if layers == "all":
        layers = getattr(network, "layer_names", ())
        if not layers:
            raise ValueError(
                "layers='all' needs a network that names its layers (layer_names): list them instead"
            )
    if isinstance(layers, str):
        raise ValueError(f"layers must be None, 'all' or a sequence of names, got {layers!r}")
    known = dict(network.named_modules())
    for name in layers:
        if not isinstance(name, str) or name.partition(":")[0] not in known:
            raise ValueError(f"layers must name submodules of the network, got {name!r}")
    return tuple(layers)
