"""Deep heads on real images: loss, ranks and collapse, level by level, under the penalty of the model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook import datasets, runtime
from ncbook.datasets import Dataset
from ncbook.dufm import DeepUFM, DeepUFMParams, deep_layers
from ncbook.experiments._registry import Pieces, experiment

__all__ = ["DeepHeads", "deep_heads", "head_measures", "train_deep_heads"]

_RANK_TOL = 1e-2  # as in the phase diagrams: finer tolerances count the tails of unfinished runs
_BODY_LR, _HEAD_LR = 2e-3, 1e-2
_SMALL = {
    "names": ["digits", "fashion-mnist"],
    "per_class": 12,
    "widths": [16, 48],
    "body": 64,
    "steps": 600,
    "decay": 4e-3,
    "seeds": 3,
}
_LARGE = _SMALL | {"per_class": 30, "widths": [16, 48, 128], "body": 192, "steps": 2500}


class DeepHeads(NamedTuple):
    """Networks of several seeds after training, as points of the deep model.

    >>> data = datasets.load("digits", per_class=2)
    >>> heads = train_deep_heads(data, width=10, seeds=[0, 1], body=12, steps=4, points=2)
    >>> heads.params.H.shape, heads.loss.shape
    (torch.Size([2, 10, 20]), torch.Size([3, 2]))
    """

    model: DeepUFM
    """The model whose objective the networks minimise."""
    params: DeepUFMParams
    """The matrices of the heads and the features H_1 that the bodies give, in float64."""
    steps: list[int]
    """The steps at which the objective was recorded."""
    loss: Tensor
    """The objective there, shape (steps, seeds)."""


def train_deep_heads(
    data: Dataset,
    *,
    width: int,
    seeds: Sequence[int],
    L: int = 4,
    decay: float = 4e-3,
    body: int = 96,
    steps: int = 1000,
    points: int = 20,
) -> DeepHeads:
    r"""Train bodies of three layers under ReLU heads of L matrices, the networks of all seeds in one batch.

    The objective is that of the deep model with the features :math:`H_1` that the body gives,

    .. math:: \frac{1}{2N} \|Z - Y\|_F^2 + \frac{\lambda}{2} \sum_\ell \|W_\ell\|_F^2
        + \frac{\lambda}{2n} \|H_1\|_F^2 ,

    without any penalty on the body. No layer has a bias. Full batches, Adam with a step size that a cosine
    takes to zero. The last layer of the body is scaled such that the features start with the variance
    1/width of the model's own starting points.

    Args:
        data: as many images of each class.
        width: of the features and of all levels of the head.
        seeds: of the initial weights, one network for each.
        L: the number of matrices of the head.
        decay: λ.
        body: the width of the body's two hidden layers.
        steps: of the descent.
        points: how often the objective is recorded, at the start and at the end among others.

    Raises:
        ValueError: the classes are of different sizes, or a size is not positive.

    >>> data = datasets.load("digits", per_class=3)
    >>> heads = train_deep_heads(data, width=16, seeds=[0], body=32, steps=40)
    >>> bool(heads.loss[-1, 0] < heads.loss[0, 0])
    True
    """
    for name, size in (("body", body), ("steps", steps), ("points", points), ("seeds", len(seeds))):
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")
    model, X = _as_model(data, width, L, decay)
    layers, head = _start(model, X, body, seeds)
    groups = [{"params": layers, "lr": _BODY_LR}, {"params": head, "lr": _HEAD_LR}]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    record = sorted({round(steps * i / points) for i in range(points + 1)})
    losses = []
    for step in runtime.progress(range(steps + 1), f"deep heads, width {width}"):
        H = _features(layers, X)
        value, slope = model.value_and_grad(DeepUFMParams(tuple(head), H.detach()))
        if step in record:
            losses.append(value.double())
        if step < steps:
            below = torch.autograd.grad(H, layers, slope.H)
            for V, gradient in zip((*layers, *head), (*below, *slope.weights), strict=True):
                V.grad = gradient
            optimiser.step()
            schedule.step()
    params = DeepUFMParams(tuple(W.double() for W in head), H.detach().double())
    return DeepHeads(model, params, record, torch.stack(losses))


def _as_model(data: Dataset, width: int, L: int, decay: float) -> tuple[DeepUFM, Tensor]:
    """The deep model of the head, and the images as columns in the order of their classes."""
    counts = data.counts
    if int(counts.min()) != int(counts.max()):
        raise ValueError(f"data must have equally many images of each class, got {counts.tolist()}")
    n = int(counts[0])
    model = DeepUFM(data.num_classes, n, L, width, (*[decay] * L, decay / n))
    return model, data.images[data.labels.argsort(stable=True)].flatten(1).T.contiguous()


def _start(model: DeepUFM, X: Tensor, body: int, seeds: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of the bodies, with gradients, and of the heads: a leading axis for the seeds."""
    width = model.widths[0]
    sizes = [len(X), body, body, width]
    layers, heads = [], []
    for seed in seeds:
        random = runtime.generator(seed)
        shapes = [(rows, columns) for columns, rows in itertools.pairwise(sizes)]
        layers.append([torch.randn(shape, generator=random) * (2 / shape[1]) ** 0.5 for shape in shapes])
        heads.append([W[0] for W in model.init(1, random, dtype=torch.float32).weights])
    stacked = [torch.stack(V) for V in zip(*layers, strict=True)]
    stacked[-1] /= _features(stacked, X).std(dim=(1, 2), keepdim=True) * width**0.5
    return [V.requires_grad_() for V in stacked], [torch.stack(W) for W in zip(*heads, strict=True)]


