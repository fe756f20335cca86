"""The layer-peeled model with features that are not negative, and label smoothing.

The problem itself, its gradient, its minimum and its lower bound are
:class:`ncbook.ufm.CrossEntropyUFM` with ``nonnegative=True``, and ``solvers.minimise`` solves it under its
constraint. Here lives what positivity adds: the straight line of the confidence and where it ends, the
certificate of a global minimum, and the local minima in which whole classes have died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import log
from typing import Any

import torch
from torch import Tensor

from ncbook.protocol import NoClosedForm, UFMParams, require_count
from ncbook.runtime import DTYPE, as_tensor, generator
from ncbook.ufm import CrossEntropyMinimum, CrossEntropyUFM

__all__ = [
    "confidence",
    "dead_class_loss",
    "dead_class_minimiser",
    "largest_smoothing",
    "nonnegative_norm",
    "positive_decay",
]

_MOST_COLUMNS = 12  # of a non-negative norm: 4095 faces of the orthant, a second


def positive_decay(K: int, n: int, lambda_W: Any, lambda_H: Any) -> Tensor:
    r"""Return the effective decay that features with H ≥ 0 feel.

    .. math:: q' = q \sqrt{\frac{K}{K-1}}, \qquad q = K \sqrt{n \lambda_W \lambda_H}

    Args:
        K: the number of classes, at least 2.
        n: the samples of each class.
        lambda_W: the decay of the classifier, a number or an array, not negative.
        lambda_H: the decay of the features, likewise; it broadcasts with ``lambda_W``.

    Raises:
        ValueError: K < 2, n < 1, or a decay is negative or not finite.

    Source: this book.

    >>> positive_decay(2, 1, 5e-3, 5e-3).round(decimals=6)
    tensor(0.0141, dtype=torch.float64)
    """
    K, n = _classes(K), require_count(n, "n")
    product = _decay(lambda_W, "lambda_W") * _decay(lambda_H, "lambda_H")
    return K * (n * product * K / (K - 1)).sqrt()


def confidence(K: int, smoothing: Any, decay: Any) -> Tensor:
    r"""Return the probability of the own class at the minimum, a straight line in the smoothing.

    .. math:: p = \max\Bigl(1 - \frac{K-1}{K} (\alpha + q'), \frac1K\Bigr)

    Args:
        K: the number of classes, at least 2.
        smoothing: the label smoothing α in [0, 1], a number or an array.
        decay: q' of :func:`positive_decay` where H ≥ 0, or q where features have signs; it broadcasts.

    Raises:
        ValueError: K < 2, the smoothing is not in [0, 1], or the decay is negative.

    Source: this book.

    >>> confidence(4, [0.0, 0.2, 0.9], 0.2)
    tensor([0.8500, 0.7000, 0.2500], dtype=torch.float64)
    """
    K = _classes(K)
    alpha, q = _smoothing(smoothing), _decay(decay, "decay")
    return (1 - (K - 1) / K * (alpha + q)).clamp(min=1 / K)


def largest_smoothing(decay: Any) -> Tensor:
    r"""Return the smoothing from which on W = H = 0 is the only minimiser, :math:`\max(1 - q', 0)`.

    Args:
        decay: q' of :func:`positive_decay` where H ≥ 0, or q where features have signs.

    Raises:
        ValueError: the decay is negative or not finite.

    Source: this book.

    >>> largest_smoothing([0.25, 2.0])
    tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    return (1 - _decay(decay, "decay")).clamp(min=0)


def nonnegative_norm(A: Any) -> Tensor:
    r"""Return how far a matrix can stretch a vector that has no negative entry.

    .. math:: \|A\|_+ = \max \{ \|Av\| : v \ge 0, \|v\| = 1 \} \le \|A\|_2

    A critical point of the positive model is a global minimum if :math:`\|\nabla g\|_+ \le
    \sqrt{\lambda_W \lambda_H}`, with :math:`\nabla g` the gradient of the mean loss in the logits. The value
    is exact: a maximiser is, on its support, the leading eigenvector of a principal submatrix of
    :math:`A^\top A`, and all supports are tried. Where samples of a class agree, give one column a class,
    :math:`\sqrt n` times that of a sample.

    Args:
        A: a matrix (J, K), or a batch (…, J, K), of at most twelve columns.

    Raises:
        ValueError: A is no matrix, is not finite, or has more than twelve columns.

    Source: this book.

    >>> nonnegative_norm([[1.0, -1.0], [0.0, 1.0]])
    tensor(1.4142, dtype=torch.float64)
    >>> nonnegative_norm([[1.0, -1.0]])
    tensor(1., dtype=torch.float64)
    """
    matrix = as_tensor(A, "A", DTYPE)
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise ValueError(f"A must be a matrix (…, J, K), got shape {list(matrix.shape)}")
    K = matrix.shape[-1]
    if K > _MOST_COLUMNS:
        raise ValueError(f"A must have at most {_MOST_COLUMNS} columns, got {K}")
    gram = matrix.mT @ matrix
    best = torch.zeros(matrix.shape[:-2], dtype=DTYPE, device=matrix.device)
    for size in range(1, K + 1):
        supports = torch.tensor(list(combinations(range(K), size)), device=matrix.device)
        values, vectors = torch.linalg.eigh(gram[..., supports[:, :, None], supports[:, None, :]])
        leading = vectors[..., -1]
        inside = (leading >= 0).all(-1) | (leading <= 0).all(-1)
        found = torch.where(inside, values[..., -1], 0.0).amax(-1)
        best = torch.maximum(best, found)
    return best.clamp(min=0).sqrt()


def dead_class_loss(model: CrossEntropyUFM, dead: int) -> Tensor:
    r"""Return the objective at which some classes have died and the others are at their best.

    Without a bias, a class whose features are zero has the loss log K, and the other classes are as in the
    global minimum f*:

    .. math:: f_c = \Bigl(1 - \frac cK\Bigr) f^* + \frac cK \log K

    Args:
        model: with ``nonnegative=True``, ``bias=None`` and equal classes.
        dead: the number c of dead classes, from 0 to K.

    Raises:
        ValueError: ``dead`` is not an integer from 0 to K.
        NoClosedForm: the model has a bias, or features with signs, or no known minimum.

    Source: this book.

    >>> model = CrossEntropyUFM(4, 2, 4, 5e-3, 5e-3, bias=None, smoothing=0.1, nonnegative=True)
    >>> dead_class_loss(model, 1).round(decimals=6)
    tensor(0.6715, dtype=torch.float64)
    """
    if isinstance(dead, bool) or not isinstance(dead, int) or not 0 <= dead <= model.K:
        raise ValueError(f"dead must be an integer from 0 to K = {model.K}, got {dead!r}")
    share = dead / model.K
    return (1 - share) * _full_minimum(model).loss + share * log(model.K)


def dead_class_minimiser(
    model: CrossEntropyUFM, dead: Sequence[int], *, units: int | None = None, seed: int = 0
) -> UFMParams:
    """Return a point with the objective of :func:`dead_class_loss`, with d ≥ K a bad local minimum.

    The other classes share the feature dimensions among themselves, each with random positive weights. Where
    every dimension is used it is a local minimum, and not a global one if a class is dead and d ≥ K; with a
    dimension left over there is a way down.

    Args:
        model: with ``nonnegative=True``, ``bias=None``, equal classes, and a minimum that is not trivial.
        dead: the classes whose features are zero, not all of them; from 0.
        units: how many of the d dimensions are used, the first ones; all of them when None.
        seed: of the weights.

    Raises:
        ValueError: ``dead`` is no set of classes, or there are fewer ``units`` than classes alive.
        NoClosedForm: as :func:`dead_class_loss`, or the minimum is trivial.

    Source: this book.

    >>> model = CrossEntropyUFM(4, 2, 6, 5e-3, 5e-3, bias=None, smoothing=0.1, nonnegative=True)
    >>> point = dead_class_minimiser(model, [2])
    >>> bool((model.value(point) - dead_class_loss(model, 1)).abs() < 1e-12)
    True
    """
    K, d = model.K, model.d
    alive = [k for k in range(K) if k not in set(dead)]
    if len(set(dead)) != len(dead) or len(alive) + len(dead) != K or not alive:
        raise ValueError(f"dead must name different classes from 0 to {K - 1}, not all, got {list(dead)}")
    used = d if units is None else require_count(units, "units")
    if not len(alive) <= used <= d:
        raise ValueError(
            f"units must be at least {len(alive)}, one for each class alive, and at most d = {d}, got {used}"
        )
    minimum = _full_minimum(model)
    if bool(minimum.trivial.any()):
        raise NoClosedForm("where the minimum is trivial all classes are dead")
    owner = torch.tensor([alive[unit % len(alive)] for unit in range(used)])
    weights = torch.rand(used, dtype=DTYPE, generator=generator(seed)) + 0.5
    S = torch.zeros(d, K, dtype=DTYPE)
    S[torch.arange(used), owner] = weights
    S = S / S.norm(dim=0).clamp(min=1e-300)  # a dead class has a column of zeros, which stays
    norm_W2, norm_H2 = (x.reshape(-1, 1, 1) for x in (minimum.norm_W2, minimum.norm_H2))
    rows = (torch.eye(K, dtype=DTYPE) - 1 / K) * (K / (K - 1)) ** 0.5  # unit columns of a simplex frame
    W = (norm_W2 / K).sqrt() * (rows @ S.mT)
    H = (norm_H2 / model.N).sqrt() * S
    return UFMParams(W, H.repeat_interleave(torch.tensor(model.sizes), dim=2))


def _full_minimum(model: CrossEntropyUFM) -> CrossEntropyMinimum:
    """The minimum with room for all classes, whatever the d of the model."""
    if not model.nonnegative or model.lambda_b is not None or model.classifier is not None:
        raise NoClosedForm("classes die alone where H ≥ 0, without a bias, and W is free")
    return replace(model, d=max(model.d, model.K)).minimum()


def _classes(K: Any) -> int:
    if require_count(K, "K") < 2:
        raise ValueError(f"K must be at least 2, got {K}")
    return int(K)


def _decay(x: Any, name: str) -> Tensor:
    decay = as_tensor(x, name, DTYPE)
    if bool((decay < 0).any()):
        raise ValueError(f"{name} must not be negative, got {decay.min().item():g}")
    return decay


def _smoothing(x: Any) -> Tensor:
    alpha = as_tensor(x, "smoothing", DTYPE)
    if bool(((alpha < 0) | (alpha > 1)).any()):
        raise ValueError(f"smoothing must lie between 0 and 1, got {alpha.tolist()}")
    return alpha
