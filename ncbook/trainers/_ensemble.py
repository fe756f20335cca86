"""Many small networks trained as one: every run is a slice of one batched tensor computation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from ncbook import runtime
from ncbook.datasets import Dataset
from ncbook.networks import Network
from ncbook.trainers._config import TrainConfig
from ncbook.trainers._history import epochs_to_record

__all__ = ["DivergedRuns", "Ensemble", "EnsembleHistory", "train_ensemble"]

_OWN = ("lr", "weight_decay", "loss", "smoothing", "seed")  # what each run may choose for itself
_UNUSED = {"optimiser": "sgd", "feature_decay": 0.0, "augment": None, "checkpoint": None}


class DivergedRuns(RuntimeError):
    """The training loss of some runs of an ensemble became NaN or infinite.

    Args:
        epoch: in which it was seen, counted from 1.
        runs: the positions of these runs.
    """

    def __init__(self, epoch: int, runs: list[int]) -> None:
        super().__init__(
            f"the training loss of the runs {runs} is not finite in epoch {epoch}: "
            "try a smaller learning rate"
        )
        self.epoch, self.runs = epoch, runs


class _Layer:
    """One layer of all networks: linear map, BatchNorm if there is one, ReLU if there is one."""

    def __init__(self, linears: list[nn.Linear], norms: list[nn.BatchNorm1d], relu: bool) -> None:
        self.linears, self.norms, self.relu = linears, norms, relu
        self.weight = torch.stack([linear.weight.detach() for linear in linears])
        biases = [linear.bias for linear in linears]
        self.bias = (
            torch.stack([bias.detach() for bias in biases])[:, :, None] if biases[0] is not None else None
        )
        self.gamma = self.beta = self.mean = self.variance = None
        self.momentum = _momentum(norms[0]) if norms else 0.0
        if norms:
            self.gamma = torch.stack([norm.weight.detach() for norm in norms])
            self.beta = torch.stack([norm.bias.detach() for norm in norms])
            self.mean = torch.stack([_buffer(norm, "running_mean") for norm in norms]).flatten()
            self.variance = torch.stack([_buffer(norm, "running_var") for norm in norms]).flatten()

    @property
    def parameters(self) -> list[Tensor]:
        return [p for p in (self.weight, self.bias, self.gamma, self.beta) if p is not None]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """Map columns (B, inputs, n) to columns (B, outputs, n)."""
        z = self.weight @ x if self.bias is None else torch.baddbmm(self.bias, self.weight, x)
        if self.gamma is not None and self.beta is not None:
            # To BatchNorm the units of all networks are channels of one picture of n pixels.
            z = nn.functional.batch_norm(
                z.reshape(1, -1, z.shape[2]),
                self.mean,
                self.variance,
                self.gamma.flatten(),
                self.beta.flatten(),
                training=training,
                momentum=self.momentum,
                eps=self.norms[0].eps,
            ).view_as(z)
        return z.relu() if self.relu else z

    @torch.no_grad()
    def write_back(self) -> None:
        for i, linear in enumerate(self.linears):
            linear.weight.copy_(self.weight[i])
            if self.bias is not None:
                linear.bias.copy_(self.bias[i, :, 0])
        if self.gamma is None or self.beta is None or self.mean is None or self.variance is None:
            return
        for i, norm in enumerate(self.norms):
            norm.weight.copy_(self.gamma[i])
            norm.bias.copy_(self.beta[i])
            _buffer(norm, "running_mean").copy_(self.mean.view_as(self.gamma)[i])
            _buffer(norm, "running_var").copy_(self.variance.view_as(self.gamma)[i])


class Ensemble:
    """B perceptrons of one shape, stacked along a leading axis; what a probe is given.

    Args:
        networks: made by :func:`ncbook.networks.mlp` with ReLU, with or without BatchNorm, and a linear head.
        device: where the stack lies; the networks are moved there, and to the dtype.
        dtype: of its numbers.

    Raises:
        ValueError: a network has another form, or they differ in shape.

    >>> from ncbook import networks
    >>> ensemble = Ensemble([networks.mlp(4, 3, width=8, seed=seed) for seed in (0, 1)])
    >>> features, logits = ensemble.outputs(torch.zeros(5, 4))
    >>> features.shape, logits.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 3]))
    """

    def __init__(
        self,
        networks: Sequence[Network],
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.networks = list(networks)
        if not self.networks:
            raise ValueError("networks must hold at least one network, got none")
        shapes = [[tuple(value.shape) for value in net.state_dict().values()] for net in self.networks]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("networks must all have the same shape, got different ones")
        for network in self.networks:
            network.to(device or torch.device("cpu"), dtype)
        parts = [_parts(network) for network in self.networks]
        if any([p[2] for p in part] != [p[2] for p in parts[0]] for part in parts):
            raise ValueError("networks must all have their ReLUs in the same places, got different ones")
        self.layers = [
            _Layer([linear for linear, _, _ in column], [norm for _, norm, _ in column if norm], column[0][2])
            for column in zip(*parts, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.networks)

    def forward(self, x: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Features (B, d, n) and logits (B, K, n) of columns x (B, inputs, n)."""
        for layer in self.layers[:-1]:
            x = layer(x, training)
        return x, self.layers[-1](x, training)

    @torch.no_grad()
    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, n, d) and logits (B, n, K) of the same n images, in eval mode."""
        weight = self.layers[0].weight
        x = images.reshape(len(images), -1).to(weight).T.expand(len(self), -1, -1)
        features, logits = self.forward(x, training=False)
        return features.mT, logits.mT


Probe = Callable[[Ensemble, int], Any]


@dataclass
class EnsembleHistory:
    """What :func:`train_ensemble` leaves behind.

    Args:
        epochs: after which the probe was called.
        probes: what it returned, parallel to ``epochs``.
        losses: (epochs, B), mean training loss of every epoch and run as met along the way.
        seconds: wall time.

    >>> EnsembleHistory().probes
    []
    """

    epochs: list[int] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    seconds: float = 0.0


def train_ensemble(
    networks: Sequence[Network],
    datasets: Sequence[Dataset],
    configs: Sequence[TrainConfig],
    *,
    record: int | Sequence[int] | None = None,
    probe: Probe | None = None,
) -> EnsembleHistory:
    """Train B small perceptrons in place, each as :func:`ncbook.trainers.train` would, all in one batch.

    Run i trains ``networks[i]`` on ``datasets[i]`` by ``configs[i]``. A small network leaves a processor idle
    between its many small operations; stacked, B of them are one batched product for each layer. The runs do
    not touch each other: initial weights, labels, order of the data, loss, smoothing, learning rate and decay
    are each run's own, and up to rounding the results are those of B single trainings.

    Args:
        networks: perceptrons of one shape (:func:`ncbook.networks.mlp`, ReLU, linear head).
        datasets: one for each network, all with the same images (labels may differ).
        configs: one for each network; lr, weight_decay, loss, smoothing and seed may differ, all else must be
            equal. The optimiser is SGD, without feature_decay, augmentation and checkpoints.
        record: when the probe is called, as in :func:`ncbook.trainers.train`.
        probe: called as ``probe(ensemble, epoch)`` with the :class:`Ensemble`; its answer is kept.

    Raises:
        ValueError: the three lists do not fit each other, or ask for what cannot be batched.
        DivergedRuns: a loss became NaN or infinite.

    >>> from ncbook import datasets, networks
    >>> data = datasets.load("digits", per_class=10)
    >>> nets = [networks.mlp(data.shape, 10, width=16, seed=seed) for seed in range(3)]
    >>> configs = [TrainConfig(epochs=20, batch_size=50, seed=seed) for seed in range(3)]
    >>> history = train_ensemble(nets, [data] * 3, configs)
    >>> history.losses.shape, bool((history.losses[-1] < history.losses[0] / 2).all())
    (torch.Size([20, 3]), True)
    """
    _check(networks, datasets, configs)
    started = time.perf_counter()
    run = _EnsembleRun(networks, datasets, configs)
    recorded = epochs_to_record(record, configs[0].epochs)
    history, losses = EnsembleHistory(), []
    for epoch in runtime.progress(range(configs[0].epochs + 1), "training"):
        if epoch > 0:
            losses.append(run.train_epoch(epoch))
        if probe is not None and epoch in recorded:
            history.epochs.append(epoch)
            history.probes.append(probe(run.ensemble, epoch))
    for layer in run.ensemble.layers:
        layer.write_back()
    for network in networks:
        network.eval()
    history.losses = torch.stack(losses)
    history.seconds = time.perf_counter() - started
    return history


class _EnsembleRun:
    """The state of the training of an ensemble."""

    def __init__(
        self, networks: Sequence[Network], datasets: Sequence[Dataset], configs: Sequence[TrainConfig]
    ) -> None:
        first = configs[0]
        self.config = first
        self.device = torch.device(first.device) if first.device is not None else runtime.device()
        dtype = torch.float64 if first.precision == "float64" else torch.float32
        self.ensemble = Ensemble(networks, self.device, dtype)
        self.images = datasets[0].images.flatten(1).to(self.device, dtype)
        labels = torch.stack([data.labels for data in datasets]).to(self.device)

        def column(name: str) -> Tensor:
            values = [getattr(config, name) for config in configs]
            return torch.tensor(values, dtype=dtype, device=self.device)[:, None, None]

        smoothing, K = column("smoothing"), datasets[0].num_classes
        onehot = nn.functional.one_hot(labels, K).mT.to(dtype)
        self.targets = (1 - smoothing) * onehot + smoothing / K  # (B, K, N)
        self.squared = torch.tensor([c.loss == "mse" for c in configs], device=self.device)[:, None, None]
        self.lr, self.decay = column("lr"), column("weight_decay")
        self.generators = [runtime.generator(config.seed, self.device) for config in configs]
        self.parameters = [p for layer in self.ensemble.layers for p in layer.parameters]
        self.decayed = self._decayed()
        self.velocity: list[Tensor] | None = None
        for parameter in self.parameters:
            parameter.requires_grad_()

    def _decayed(self) -> list[bool]:
        """For every parameter whether it decays."""
        if self.config.decay_on == "all":
            return [True] * len(self.parameters)
        weights = [layer.weight for layer in self.ensemble.layers]
        head = self.ensemble.layers[-1].parameters
        chosen = weights if self.config.decay_on == "weights" else head
        return [any(parameter is other for other in chosen) for parameter in self.parameters]

    def batches(self) -> Iterator[Tensor]:
        """The rows (B, b) of each step of an epoch, every run in its own order."""
        N = len(self.images)
        size = min(self.config.batch_size or N, N)
        draw = [torch.randperm(N, generator=g, device=self.device) for g in self.generators]
        rows = torch.stack(draw)
        yield from rows.split(size, dim=1)[: steps_per_epoch(N, self.config)]

    def train_epoch(self, epoch: int) -> Tensor:
        """Take the steps of an epoch; returns the mean loss of each run."""
        steps = steps_per_epoch(len(self.images), self.config)
        totals, count = torch.zeros(len(self.ensemble), dtype=torch.float64, device=self.device), 0
        for i, rows in enumerate(self.batches()):
            done = (epoch - 1 + i / steps) / self.config.epochs
            totals += self.step(rows, self.config.rate_factor(done)).double() * rows.shape[1]
            count += rows.shape[1]
        bad = (~torch.isfinite(totals)).nonzero().flatten().tolist()
        if bad:
            raise DivergedRuns(epoch, bad)
        return totals.cpu() / count

    def step(self, rows: Tensor, factor: float) -> Tensor:
        """One step of SGD with momentum; returns the loss (B,) before it."""
        targets = self.targets.gather(2, rows[:, None, :].expand(-1, self.targets.shape[1], -1))
        with torch.enable_grad():
            _, logits = self.ensemble.forward(self.images[rows].mT, training=True)
        loss, gradient = self._loss(logits.detach(), targets)
        # The loss of a run depends on its own slice alone, so that one backward pass serves all runs.
        gradients = torch.autograd.grad(logits, self.parameters, gradient / rows.shape[1])
        self._move(list(gradients), factor)
        return loss

    def _loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses (B,) and their gradients in the logits (B, K, n), times n."""
        log_p = logits.log_softmax(1)
        residual = logits - targets
        entropy = -(targets * log_p).sum(1).mean(1)
        square = 0.5 * residual.square().sum(1).mean(1)
        loss = torch.where(self.squared[:, 0, 0], square, entropy)
        return loss, torch.where(self.squared, residual, log_p.exp() - targets)

    @torch.no_grad()
    def _move(self, gradients: list[Tensor], factor: float) -> None:
        for parameter, gradient, decays in zip(self.parameters, gradients, self.decayed, strict=True):
            if decays:
                gradient.addcmul_(parameter, self.decay.view(-1, *[1] * (parameter.ndim - 1)))
        if self.velocity is None:
            self.velocity = [gradient.clone() for gradient in gradients]
        else:
            for velocity, gradient in zip(self.velocity, gradients, strict=True):
                velocity.mul_(self.config.momentum).add_(gradient)
        for parameter, velocity in zip(self.parameters, self.velocity, strict=True):
            rate = (self.lr * factor).view(-1, *[1] * (parameter.ndim - 1))
            parameter.addcmul_(velocity, rate, value=-1)


