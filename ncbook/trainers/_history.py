"""What a training run leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ncbook.metrics import CollapseMetrics

__all__ = ["History", "epochs_to_record", "record_epochs"]


@dataclass
class History:
    """A training run as it was measured; lists of measurements run parallel to ``epochs``.

    Args:
        epochs: the epochs after which was measured; 0 is the network before training.
        metrics: of the features, on the training set without augmentation, in eval mode, with the labels that
            were trained on.
        layers: the same (without a classifier) for each layer that was asked for.
        train_accuracy: with the labels that were trained on, in eval mode.
        test_accuracy: on the test set, where one was given.
        test_metrics: of the test set's features, where one was given; each class centred at its test mean.
        losses: mean training loss of each epoch 1, 2, … as met along the way, without penalties.
        interpolation_epoch: the first epoch after which the network in eval mode makes no error on the
            training set; None if there was none.
        probes: what the ``probe`` returned.
        seconds: the wall time of all sessions that took part.
        precision: what the run computed in.
        device: what it computed on.

    >>> History().curve("nc1")
    array([], dtype=float64)
    """

    epochs: list[int] = field(default_factory=list)
    metrics: list[CollapseMetrics] = field(default_factory=list)
    layers: dict[str, list[CollapseMetrics]] = field(default_factory=dict)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    test_metrics: list[CollapseMetrics] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    interpolation_epoch: int | None = None
    probes: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    precision: str = ""
    device: str = ""

    def curve(self, metric: str, layer: str | None = None, *, test: bool = False) -> npt.NDArray[np.float64]:
        """Return one metric at the recorded epochs.

        Args:
            metric: a field of :class:`ncbook.metrics.CollapseMetrics`.
            layer: one of ``layers``; None is the features.
            test: of the test set.

        Raises:
            ValueError: the metric or the layer is unknown, or it was not measured.
        """
        if layer is not None and (test or layer not in self.layers):
            raise ValueError(f"layer must be one of {list(self.layers)} (training set only), got {layer!r}")
        features = self.test_metrics if test else self.metrics
        measured = features if layer is None else self.layers[layer]
        if metric not in CollapseMetrics.__dataclass_fields__:
            raise ValueError(f"metric must be a field of CollapseMetrics, got {metric!r}")
        values = [getattr(entry, metric) for entry in measured]
        if any(value is None for value in values):
            raise ValueError(
                f"metric {metric!r} needs the classifier's weight, which these features have not"
            )
        return np.array(values, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return the history in plain containers and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> History:
        """Return the history that :meth:`to_dict` has taken apart."""
        history = cls(**plain)
        history.metrics = _rebuild(history.metrics)
        history.test_metrics = _rebuild(history.test_metrics)
        history.layers = {name: _rebuild(entries) for name, entries in history.layers.items()}
        return history


def record_epochs(epochs: int, points: int = 20) -> tuple[int, ...]:
    """Return epoch 0 and about ``points`` epochs up to the last one, evenly spread on a logarithmic axis.

    Raises:
        ValueError: an argument is not a positive integer.

    >>> record_epochs(100, 5)
    (0, 1, 3, 10, 32, 100)
    """
    for name, value in (("epochs", epochs), ("points", points)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    spread = np.rint(np.geomspace(1, epochs, points)).astype(int).tolist()
    return tuple(sorted({0, *spread, epochs}))


def epochs_to_record(record: int | Sequence[int] | None, epochs: int) -> tuple[int, ...]:
    """Check the argument ``record`` of a training run; the last epoch is always recorded."""
    if record is None:
        return record_epochs(epochs)
    if isinstance(record, int) and not isinstance(record, bool):
        if record < 1:
            raise ValueError(f"record must be at least 1 epoch, got {record}")
        return record_epochs(epochs, record)
    if isinstance(record, (str, bool)) or not isinstance(record, (Sequence, np.ndarray, range)):
        raise ValueError(f"record must be None, a number of epochs or a sequence of them, got {record!r}")
    for epoch in record:
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or not 0 <= epoch <= epochs:
            raise ValueError(f"record must hold epochs from 0 to {epochs}, got {epoch!r}")
    return tuple(sorted({*(int(epoch) for epoch in record), epochs}))


def _rebuild(entries: Sequence[Any]) -> list[CollapseMetrics]:
    return [CollapseMetrics(**entry) for entry in entries]
