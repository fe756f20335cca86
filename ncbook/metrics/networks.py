"""Measuring the layers of any network with hooks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ncbook.metrics.collapse import CollapseMetrics, check_tolerance, class_count, from_passes
from ncbook.statistics import BetweenScatter, ClassStatistics
from ncbook.statistics.rows import check_classifier, check_labels


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    features: Any,
    head: Any = None,
    num_classes: int | None = None,
    rank_tol: float | None = None,
) -> CollapseMetrics | dict[str, CollapseMetrics]:
    """Measure the collapse of layers of any network over a data set, in two passes over its batches.

    The model runs in eval mode without gradients, on its own device; afterwards the training flag of every
    module, and torch's random state on the CPU, are what they were. Layers of shape (B, C, H, W) or other are
    flattened to (B, C·H·W), so that nothing of a layer is lost; for pooled features name the pooling layer.

    Args:
        model: any module that takes the inputs of a batch.
        batches: what gives pairs (inputs, labels), the same samples each time it is iterated, such as a list
            or a DataLoader without random augmentation (the order may change).
        features: what to measure. ``"block.2"`` is the output of the submodule of that name (as in
            ``model.named_modules()``) and ``"fc:input"`` what enters it; a submodule stands for its output;
            any other callable maps inputs to features. A list of these is measured in the same two passes.
        head: the classifier, for the metrics of one: a linear submodule or its name, or (weight, bias). With
            a list of layers it belongs to the last.
        num_classes: K; None takes the rows of the head, else reads all labels once more beforehand.
        rank_tol: as in :func:`collapse_metrics`, where None looks at the type of the features.

    Returns:
        The metrics; for a list of layers a dictionary from layer names (for callables, their own names).

    Raises:
        ValueError: ``batches`` can be iterated only once or gives other samples the second time, a layer is
            unknown, does not run exactly once for a batch or gives no tensor, or anything that
            :func:`collapse_metrics` refuses.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> batches = [(torch.eye(2), [0, 1]), (2 * torch.eye(2), [0, 1])]
    >>> sorted(measure(model, batches, features=["0", "2:input"], head="2"))
    ['0', '2:input']
    """
    several = isinstance(features, (list, tuple))
    layers = _layers(model, list(features) if several else [features])
    weight, bias = _head(model, head)
    if isinstance(batches, Iterator) or not hasattr(batches, "__iter__"):  # not iter(): it may start workers
        raise ValueError(
            f"batches must be iterable twice, such as a list or a DataLoader, got a {type(batches).__name__}"
        )
    with _evaluating(model), _taps(layers) as taps, torch.random.fork_rng(devices=[]):
        K = class_count(num_classes, weight, _all_labels(batches, num_classes, weight))
        rows = partial(_rows_and_labels, model, batches, layers, taps)
        found = _two_passes(rows, K, {layers[-1].name: (weight, bias)}, rank_tol)
    return found if several else next(iter(found.values()))


@dataclass(frozen=True)
class _Layer:
    """One place in a network: a side of a submodule, or a function of the inputs."""

    name: str
    module: nn.Module | None
    entering: bool = False
    function: Callable[[Any], Any] | None = None


def _two_passes(
    stream: Callable[[], Iterator[tuple[dict[str, Tensor], Any]]],
    K: int,
    heads: dict[str, tuple[Tensor | None, Tensor | None]],
    rank_tol: float | None,
) -> dict[str, CollapseMetrics]:
    first: dict[str, ClassStatistics] = {}
    tolerances: dict[str, float] = {}
    for found, labels in stream():
        for name, rows in found.items():
            tolerances[name] = check_tolerance(rank_tol, rows.dtype)
            first.setdefault(name, ClassStatistics(K, rows.shape[1])).update(rows, labels)
    if not first:
        raise ValueError("batches must hold at least one batch, got none")
    second = {name: BetweenScatter(passed, *heads.get(name, (None, None))) for name, passed in first.items()}
    for found, labels in stream():
        for name, rows in found.items():
            second[name].update(rows, labels)
    seen = next(iter(second.values()))
    if not torch.equal(seen.counts, seen.statistics.counts):
        raise ValueError(
            "batches must give the same samples in both passes, got "
            f"{seen.statistics.counts.tolist()} per class, then {seen.counts.tolist()}"
        )
    return {name: from_passes(passed, rank_tol=tolerances[name]) for name, passed in second.items()}


def _rows_and_labels(
    model: nn.Module, batches: Iterable[Any], layers: list[_Layer], taps: dict[str, list[Any]]
) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Yield the layers' flattened features and the labels, batch by batch."""
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    for batch in batches:
        inputs, labels = _pair(batch)
        with torch.no_grad():
            inputs = _inputs(inputs).to(device)
            given = {layer.name: [layer.function(inputs)] for layer in layers if layer.function is not None}
            taps.clear()  # the functions may have run hooked modules too
            if len(given) < len(layers):
                model(inputs)
        found = {**taps, **given}
        yield {layer.name: _rows(layer, found.get(layer.name, [])) for layer in layers}, labels


