"""Memorization and dilation of real networks: what label noise does to features, in numbers.

A training sample is *noisy* if its label differs from its true class; of the N_train training samples the
fraction η is noisy. In the letters of the memorization-dilation model its feature is pulled away from
where it looks to belong, the mean of unseen samples of its true class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncbook.metrics import collapse_metrics
from ncbook.runtime import DTYPE, as_tensor

__all__ = [
    "MeasuredMemorization",
    "class_distance",
    "class_means",
    "displacement",
    "measure_memorization",
    "memorised_fraction",
    "progress",
    "radius",
]

_RANK_TOL = 1e-6  # features mostly are float32


@dataclass(frozen=True)
class MeasuredMemorization:
    r"""What label noise has done to the features of one network.

    With :math:`\mu_k` the mean *test* feature of class k and :math:`t(i)` the true class of sample i:

    =========================  ============================================================================
    field                      definition
    =========================  ============================================================================
    ``noise_rate``             η, the fraction of training labels that are wrong
    ``memorised``              fraction of the noisy samples that the network gives their wrong label; None
                               without noise or without predictions
    ``displacement``           :math:`\frac1{N_{train}} \sum_{i\ noisy} \|h_i - \mu_{t(i)}\|`
    ``distance``               D, the mean of :math:`\|\mu_k - \mu_j\|` over all pairs
    ``relative_displacement``  displacement / D
    ``radius``                 r, the root of the mean of :math:`\|h - \mu_y\|^2` over test samples
    ``dilation``               r / D
    ``nc1``                    :math:`\frac1K \mathrm{tr}(\Sigma_W\Sigma_B^+)` of the test features
    ``accuracy``               on the test set; None without test predictions
    =========================  ============================================================================

    ``displacement`` is the left side of the model's constraint, η times a mean distance. Nguyen et al., as
    recalled here, call its sum, N_train times as large, *memorization*, and ``nc1`` of test features
    *dilation*;
    ``nc1`` weighs the directions in which classes differ, ``dilation`` counts all alike.

    >>> MeasuredMemorization(0.1, 0.5, 0.2, 4.0, 0.05, 2.0, 0.5, 0.3, 0.9).dilation
    0.5
    """

    noise_rate: float
    memorised: float | None
    displacement: float
    distance: float
    relative_displacement: float
    radius: float
    dilation: float
    nc1: float
    accuracy: float | None


def measure_memorization(
    features: Any,
    labels: Any,
    true_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    predictions: Any = None,
    test_predictions: Any = None,
    num_classes: int | None = None,
) -> MeasuredMemorization:
    """Measure memorization and dilation of a network from its features.

    Args:
        features: of the training set, rows (N, d).
        labels: (N,) integers 0 … K−1, those trained on.
        true_labels: (N,), those before the noise.
        test_features: of unseen samples, rows (n, d); every class has at least one.
        test_labels: (n,), true ones.
        predictions: (N,), the classes that the network gives the training samples, or None.
        test_predictions: (n,), likewise on the test set, or None.
        num_classes: K; None takes the largest label plus one.

    Raises:
        ValueError: shapes do not fit, a label is no class, a number is not finite, a class has no test
            sample, or two test means coincide everywhere (D = 0).

    Source: Nguyen, Levie, Lienen, Hüllermeier and Kutyniok (2023) as recalled here, with a mean over N_train
    in place of a sum; their published code measures from training means: for that, call
    :func:`displacement` with means of the training samples whose labels are right.

    >>> found = measure_memorization(
    ...     [[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]], [0, 1, 0], [0, 1, 1],
    ...     [[3.0, 0.0], [0.0, 3.0]], [0, 1], predictions=[0, 1, 0])
    >>> found.memorised, round(found.relative_displacement, 6), found.dilation
    (1.0, 0.333333, 0.0)
    """
    labels, true_labels = _labels(labels, "labels"), _labels(true_labels, "true_labels")
    test_labels = _labels(test_labels, "test_labels")
    K = _count(num_classes, labels, true_labels, test_labels)
    means = class_means(test_features, test_labels, K)
    distance = class_distance(means)
    if distance == 0:
        raise ValueError("test_features must have different class means, got D = 0")
    moved = displacement(features, labels, true_labels, means)
    spread = radius(test_features, test_labels, means)
    noisy = labels != true_labels
    memorised = None
    if predictions is not None and bool(noisy.any()):
        memorised = memorised_fraction(predictions, labels, true_labels)
    accuracy = None
    if test_predictions is not None:
        guesses = _labels(test_predictions, "test_predictions", len(test_labels))
        accuracy = float((guesses == test_labels).double().mean())
    test = as_tensor(test_features, "test_features", DTYPE)
    return MeasuredMemorization(
        noise_rate=float(noisy.double().mean()),
        memorised=memorised,
        displacement=moved,
        distance=distance,
        relative_displacement=moved / distance,
        radius=spread,
        dilation=spread / distance,
        nc1=collapse_metrics(test, test_labels, num_classes=K, rank_tol=_RANK_TOL).nc1,
        accuracy=accuracy,
    )


def class_means(features: Any, labels: Any, num_classes: int | None = None) -> Tensor:
    """Return the class means as float64 rows, shape (K, d).

    Args:
        features: rows (N, d).
        labels: (N,) integers 0 … K−1; every class has at least one sample.
        num_classes: K; None takes the largest label plus one.

    Raises:
        ValueError: shapes do not fit, a label is no class, or a class is empty.

    >>> class_means([[1.0], [3.0], [5.0]], [0, 0, 1]).tolist()
    [[2.0], [5.0]]
    """
    rows = _features(features, "features")
    labels = _labels(labels, "labels", len(rows))
    K = _count(num_classes, labels)
    counts = torch.bincount(labels, minlength=K)
    if int(counts.min()) == 0:
        empty = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"labels must hold samples of every class, got none of {empty}")
    # About a common centre no digit is lost to features that lie far from the origin.
    centre = rows.mean(0)
    sums = rows.new_zeros(K, rows.shape[1]).index_add_(0, labels, rows - centre)
    return sums / counts[:, None] + centre


def class_distance(means: Any) -> float:
    r"""Return D, the mean of :math:`\|\mu_k-\mu_j\|` over all pairs k < j.

    Args:
        means: rows (K, d), K at least 2.

    Raises:
        ValueError: there are fewer than two rows.

    >>> class_distance([[3.0, 0.0], [0.0, 4.0]])
    5.0
    """
    rows = _features(means, "means")
    if len(rows) < 2:
        raise ValueError(f"means must hold at least two classes, got {len(rows)}")
    return float(torch.pdist(rows).mean())


def displacement(features: Any, labels: Any, true_labels: Any, means: Any) -> float:
    r"""Return how far noisy samples lie from their look-alikes, summed and divided by all N samples.

    With t(i) the true class, this is :math:`\frac1N\sum_{i\ noisy}\|h_i-\mu_{t(i)}\|`. Times N it is the sum
    that Nguyen et al., as recalled here, call memorization; over the noise rate it is a mean distance.

    Args:
        features: of the training set, rows (N, d).
        labels: (N,), those trained on.
        true_labels: (N,), those before the noise.
        means: rows (K, d): where look-alikes lie. Test means, or, as in the code
            published with that paper, means of the training samples with right labels.

    Raises:
        ValueError: shapes do not fit, or a label is no row of the means.

    >>> displacement([[0.0], [3.0]], [0, 0], [0, 1], [[0.0], [1.0]])
    1.0
    """
    rows, noisy, _, true, means = _noisy(features, labels, true_labels, means)
    if not bool(noisy.any()):
        return 0.0
    return float((rows[noisy] - means[true[noisy]]).norm(dim=1).sum()) / len(rows)


def memorised_fraction(predictions: Any, labels: Any, true_labels: Any) -> float:
    """Return the fraction of the noisy samples to which a network gives their wrong label.

    Args:
        predictions: (N,), the classes that the network gives.
        labels: (N,), those trained on.
        true_labels: (N,), those before the noise.

    Raises:
        ValueError: shapes do not fit, or no label is wrong.

    >>> memorised_fraction([0, 1, 1], [0, 1, 0], [0, 0, 1])
    0.5
    """
    labels = _labels(labels, "labels")
    true_labels = _labels(true_labels, "true_labels", len(labels))
    predictions = _labels(predictions, "predictions", len(labels))
    noisy = labels != true_labels
    if not bool(noisy.any()):
        raise ValueError("labels must differ from true_labels somewhere: no label is wrong")
    return float((predictions == labels)[noisy].double().mean())


def progress(features: Any, labels: Any, true_labels: Any, means: Any) -> Tensor:
    r"""Return how far each noisy sample has come from its look-alikes to its label, and how far aside.

    With :math:`e = \mu_{y} - \mu_{t}` from the mean of the true class t to that of the label y,

    .. math:: \text{along} = \frac{\langle h - \mu_t, e\rangle}{\|e\|^2}, \qquad
              \text{aside} = \frac{\|h - \mu_t - \text{along}\cdot e\|}{\|e\|} .

    0 along is where look-alikes lie on average, 1 is the mean of the wrong label: complete memorization.

    Args:
        features: of the training set, rows (N, d).
        labels: (N,), those trained on.
        true_labels: (N,), those before the noise.
        means: rows (K, d), as in :func:`displacement`.

    Returns:
        (m, 2), a row for each of the m noisy samples in their order.

    Raises:
        ValueError: shapes do not fit, or the two means of a noisy sample coincide.

    Source: the "corruption bias" of the code published with Nguyen et al. is the same projection of the mean
    of a class's noisy samples.

    >>> progress([[1.0, 2.0]], [1], [0], [[0.0, 0.0], [4.0, 0.0]]).tolist()
    [[0.25, 0.5]]
    """
    rows, noisy, given, true, means = _noisy(features, labels, true_labels, means)
    start = means[true[noisy]]
    way = means[given[noisy]] - start
    length = way.norm(dim=1)
    if bool((length == 0).any()):
        raise ValueError("means must differ between the true class and the label of every noisy sample")
    unit = way / length[:, None]
    offset = rows[noisy] - start
    along = (offset * unit).sum(1)
    aside = (offset - along[:, None] * unit).norm(dim=1)
    return torch.stack([along / length, aside / length], dim=1)


def radius(features: Any, labels: Any, means: Any) -> float:
    r"""Return r, the root of the mean of :math:`\|h-\mu_y\|^2` over samples.

    Args:
        features: rows (N, d).
        labels: (N,).
        means: rows (K, d).

    Raises:
        ValueError: shapes do not fit, or a label is no row of the means.

    >>> radius([[3.0], [1.0]], [0, 1], [[0.0], [4.0]])
    3.0
    """
    rows, centres = _features(features, "features"), _features(means, "means")
    labels = _labels(labels, "labels", len(rows))
    _require_rows(labels, "labels", centres)
    return float((rows - centres[labels]).square().sum(1).mean().sqrt())


def _features(x: Any, name: str) -> Tensor:
    rows = as_tensor(x, name, DTYPE)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name} must be rows (N, d), at least one, got the shape {tuple(rows.shape)}")
    return rows.detach()


def _labels(x: Any, name: str, count: int | None = None) -> Tensor:
    labels = as_tensor(x, name, torch.int64)
    if labels.ndim != 1 or len(labels) == 0 or (count is not None and len(labels) != count):
        wanted = "(N,)" if count is None else f"({count},)"
        raise ValueError(f"{name} must have the shape {wanted}, got {tuple(labels.shape)}")
    if int(labels.min()) < 0:
        raise ValueError(f"{name} must not be negative, got {int(labels.min())}")
    return labels


def _count(num_classes: int | None, *labels: Tensor) -> int:
    found = max(int(each.max()) for each in labels) + 1
    if num_classes is None:
        return found
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < found:
        raise ValueError(f"num_classes must be an integer above every label, got {num_classes!r}")
    return num_classes


def _require_rows(labels: Tensor, name: str, means: Tensor) -> None:
    if int(labels.max()) >= len(means):
        raise ValueError(f"{name} must be rows of the {len(means)} means, got {int(labels.max())}")


def _noisy(
    features: Any, labels: Any, true_labels: Any, means: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, centres = _features(features, "features"), _features(means, "means")
    if rows.shape[1] != centres.shape[1]:
        raise ValueError(f"means must have {rows.shape[1]} columns like the features, got {centres.shape[1]}")
    given = _labels(labels, "labels", len(rows))
    true = _labels(true_labels, "true_labels", len(rows))
    _require_rows(given, "labels", centres)
    _require_rows(true, "true_labels", centres)
    return rows, given != true, given, true, centres