def steps_per_epoch(count: int, config: TrainConfig) -> int:
    """Batches of an epoch, the last and smaller one among them unless it is dropped."""
    size = min(config.batch_size or count, count)
    whole, rest = divmod(count, size)
    return whole + (1 if rest and not config.drop_last else 0)


def _check(networks: Sequence[Network], datasets: Sequence[Dataset], configs: Sequence[TrainConfig]) -> None:
    if not len(networks) == len(datasets) == len(configs) or not networks:
        raise ValueError(
            "networks, datasets and configs must be equally many, at least one, "
            f"got {len(networks)}, {len(datasets)} and {len(configs)}"
        )
    if len({id(network) for network in networks}) < len(networks):
        raise ValueError("networks must be different objects, for each is trained in place")
    if any(not parameter.requires_grad for network in networks for parameter in network.parameters()):
        raise ValueError("networks must have no frozen parameters, for all of them are trained")
    first = datasets[0]
    for data in datasets[1:]:
        same = data.images is first.images or torch.equal(data.images, first.images)
        if not same or data.num_classes != first.num_classes:
            raise ValueError("datasets must all have the same images and classes, only labels may differ")
    shared = [f.name for f in fields(TrainConfig) if f.name not in _OWN]
    for config in configs:
        for name in shared:
            if getattr(config, name) != getattr(configs[0], name):
                raise ValueError(f"configs must agree in {name}: only {', '.join(_OWN)} may differ")
    for name, value in _UNUSED.items():
        if getattr(configs[0], name) != value:
            raise ValueError(f"configs must have {name}={value!r}, got {getattr(configs[0], name)!r}")
    if configs[0].precision == "bf16":
        raise ValueError("configs must have precision float32, float64 or auto, got 'bf16'")
    size = min(configs[0].batch_size or len(first), len(first))
    single = size == 1 or (len(first) % size == 1 and not configs[0].drop_last)
    if single and any(isinstance(part, nn.BatchNorm1d) for part in networks[0].modules()):
        raise ValueError(f"batch_size {size} leaves a batch of one image, which BatchNorm cannot take")