def _features(layers: Sequence[Tensor], X: Tensor) -> Tensor:
    H = layers[0] @ X
    for V in layers[1:]:
        H = V @ H.relu()
    return H


def head_measures(heads: DeepHeads) -> dict[str, Any]:
    """Measure trained deep heads level by level, beside the values that the deep model predicts.

    Args:
        heads: networks of several seeds, of :func:`train_deep_heads`.

    Returns:
        ``collapse`` and ``graph``, the values of deep collapse and of the graph solution; of every seed the
        objective ``loss``, the ``ranks`` and ``dnc1`` of H_1, …, H_L and Z, the ``ranks_after`` and
        ``dnc2_after`` of what enters the L matrices, the ``singular`` values of the class means of H_L, the
        ``penalties`` of the L + 1 factors and the training ``accuracy``; and the recorded ``curve``.

    >>> data = datasets.load("digits", per_class=2)
    >>> heads = train_deep_heads(data, width=10, seeds=[0], body=12, steps=4)
    >>> len(head_measures(heads)["ranks"][0])
    5
    """
    model, params = heads.model, heads.params
    levels = deep_layers(model, params, _RANK_TOL)
    labels = torch.arange(model.K).repeat_interleave(params.H.shape[2] // model.K)
    return {
        "collapse": float(model.collapse().loss),
        "graph": float(model.graph_solution().loss),
        "loss": model.value(params),
        "ranks": levels.ranks_before,
        "ranks_after": levels.ranks_after,
        "dnc1": levels.dnc1_before,
        "dnc2_after": levels.dnc2_after,
        "singular": levels.singular_before[:, model.L - 1],
        "penalties": levels.penalties,
        "accuracy": (_logits(params).argmax(1) == labels).double().mean(1),
        "steps": heads.steps,
        "curve": heads.loss,
    }


def _logits(params: DeepUFMParams) -> Tensor:
    X = params.weights[0] @ params.H
    for W in params.weights[1:]:
        X = W @ X.relu()
    return X


def _data_note(arguments: Mapping[str, Any]) -> dict[str, Any]:
    sets = [datasets.load(name, per_class=arguments["per_class"]) for name in arguments["names"]]
    note = f"the first {arguments['per_class']} training images of each class"
    return {
        "name": ", ".join(data.name for data in sets),
        "sha256": ", ".join(data.sha256 for data in sets),
        "note": note,
    }


@experiment(
    "deep-heads",
    "Networks with a head of four matrices under the deep model's penalty: loss, ranks, collapse.",
    quick=_SMALL,
    full=_LARGE,
    data=_data_note,
)
def deep_heads(
    seeds: list[int],
    names: list[str],
    per_class: int,
    widths: list[int],
    body: int,
    steps: int,
    decay: float,
) -> Pieces:
    """Train deep heads of every width on every data set, and measure them level by level.

    Args:
        seeds: of the initial weights; the networks of all seeds are one batch.
        names: of the data sets.
        per_class: training images of a class.
        widths: of the features and the levels of the head.
        body: the width of the body's hidden layers.
        steps: of each descent.
        decay: λ of each matrix of the head; λ_H is λ/n.

    Returns:
        For each data set a list of the :func:`head_measures` of every width, with the ``width``.

    Raises:
        ValueError: a size is not positive, or a data set is unknown.

    >>> from ncbook.experiments import run
    >>> sizes = {"names": ["digits"], "per_class": 2, "widths": [10], "body": 12, "steps": 4}
    >>> found = run("deep-heads", "quick", **sizes).results["digits"][0]
    >>> found["width"], len(found["loss"])
    (10, 3)
    """
    results: dict[str, Any] = {}
    for name in names:
        results[name] = []
        for width in widths:
            work = partial(_study, name, per_class, width, seeds, decay, body, steps)
            results[name].append((yield f"{name}, width {width}", work))
    return results


def _study(
    name: str, per_class: int, width: int, seeds: list[int], decay: float, body: int, steps: int
) -> dict[str, Any]:
    data = datasets.load(name, per_class=per_class)
    heads = train_deep_heads(data, width=width, seeds=seeds, decay=decay, body=body, steps=steps)
    return {"width": width, **head_measures(heads)}
