"""One training run: its state, its steps, and what it measures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ncbook import runtime
from ncbook.datasets import Dataset
from ncbook.metrics import collapse_metrics, measure
from ncbook.trainers._augment import augment_batch
from ncbook.trainers._checkpoint import load_checkpoint, require_same_run, save_checkpoint
from ncbook.trainers._config import TrainConfig
from ncbook.trainers._history import History
from ncbook.trainers._optimisation import (
    choose_precision,
    classifier_of,
    make_optimiser,
    mean_loss,
    split_parameters,
)

__all__ = ["NonFiniteLoss", "Probe", "Run"]

Probe = Callable[[nn.Module, int], Any]

_EVALUATION_ROWS = {"cpu": 1024, "cuda": 8192}
_SEARCH_ROWS = {"cpu": 128, "cuda": 8192}  # a search for errors mostly ends in its first chunk
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class NonFiniteLoss(RuntimeError):
    """The training loss became NaN or infinite.

    The network is back in the state in which the last sound epoch left it, and a checkpoint, if any, is as it
    was saved last.

    Args:
        epoch: in which it happened, counted from 1.
        step: of that epoch, counted from 1.
        loss: the first loss that is not finite.
        history: of the epochs before.
    """

    def __init__(self, epoch: int, step: int, loss: float, history: History) -> None:
        super().__init__(
            f"the training loss is {loss} in epoch {epoch}, step {step}; the network is back at the end of "
            f"epoch {epoch - 1}. Try a smaller learning rate"
        )
        self.epoch, self.step, self.loss, self.history = epoch, step, loss, history


class _Data:
    """A data set on the device, in the type and memory layout in which it is used."""

    def __init__(
        self, dataset: Dataset, device: torch.device, dtype: torch.dtype, channels_last: bool
    ) -> None:
        moved = dataset.to(device, dtype)
        # Rows that lie together are gathered together: for channels_last the whole set is stored that way.
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.images = moved.images.contiguous(memory_format=layout)
        self.labels = moved.labels
        self.channels_last = channels_last

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if not self.channels_last:
            return self.images[rows], self.labels[rows]
        return self.images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2), self.labels[rows]

    def chunks(self, rows: dict[str, int] = _EVALUATION_ROWS) -> Iterator[tuple[Tensor, Tensor]]:
        size = rows.get(self.images.device.type, rows["cpu"])
        return zip(self.images.split(size), self.labels.split(size), strict=True)


class Run:
    """The state of one training run. Users call :func:`ncbook.trainers.train`."""

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        recorded: tuple[int, ...],
        layers: tuple[str, ...],
        test: Dataset | None,
        probe: Probe | None,
    ) -> None:
        self.config, self.recorded, self.layers, self.probe = config, set(recorded), layers, probe
        self.device = torch.device(config.device) if config.device is not None else runtime.device()
        convolutional = any(isinstance(part, _CONVOLUTIONS) for part in network.modules())
        self.precision = choose_precision(config.precision, self.device, convolutional)
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        self.num_classes = dataset.num_classes
        self.identity = self._identify(network, dataset, test, recorded) if config.checkpoint else {}
        self.network = network.to(self.device, dtype)
        if convolutional:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.features, self.head = network.get_submodule("features"), network.get_submodule("head")
        self.train_data = _Data(dataset, self.device, dtype, convolutional)
        self.test_data = None if test is None else _Data(test, self.device, dtype, convolutional)
        self.batch_size = min(config.batch_size or len(dataset), len(dataset))
        self.steps_per_epoch = self._count_steps(len(dataset))
        self.optimiser = make_optimiser(network, config, self.device)
        self.generator = runtime.generator(config.seed, self.device)
        self.history = History(precision=self.precision, device=str(self.device))
        self.history.layers = {name: [] for name in layers}
        self.epoch = 0
        self.suspect = 0  # the chunk of the training set in which the last error was met

    # -- the course of a run ---------------------------------------------------------------------------

    def execute(self) -> History:
        """Train from wherever the run stands to the end."""
        started, before = time.perf_counter(), self.history.seconds
        if self.epoch == 0 and 0 in self.recorded and not self.history.epochs:
            self.record()
        for epoch in runtime.progress(range(self.epoch + 1, self.config.epochs + 1), "training"):
            self.epoch = epoch
            sound = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.train_epoch(sound)
            if self.epoch in self.recorded:
                self.record(sound)
            elif self.history.interpolation_epoch is None and self.makes_no_error():
                self.history.interpolation_epoch = self.epoch
            self.history.seconds = before + time.perf_counter() - started
            if self.epoch % self.config.checkpoint_every == 0 or self.epoch == self.config.epochs:
                self.save()
        self.network.eval()
        return self.history

    def train_epoch(self, sound: dict[str, Tensor]) -> None:
        """Take the steps of one epoch; the loss is looked at in its end, so that no step waits for it."""
        self.network.train()
        order = torch.randperm(len(self.train_data), generator=self.generator, device=self.device)
        batches = order.split(self.batch_size)[: self.steps_per_epoch]
        fits, totals = [], []
        for i, rows in enumerate(batches):
            done = (self.epoch - 1 + i / self.steps_per_epoch) / self.config.epochs
            for group in self.optimiser.param_groups:
                group["lr"] = self.config.lr * self.config.rate_factor(done)
            fit, total = self.step(rows)
            fits.append(fit)
            totals.append(total)
        self.require_finite(torch.stack(totals), sound)
        weights = torch.tensor([len(rows) for rows in batches], dtype=torch.float64, device=self.device)
        self.history.losses.append(float(torch.stack(fits).double() @ weights / weights.sum()))

    def step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; returns the loss without and with the penalties that it computes itself."""
        images, labels = self.train_data.take(rows)
        if self.config.augment is not None:
            images = images.permute(0, 2, 3, 1)
            images = augment_batch(images, self.config.augment, self.generator).permute(0, 3, 1, 2)
        fits: list[Tensor] = []
        total: Any

        def closure() -> Tensor:
            self.optimiser.zero_grad(set_to_none=True)
            fit, total = self.objective(images, labels)
            total.backward()
            fits.append(fit.detach())
            return total

        if self.config.optimiser == "lbfgs":
            total = self.optimiser.step(closure)  # type: ignore[arg-type]
        else:
            total = closure()
            self.optimiser.step()
        return fits[0], torch.as_tensor(total).detach()

    def objective(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of a batch, without and with the penalties that no optimiser adds by itself."""
        with self.autocast():
            features = self.features(images)
            logits = self.head(features)
        logits = logits.to(self.train_data.images.dtype)
        self._check_outputs(features, logits)
        fit = mean_loss(logits, labels, self.config)
        total = fit
        if self.config.feature_decay > 0:
            per_sample = features.to(logits.dtype).square().sum() / len(labels)
            total = total + 0.5 * self.config.feature_decay * len(self.train_data) * per_sample
        if self.config.optimiser == "lbfgs" and self.config.weight_decay > 0:
            decayed, _ = split_parameters(self.network, self.config.decay_on)
            squares = torch.stack([parameter.square().sum() for parameter in decayed]).sum()
            total = total + 0.5 * self.config.weight_decay * squares
        return fit, total

    def _check_outputs(self, features: Tensor, logits: Tensor) -> None:
        if features.ndim != 2 or logits.shape != (len(features), self.num_classes):
            raise ValueError(
                f"network must turn images into features (B, d) and logits (B, {self.num_classes}), "
                f"got the shapes {tuple(features.shape)} and {tuple(logits.shape)}"
            )

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    # -- measuring -------------------------------------------------------------------------------------

    @torch.no_grad()
    def record(self, sound: dict[str, Tensor] | None = None) -> None:
        """Measure the network on the training set, in eval mode and without autocast."""
        self.network.eval()
        features, logits = self.outputs(self.train_data)
        if sound is not None:
            # Weights that broke in the very last step show up here, and in no training loss before.
            self.require_finite(logits.abs().max().reshape(1), sound, step=self.steps_per_epoch)
        accuracy = float((logits.argmax(1) == self.train_data.labels).double().mean())
        if accuracy == 1.0 and self.history.interpolation_epoch is None and self.epoch > 0:
            self.history.interpolation_epoch = self.epoch
        weight, bias = classifier_of(self.head)
        self.history.epochs.append(self.epoch)
        self.history.train_accuracy.append(accuracy)
        self.history.metrics.append(
            collapse_metrics(features, self.train_data.labels, weight, bias, num_classes=self.num_classes)
        )
        self._record_layers()
        self._record_test(weight, bias)
        if self.probe is not None:
            self.history.probes.append(_plain(self.probe(self.network, self.epoch)))

    def outputs(self, data: _Data) -> tuple[Tensor, Tensor]:
        """Features and logits of a whole data set."""
        features = torch.cat([self.features(images) for images, _ in data.chunks()])
        logits = self.head(features)
        self._check_outputs(features, logits)
        return features, logits

    def _record_layers(self) -> None:
        if not self.layers:
            return
        measured = measure(
            self.network,
            list(self.train_data.chunks()),
            features=list(self.layers),
            num_classes=self.num_classes,
        )
        assert isinstance(measured, dict)  # a list of layers gives a dictionary
        for name in self.layers:
            self.history.layers[name].append(measured[name])

    def _record_test(self, weight: Tensor | None, bias: Tensor | None) -> None:
        if self.test_data is None:
            return
        features, logits = self.outputs(self.test_data)
        labels = self.test_data.labels
        self.history.test_accuracy.append(float((logits.argmax(1) == labels).double().mean()))
        self.history.test_metrics.append(
            collapse_metrics(features, labels, weight, bias, num_classes=self.num_classes)
        )

    @torch.no_grad()
    def makes_no_error(self) -> bool:
        """Whether the training error is zero in eval mode.

        Looks first where the last error was met, and stops at the first error: an epoch with errors costs
        about one chunk.
        """
        self.network.eval()
        chunks = list(self.train_data.chunks(_SEARCH_ROWS))
        for i in range(len(chunks)):
            position = (self.suspect + i) % len(chunks)
            images, labels = chunks[position]
            if not bool((self.head(self.features(images)).argmax(1) == labels).all()):
                self.suspect = position
                return False
        return True

    def require_finite(self, losses: Tensor, sound: dict[str, Tensor], step: int | None = None) -> None:
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad) == 0:
            return
        self.network.load_state_dict(sound)
        self.network.eval()
        first = int(bad[0])
        raise NonFiniteLoss(self.epoch, step or first + 1, float(losses[first]), self.history)

    # -- checkpoints -----------------------------------------------------------------------------------

    def save(self) -> None:
        if self.config.checkpoint is None:
            return
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "global_generators": self._global_generators(),
            "history": self.history.to_dict(),
        }
        save_checkpoint(Path(self.config.checkpoint), state)

    def resume(self) -> None:
        """Take over the state of the checkpoint file, if there is one."""
        path = None if self.config.checkpoint is None else Path(self.config.checkpoint)
        if path is None or not path.exists():
            return
        state = load_checkpoint(path)
        require_same_run(path, state["identity"], self.identity)
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generators"][0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["global_generators"][-1], self.device)
        self.history = History.from_dict(state["history"])
        self.epoch = state["epoch"]

    def _global_generators(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _identify(
        self, network: nn.Module, dataset: Dataset, test: Dataset | None, recorded: Sequence[int]
    ) -> dict[str, Any]:
        """All that must agree for a checkpoint to be continued."""
        return {
            **{f"config.{name}": value for name, value in self.config.fingerprint().items()},
            "precision": self.precision,
            "data": dataset.sha256,
            "test data": None if test is None else test.sha256,
            "recorded epochs": list(recorded),
            "layers": list(self.layers),
            "probe": self.probe is not None,
            "network at its start": _sha256_of(network),
        }

    def _count_steps(self, count: int) -> int:
        whole, rest = divmod(count, self.batch_size)
        if rest and not self.config.drop_last:
            if rest == 1 and any(isinstance(part, _NORMS) for part in self.network.modules()):
                raise ValueError(
                    f"batch_size {self.batch_size} leaves a last batch of one sample out of {count}, whose "
                    "variance BatchNorm cannot take: choose another batch_size or drop_last=True"
                )
            return whole + 1
        return whole


def _sha256_of(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Refuse what a checkpoint could not give back."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
        return {key: _plain(entry) for key, entry in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        "probe must return tensors, numbers, strings, or lists and dictionaries of them, "
        f"got {type(value).__name__}"
    )