def _parts(network: Network) -> list[tuple[nn.Linear, nn.BatchNorm1d | None, bool]]:
    """The layers of a perceptron: linear map, norm, whether a ReLU follows; the head last."""
    parts: list[tuple[nn.Linear, nn.BatchNorm1d | None, bool]] = []
    body = [part for part in network.features.children() if not isinstance(part, nn.Flatten)]
    for part in [*body, network.head]:
        pieces = list(part.children()) or [part]
        linear, norm = pieces[0], next((p for p in pieces if isinstance(p, nn.BatchNorm1d)), None)
        others = [p for p in pieces[1:] if p is not norm]
        if not isinstance(linear, nn.Linear) or any(not isinstance(p, nn.ReLU) for p in others):
            kinds = ", ".join(type(p).__name__ for p in pieces)
            raise ValueError(f"networks must be perceptrons with ReLU and a linear head, got {kinds}")
        parts.append((linear, norm, bool(others)))
    return parts


def _momentum(norm: nn.BatchNorm1d) -> float:
    if norm.momentum is None:
        raise ValueError("networks must have BatchNorm with a momentum, got the cumulative average (None)")
    return norm.momentum


def _buffer(norm: nn.BatchNorm1d, name: str) -> Tensor:
    value = getattr(norm, name)
    if not isinstance(value, Tensor):
        raise ValueError(f"networks must have BatchNorm with {name}, got none")
    return value