@contextmanager
def _taps(layers: list[_Layer]) -> Iterator[dict[str, list[Any]]]:
    """Hook the modules and collect what goes through them under the layers' names."""
    taken: dict[str, list[Any]] = {}

    def keep(name: str, value: Any) -> None:
        # A copy: a ReLU that works in place would change the features after the hook has seen them.
        taken.setdefault(name, []).append(value.clone() if isinstance(value, Tensor) else value)

    handles = []
    for layer in layers:
        if layer.module is not None and layer.entering:
            handles.append(
                layer.module.register_forward_pre_hook(
                    lambda _, inputs, name=layer.name: keep(name, inputs[0] if inputs else None)
                )
            )
        elif layer.module is not None:
            handles.append(
                layer.module.register_forward_hook(lambda _, __, output, name=layer.name: keep(name, output))
            )
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _rows(layer: _Layer, values: list[Any]) -> Tensor:
    if len(values) != 1:
        raise ValueError(f"features: {layer.name!r} must run once for each batch, it ran {len(values)} times")
    if not isinstance(values[0], Tensor) or values[0].ndim < 2:
        got = list(values[0].shape) if isinstance(values[0], Tensor) else type(values[0]).__name__
        raise ValueError(f"features: {layer.name!r} must give a tensor of a row for each sample, got {got}")
    return values[0].detach().flatten(1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, and each module back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _layers(model: nn.Module, wanted: list[Any]) -> list[_Layer]:
    layers = [_layer(model, one) for one in wanted]
    names = [layer.name for layer in layers]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"features must name at least one layer and none twice, got {names}")
    return layers


def _layer(model: nn.Module, wanted: Any) -> _Layer:
    if isinstance(wanted, str):
        path, _, side = wanted.partition(":")
        if side not in {"", "input", "output"}:
            raise ValueError(f"features must end in ':input' or ':output' after a colon, got {wanted!r}")
        return _Layer(wanted, _submodule(model, path, "features"), entering=side == "input")
    if isinstance(wanted, nn.Module):
        return _Layer(_name_of(model, wanted, "features"), wanted)
    if callable(wanted):
        return _Layer(getattr(wanted, "__name__", type(wanted).__name__), None, function=wanted)
    raise ValueError(f"features must be a layer's name, a submodule or a function, got {wanted!r}")


def _submodule(model: nn.Module, path: str, argument: str) -> nn.Module:
    modules = dict(model.named_modules())
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=3, cutoff=0.3) or list(modules)[1:4]
        raise ValueError(f"{argument} must name a submodule of the model such as {near}, got {path!r}")
    return modules[path]


def _name_of(model: nn.Module, module: nn.Module, argument: str) -> str:
    for name, own in model.named_modules():
        if own is module:
            return name
    raise ValueError(f"{argument} must be a submodule of the model, got another {type(module).__name__}")


def _head(model: nn.Module, head: Any) -> tuple[Tensor | None, Tensor | None]:
    if head is None:
        return None, None
    if isinstance(head, str):
        head = _submodule(model, head, "head")
    if isinstance(head, nn.Module):
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f"head must be a linear module or (weight, bias), got a {type(head).__name__}")
        return check_classifier(weight, bias)
    if isinstance(head, (tuple, list)) and len(head) == 2:
        return check_classifier(*head)
    raise ValueError(
        f"head must be a linear submodule, its name or (weight, bias), got {type(head).__name__}"
    )


def _all_labels(batches: Iterable[Any], num_classes: Any, weight: Tensor | None) -> Tensor:
    """Read the labels of all batches, where nothing else says how many classes there are."""
    if num_classes is not None or weight is not None:
        return torch.empty(0, dtype=torch.int64)
    found = [check_labels(_pair(batch)[1]).cpu() for batch in batches]
    if not found:
        raise ValueError("batches must hold at least one batch, got none")
    return torch.cat(found)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise ValueError(f"batches must give pairs (inputs, labels), got a {type(batch).__name__}")
    return batch[0], batch[1]


def _inputs(inputs: Any) -> Tensor:
    try:
        return torch.as_tensor(inputs)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"batches must give inputs as a tensor, got a {type(inputs).__name__}") from None
