"""What a training run is, in one frozen record."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

__all__ = ["TrainConfig"]

_CHOICES = {
    "optimiser": ("sgd", "adam", "lbfgs"),
    "decay_on": ("all", "weights", "head"),
    "schedule": ("cosine", "constant", "step"),
    "loss": ("ce", "mse"),
    "precision": ("auto", "float32", "bf16", "float64"),
    "augment": (None, "flip", "crop", "crop+flip"),
}
_STEP_FACTOR = 0.1  # what the learning rate is multiplied by at each milestone


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""A training run: the objective, the optimiser and the order of the data.

    The objective of a minibatch of B samples out of N is

    .. math:: \frac1B \sum_i \ell(z_i, y_i) + \frac{\lambda_H}{2}\,\frac NB \sum_i \|h_i\|^2
              + \frac{\lambda_W}{2} \|\theta\|^2

    with λ_H = ``feature_decay``, λ_W = ``weight_decay`` and θ the decayed parameters. Decay enters the
    gradient of every optimiser (Adam's too: it is not the decoupled kind).

    Args:
        epochs: passes over the data.
        batch_size: B; None takes all samples at once. The last batch of an epoch is smaller where B does not
            divide N.
        drop_last: leave that smaller batch out.
        optimiser: ``sgd``, ``adam``, or ``lbfgs`` (each batch is one call of at most 20 iterations with
            strong Wolfe line search, memory 10; meant for batches that are large or whole).
        lr: learning rate at the start.
        momentum: of ``sgd``; the other optimisers ignore it.
        weight_decay: λ_W.
        feature_decay: λ_H, on the features of the objective above.
        decay_on: ``all`` parameters, ``weights`` (tensors of two or more axes: no biases, no BatchNorm), or
            those of the ``head`` alone (with ``feature_decay``: the regularisation of the unconstrained
            features model).
        schedule: ``cosine`` to zero, step by step; ``constant``; or ``step``, times 0.1 at each milestone.
        milestones: of ``step``, fractions of the run.
        loss: ``ce``, cross-entropy; or ``mse``, the squared loss ½‖z - y‖² against one-hot targets.
        smoothing: α, label smoothing of the cross-entropy: targets (1 - α) e_k + α/K.
        precision: ``float32``, ``float64``, ``bf16`` (bfloat16 autocast with float32 weights), or ``auto``:
            bf16 for convolutional networks where the device computes in it, float32 otherwise. What is
            measured along the way is computed in float32 or float64 always.
        augment: None, ``flip`` (left-right), ``crop`` (4 pixels of padding, random crop), or ``crop+flip``.
        seed: of everything random here: the order of the data, augmentation, dropout.
        device: None takes the best one, :func:`ncbook.runtime.device`.
        checkpoint: a file to save to and to resume from.
        checkpoint_every: epochs between two savings.

    Raises:
        ValueError: a value is not in its range.

    >>> TrainConfig(epochs=400, batch_size=100, lr=0.05, weight_decay=1e-2).schedule
    'cosine'
    """

    epochs: int
    batch_size: int | None = 128
    drop_last: bool = False
    optimiser: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    feature_decay: float = 0.0
    decay_on: str = "all"
    schedule: str = "cosine"
    milestones: Sequence[float] = (1 / 3, 2 / 3)
    loss: str = "ce"
    smoothing: float = 0.0
    precision: str = "auto"
    augment: str | None = None
    seed: int = 0
    device: str | torch.device | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        for name in ("epochs", "checkpoint_every"):
            _require_integer(getattr(self, name), name, 1)
        if self.batch_size is not None:
            _require_integer(self.batch_size, "batch_size", 1)
        _require_integer(self.seed, "seed", 0)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if not isinstance(self.drop_last, bool):
            raise ValueError(f"drop_last must be True or False, got {self.drop_last!r}")
        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        _require_number(self.lr, "lr", 0.0, math.inf, open_below=True)
        _require_number(self.momentum, "momentum", 0.0, 1.0, open_above=True)
        _require_number(self.weight_decay, "weight_decay", 0.0, math.inf)
        _require_number(self.feature_decay, "feature_decay", 0.0, math.inf)
        _require_number(self.smoothing, "smoothing", 0.0, 1.0)
        marks = self.milestones
        if isinstance(marks, str) or not isinstance(marks, Sequence):
            raise ValueError(f"milestones must be a sequence of fractions of the run, got {marks!r}")
        for mark in marks:
            _require_number(mark, "milestones", 0.0, 1.0, open_below=True, open_above=True)
        if list(marks) != sorted(marks):
            raise ValueError(f"milestones must ascend, got {marks!r}")
        object.__setattr__(self, "milestones", tuple(float(mark) for mark in marks))

    def _check_combinations(self) -> None:
        if self.loss == "mse" and self.smoothing != 0.0:
            raise ValueError(f"smoothing must be 0 with loss='mse', got {self.smoothing}")
        if self.optimiser == "lbfgs" and self.augment is not None:
            raise ValueError(
                "augment must be None with optimiser='lbfgs', whose line search needs fixed inputs"
            )
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError):
                raise ValueError(f"device must name a torch device, got {self.device!r}") from None
        if self.checkpoint is not None and not isinstance(self.checkpoint, (str, os.PathLike)):
            raise ValueError(f"checkpoint must be a path, got {self.checkpoint!r}")

    def rate_factor(self, done: float) -> float:
        """Return what the learning rate is multiplied by when the fraction ``done`` of all steps is done.

        >>> TrainConfig(epochs=1).rate_factor(0.5)
        0.5
        """
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "step":
            return _STEP_FACTOR ** sum(done >= mark for mark in self.milestones)
        return 1.0

    def fingerprint(self) -> dict[str, Any]:
        """Return all that decides the numbers of a run: everything but where it computes and saves."""
        fields = asdict(self)
        for name in ("device", "checkpoint", "checkpoint_every"):
            del fields[name]
        return fields


def _require_integer(value: Any, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _require_number(
    value: Any, name: str, low: float, high: float, *, open_below: bool = False, open_above: bool = False
) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if fine:
        fine = (low < value if open_below else low <= value) and (
            value < high if open_above else value <= high
        )
    if not fine:
        interval = (
            f"{'(' if open_below else '['}{low}, {high}{')' if open_above or high == math.inf else ']'}"
        )
        raise ValueError(f"{name} must be a number in {interval}, got {value!r}")
