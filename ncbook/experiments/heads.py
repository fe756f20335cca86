"""Two-layer heads on real images: the numbers of a squared-loss network that the extended models predict."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ncbook import datasets, metrics, networks, trainers
from ncbook.datasets import Dataset
from ncbook.experiments._registry import Pieces, experiment
from ncbook.networks import Network
from ncbook.trainers import TrainConfig

__all__ = [
    "HEADS",
    "LAYERS",
    "PENALTIES",
    "bias_free_network",
    "head_numbers",
    "train_head",
    "two_layer_heads",
]

HEADS: dict[str, dict[str, bool]] = {
    "linear": {"signed": True, "relu": False},
    "ReLU": {"signed": True, "relu": True},
    "ReLU, H₁ ≥ 0": {"signed": False, "relu": True},
}
"""The three heads: may the features H_1 be negative, and does a ReLU stand between W_1 and W_2."""

PENALTIES: dict[str, dict[str, float]] = {
    "features": {"decay": 5e-3, "feature_decay": 5e-3},
    "weights": {"decay": 3e-3, "feature_decay": 0.0},
}
"""What is penalised: head and features (``feature_decay`` is nλ_H, the body is free), or all weights."""

LAYERS = ("features.layer1", "features.layer2", "features.layer3", "head.W1", "head.W2:input")
"""What is measured along a run; the third puts out H_1, the fourth W_1H_1, the last is what enters W_2."""

_SMALL = {"dataset": "fashion-mnist", "per_class": 20, "width": 48, "d": 32, "epochs": 15, "seeds": 1}
_LARGE = {"dataset": "fashion-mnist", "per_class": 100, "width": 128, "d": 64, "epochs": 50, "seeds": 3}


def bias_free_network(
    shape: tuple[int, ...], num_classes: int, width: int, d: int, *, signed: bool, relu: bool, seed: int
) -> Network:
    """Return a perceptron without any bias, with three layers of features and a head of two weight matrices.

    Args:
        shape: of an image.
        num_classes: K.
        width: of the first two hidden layers.
        d: the width of the features H_1 and of the head's hidden layer.
        signed: whether the last ReLU of the body is left out, so that features may be negative.
        relu: whether a ReLU stands between the two matrices of the head.
        seed: of the initial weights.

    Raises:
        ValueError: a size is not a positive integer.

    >>> network = bias_free_network((1, 8, 8), 10, 16, 12, signed=True, relu=True, seed=0)
    >>> network.layer_names
    ('features.layer1', 'features.layer2', 'features.layer3', 'head.W1', 'head.W2')
    """
    for name, size in (("width", width), ("d", d)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    sizes = (math.prod(shape), width, width, d)
    body: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i in range(1, 4):
            layer: list[nn.Module] = [nn.Linear(sizes[i - 1], sizes[i], bias=False)]
            body[f"layer{i}"] = nn.Sequential(*layer, *([] if signed and i == 3 else [nn.ReLU()]))
        head = networks.layered_head(2, d, relu=relu)(d, num_classes)
    names = [*(f"features.layer{i}" for i in range(1, 4)), "head.W1", "head.W2"]
    return Network(nn.Sequential(body), head, names)


def train_head(
    data: Dataset, *, head: str, penalty: str, width: int, d: int, epochs: int, seed: int, points: int = 10
) -> tuple[Network, trainers.History]:
    """Train one network with one of :data:`HEADS` under one of :data:`PENALTIES`, full batch, by L-BFGS.

    Args:
        data: balanced training images.
        head: a name in :data:`HEADS`.
        penalty: a name in :data:`PENALTIES`.
        width: of the first hidden layers.
        d: of the features and of the head's hidden layer.
        epochs: of at most twenty iterations each.
        seed: of the initial weights.
        points: how many times :data:`LAYERS` are measured along the run.

    Raises:
        ValueError: a name is unknown, or a size is not positive.

    >>> data = datasets.load("digits", per_class=3)
    >>> _, history = train_head(data, head="ReLU", penalty="features", width=8, d=8, epochs=2, seed=0)
    >>> history.epochs
    [0, 1, 2]
    """
    for name, value, known in (("head", head, HEADS), ("penalty", penalty, PENALTIES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    network = bias_free_network(data.shape, data.num_classes, width, d, **HEADS[head], seed=seed)
    feature_decay = PENALTIES[penalty]["feature_decay"] * data.num_classes / len(data)
    config = TrainConfig(
        epochs=epochs,
        batch_size=None,
        optimiser="lbfgs",
        lr=1.0,
        weight_decay=PENALTIES[penalty]["decay"],
        feature_decay=feature_decay,
        decay_on="head" if feature_decay else "all",
        schedule="constant",
        loss="mse",
        precision="float32",
        device="cpu",
        seed=seed,
    )
    record = sorted({round(epochs * i / points) for i in range(points + 1)})
    return network, trainers.train(network, data, config, record=record, layers=LAYERS)


def head_numbers(network: Network, data: Dataset, decay: float) -> dict[str, Any]:
    r"""Measure what the extended models predict of a bias-free head of two layers.

    With :math:`A = \sigma(W_1 H_1)` (or :math:`A = W_1 H_1` in a linear head), g the mean squared loss and λ
    the decay of the head, the decay that the features feel is

    .. math:: \lambda_H = -\frac{\langle \nabla_{H_1} g, H_1 \rangle}{\|H_1\|_F^2}
        = \lambda \frac{\|W_1\|_F^2}{\|H_1\|_F^2} \text{ at a stationary } W_1 ,
        \qquad \lambda_A = -\frac{\langle \nabla_A g, A \rangle}{\|A\|_F^2} .

    Args:
        network: its head has the layers W1 and W2.
        data: balanced images, those it was trained on.
        decay: λ.

    Returns:
        ``lambda_H``, ``lambda_H_by_norms`` and ``lambda_A``; ``alignment``, the cosine of
        :math:`W_1^\top W_1` and :math:`H_1 H_1^\top`; ``objective``, g + λ/2 (‖W_1‖² + ‖W_2‖²) +
        λ_H/2 ‖H_1‖²; the K leading singular values ``Z`` (divided by √n), ``W2``, ``W1``, ``H1`` and ``A``,
        largest first; the extreme cosines of the class means ``cos_H1``, ``cos_X`` and ``cos_A``;
        ``of_H1``, ``etf_H1``, ``of_A`` (uncentred Gram to orthogonal frame, centred Gram to simplex);
        ``nc3``, the distance of W_2 and the means of A as directions; ``nuclear``, ‖A‖_*/‖W_1H_1‖_*; and the
        training ``accuracy``.

    Raises:
        ValueError: the network has no such head, or the classes are not balanced.

    >>> data = datasets.load("digits", per_class=3)
    >>> network = bias_free_network(data.shape, 10, 16, 12, signed=True, relu=False, seed=0)
    >>> round(head_numbers(network, data, 1e-3)["nuclear"], 6)
    1.0
    """
    head = network.head
    if not all(isinstance(getattr(head, name, None), nn.Linear) for name in ("W1", "W2")):
        raise ValueError("network must have a head with the linear layers W1 and W2")
    counts = data.counts
    if int(counts.min()) != int(counts.max()):
        raise ValueError(f"data must have equally many images of each class, got {counts.tolist()}")
    W1, W2 = (head.get_parameter(f"{name}.weight").detach().double() for name in ("W1", "W2"))
    with torch.no_grad():
        H1 = network.features(data.images).double().T
    X = W1 @ H1
    A = X.relu() if hasattr(head, "relu1") else X
    N, K = len(data), data.num_classes
    residual = W2 @ A - nn.functional.one_hot(data.labels, K).double().T
    pull_A = W2.T @ residual / N
    pull_X = pull_A * (X > 0) if hasattr(head, "relu1") else pull_A
    lambda_H = float(-(W1.T @ pull_X * H1).sum() / H1.square().sum())
    squares = [float(F.square().sum()) for F in (W1, W2, H1)]
    fit = float(residual.square().sum()) / (2 * N)
    gram, outer = W1.T @ W1, H1 @ H1.T
    return {
        "lambda_H": lambda_H,
        "lambda_H_by_norms": decay * squares[0] / squares[2],
        "lambda_A": float(-(pull_A * A).sum() / A.square().sum()),
        "alignment": float((gram * outer).sum() / (gram.norm() * outer.norm())),
        "objective": fit + decay / 2 * (squares[0] + squares[1]) + lambda_H / 2 * squares[2],
        "Z": _leading(W2 @ A / (N / K) ** 0.5, K),
        **{name: _leading(F, K) for name, F in (("W2", W2), ("W1", W1), ("H1", H1), ("A", A))},
        **_angles(H1, X, A, W2, data.labels, K),
        "nuclear": float(_nuclear(A) / _nuclear(X)),
        "accuracy": float(((W2 @ A).argmax(0) == data.labels).double().mean()),
    }


def _leading(matrix: Tensor, K: int) -> list[float]:
    values: list[float] = torch.linalg.svdvals(matrix)[:K].tolist()
    return values


def _nuclear(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix).sum()


def _angles(H1: Tensor, X: Tensor, A: Tensor, W2: Tensor, labels: Tensor, K: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, F in (("H1", H1), ("X", X), ("A", A)):
        means = torch.stack([F[:, labels == k].mean(1) for k in range(K)])
        unit = nn.functional.normalize(means, dim=1)
        cosines = (unit @ unit.T)[~torch.eye(K, dtype=torch.bool)]
        found[f"cos_{name}"] = [float(cosines.min()), float(cosines.max())]
    at_H1 = metrics.collapse_metrics(H1.T, labels, num_classes=K)
    at_A = metrics.collapse_metrics(A.T, labels, W2, num_classes=K)
    return found | {
        "of_H1": at_H1.nc2_of,
        "etf_H1": at_H1.nc2_etf,
        "of_A": at_A.nc2_of,
        "nc3": at_A.nc3_uncentred,
    }


def _data_note(arguments: Mapping[str, Any]) -> dict[str, Any]:
    data = datasets.load(arguments["dataset"], per_class=arguments["per_class"])
    note = f"the first {arguments['per_class']} training images of each class"
    return {"name": data.name, "sha256": data.sha256, "note": note}


@experiment(
    "two-layer-heads",
    "Squared-loss networks with a head of two layers, linear or ReLU: the numbers that the models predict.",
    quick=_SMALL,
    full=_LARGE,
    data=_data_note,
)
def two_layer_heads(
    seeds: list[int], dataset: str, per_class: int, width: int, d: int, epochs: int
) -> Pieces:
    """Train each of :data:`HEADS` under each of :data:`PENALTIES`, and measure it.

    Args:
        seeds: of the initial weights; each combination runs once with each.
        dataset: the name of a data set.
        per_class: training images of a class.
        width: of the first hidden layers.
        d: of the features and of the head's hidden layer.
        epochs: of at most twenty iterations of L-BFGS each, on all images at once.

    Returns:
        For each penalty and each head the ``decay`` of the head, n, the ``epochs`` measured, the curves of
        ``nc1_ratio`` (seeds, layers, epochs) in the order of :data:`LAYERS`, and for every seed the
        :func:`head_numbers` at the end, as ``final``.

    Raises:
        ValueError: a size is not positive, or the data set is unknown.

    >>> from ncbook.experiments import run
    >>> sizes = {"per_class": 3, "width": 8, "d": 8, "epochs": 1}
    >>> found = run("two-layer-heads", "quick", **sizes).results["features"]["ReLU"]
    >>> len(found["final"]), len(found["nc1_ratio"][0])
    (1, 5)
    """
    results: dict[str, Any] = {}
    for penalty, decays in PENALTIES.items():
        results[penalty] = {}
        for head in HEADS:
            runs = []
            for seed in seeds:
                work = partial(_study, dataset, per_class, head, penalty, width, d, epochs, seed)
                runs.append((yield f"{penalty}, {head}, seed {seed}", work))
            results[penalty][head] = {
                "decay": decays["decay"],
                "n": per_class,
                "epochs": runs[0]["epochs"],
                "nc1_ratio": [run["nc1_ratio"] for run in runs],
                "final": [run["final"] for run in runs],
            }
    return results


def _study(
    dataset: str, per_class: int, head: str, penalty: str, width: int, d: int, epochs: int, seed: int
) -> dict[str, Any]:
    data = datasets.load(dataset, per_class=per_class)
    network, history = train_head(
        data, head=head, penalty=penalty, width=width, d=d, epochs=epochs, seed=seed
    )
    return {
        "epochs": history.epochs,
        "nc1_ratio": [[entry.nc1_ratio for entry in history.layers[name]] for name in LAYERS],
        "final": head_numbers(network, data, PENALTIES[penalty]["decay"]),
    }
