"""The metrics of collapse as numbers: from features in memory, or from two finished passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncbook.statistics import BetweenScatter, ClassStatistics
from ncbook.statistics.rows import check_classifier, check_features, check_labels, positive_integer

_RANK_TOL = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
_RANK_TOL_WIDE = 1e-10  # float64 and integers
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class CollapseMetrics:
    r"""How far features have collapsed, and the classifier on them, if there is one.

    With the class means :math:`\mu_k`, their mean :math:`\mu_G`, :math:`\bar H = [\mu_1 \dots \mu_K]`,
    :math:`M = [\mu_1-\mu_G \dots \mu_K-\mu_G]`, :math:`\Sigma_W = \frac1N\sum(h_{k,i}-\mu_k)(\cdot)^\top`,
    :math:`\Sigma_B = \frac1K MM^\top` and the distance :math:`\delta(A, B) = \|A/\|A\|_F - B/\|B\|_F\|_F`:

    ==================  ==================================================================================
    field               definition
    ==================  ==================================================================================
    ``nc1``             :math:`\frac1K \mathrm{tr}(\Sigma_W\Sigma_B^+)` over the first ``rank`` axes
    ``nc1_ratio``       :math:`\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B`
    ``cdnv``            mean over pairs of :math:`(v_k+v_l)/(2\|\mu_k-\mu_l\|^2)`, :math:`v_k` the mean of
                        :math:`\|h-\mu_k\|^2`
    ``nc2_norm``        standard deviation of :math:`\|\mu_k-\mu_G\|` (ddof = 0) over its mean
    ``nc2_angle``       mean over k ≠ l of :math:`|\cos(\mu_k-\mu_G, \mu_l-\mu_G) + \frac1{K-1}|`
    ``nc2_etf``         :math:`\delta(M^\top M, I-J/K)`
    ``nc2_of``          :math:`\delta(\bar H^\top\bar H, I)`
    ``rank``            singular values of M above rank_tol times the largest, at most K−1
    ``nc2_weight_etf``  :math:`\delta(WW^\top, I-J/K)`
    ``nc2_weight_of``   :math:`\delta(WW^\top, I)`
    ``nc3``             :math:`\delta(W^\top, M)`
    ``nc3_joint``       :math:`\delta(WM, I-J/K)`
    ``nc3_uncentred``   :math:`\delta(W^\top, \bar H)`
    ``nc4``             fraction of samples whose largest logit and nearest class mean differ
    ``bias_collapse``   :math:`\|W\mu_G+b\|`
    ==================  ==================================================================================

    The last seven are None without a weight. What the papers call them:

    ==================  ==================================================================================
    field               its names elsewhere
    ==================  ==================================================================================
    ``nc1``             NC1 of Papyan, Han and Donoho and of Zhu et al.; some published notebooks leave the
                        1/K out, and K times it is called separation fuzziness
    ``nc1_ratio``       the NC1 with a tilde of Tirer and Bruna, DNC1 of Súkeník et al.
    ``cdnv``            class-distance normalised variance of Galanti et al.
    ``nc2_norm``        equal norms of Papyan et al.; with ddof = 1, as in some code, √(K/(K−1)) times it
    ``nc2_angle``       maximal angle of Papyan et al. (their equal angles, the spread of the cosines, are not
                        here)
    ``nc2_etf``         NC2 of Zhu et al., but of the class means instead of the classifier
    ``nc2_of``          DNC2 of Súkeník et al. and the orthogonal frame of Tirer and Bruna, as a distance
    ``nc2_weight_etf``  NC2 of Zhu et al.
    ``nc3``             NC3 of Papyan et al., self-duality; some notebooks plot its square
    ``nc3_joint``       NC3 of Zhu et al.
    ``nc4``             NC4 of Papyan et al.
    ``bias_collapse``   NC4 of Zhu et al.
    ==================  ==================================================================================

    **What has no value is** ``math.inf``, **never NaN.** Where all class means coincide (``rank`` is 0) that
    is everything but ``nc2_of``, ``nc2_weight_etf``, ``nc2_weight_of``, ``nc3_uncentred``, ``nc4`` and
    ``bias_collapse``; where two of them coincide it is ``cdnv``; where one of them is the mean of all,
    ``nc2_angle``; where W = 0, whatever normalises W.

    At K = 2 two centred means are opposite, and ``nc2_norm``, ``nc2_angle`` and ``nc2_etf`` are 0 for all
    features: use ``nc1``, ``cdnv``, ``nc2_of`` and ``nc3`` there.
    """

    nc1: float
    nc1_ratio: float
    cdnv: float
    nc2_norm: float
    nc2_angle: float
    nc2_etf: float
    nc2_of: float
    rank: int
    nc2_weight_etf: float | None = None
    nc2_weight_of: float | None = None
    nc3: float | None = None
    nc3_joint: float | None = None
    nc3_uncentred: float | None = None
    nc4: float | None = None
    bias_collapse: float | None = None


def collapse_metrics(
    features: Any,
    labels: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    num_classes: int | None = None,
    rank_tol: float | None = None,
) -> CollapseMetrics:
    r"""Measure the collapse of features held in memory, and of a classifier on them.

    No d × d matrix is formed: with M = USVᵀ and r = ``rank``,

    .. math:: \mathrm{nc1} = \frac1N \sum_{k,i} \bigl\|S_r^{-1}U_r^\top(h_{k,i}-\mu_k)\bigr\|^2 .

    Float32 features are measured to about 1e-6 of each value, float64 ones to 1e-12.

    Args:
        features: rows of shape (N, d).
        labels: integers 0 … K−1, shape (N,); every class has at least one sample.
        weight: the classifier W, shape (K, d), or None.
        bias: its bias b, shape (K,), or None for none.
        num_classes: K, at least 2; None takes the rows of weight, else the largest label plus one.
        rank_tol: singular values of M above rank_tol times the largest count as non-zero; None takes 1e-10
            for float64 and integer features, 1e-6 for float32, 1e-3 for float16, 1e-2 for bfloat16.

    Returns:
        The metrics; those of a classifier are None without a weight.

    Raises:
        ValueError: a shape does not fit, a class is empty, a label is no class, a number is not finite, there
            is only one class, or a bias comes without weight.

    Source: :class:`CollapseMetrics` names the authors of each metric.

    >>> found = collapse_metrics([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0]], [0, 0, 1])
    >>> found.rank, round(found.cdnv, 4), found.nc3 is None
    (1, 0.0278, True)
    """
    features, labels = check_features(features), check_labels(labels)
    weight, bias = check_classifier(weight, bias)
    if len(features) == 0:
        raise ValueError(f"features must hold at least one row, got shape {list(features.shape)}")
    K = class_count(num_classes, weight, labels)
    tolerance = check_tolerance(rank_tol, features.dtype)
    statistics = ClassStatistics(K, features.shape[1]).update(features, labels)
    second = BetweenScatter(statistics, weight, bias).update(features, labels)
    return from_passes(second, rank_tol=tolerance)


def from_passes(second: BetweenScatter, *, rank_tol: float | None = None) -> CollapseMetrics:
    """Turn two finished (streamed, merged) passes into metrics.

    Args:
        second: the second pass, over the same samples as the statistics that it was built on.
        rank_tol: as in :func:`collapse_metrics`; None takes 1e-10, for sums do not tell the features' type.

    Raises:
        ValueError: the two passes have seen different numbers of samples, or ``rank_tol`` is not in [0, 1).

    >>> features, labels = [[0.0], [1.0], [3.0], [4.0]], [0, 0, 1, 1]
    >>> first = ClassStatistics(2, 1).update(features, labels)
    >>> round(from_passes(BetweenScatter(first).update(features, labels)).nc1, 6)
    0.055556
    """
    tolerance = check_tolerance(rank_tol, torch.float64)
    first = second.statistics
    if not torch.equal(first.counts, second.counts):
        raise ValueError(
            "second pass must see the samples of the first, "
            f"got {second.counts.tolist()} per class after {first.counts.tolist()}"
        )
    values, floor = second.singular_values, first.resolution
    rank = int((values > tolerance * values[0]).sum()) if float(values[0]) > floor else 0
    centred = first.centred_means if rank else torch.zeros_like(first.centred_means)
    return CollapseMetrics(
        rank=rank,
        **_within(first, second, rank),
        **_geometry(centred, first.means, floor),
        **_classifier(second, centred),
    )


def _within(first: ClassStatistics, second: BetweenScatter, rank: int) -> dict[str, float]:
    """Compare the spread within classes with the distances between them."""
    if rank == 0:
        return {"nc1": math.inf, "nc1_ratio": math.inf, "cdnv": math.inf}
    values, K, N = second.singular_values, first.num_classes, first.num_samples
    nc1 = (second.projected_scatter[:rank] / values[:rank].square()).sum() / N
    ratio = (first.scatter_trace.sum() / N) / (values.square().sum() / K)
    variances = first.scatter_trace / first.counts
    rows, columns = torch.triu_indices(K, K, 1)
    distances = second.distances[rows, columns]
    cdnv = ((variances[rows] + variances[columns]) / (2 * distances.square())).mean()
    coincide = bool((distances <= first.resolution).any())
    return {"nc1": float(nc1), "nc1_ratio": float(ratio), "cdnv": math.inf if coincide else float(cdnv)}


def _geometry(centred: Tensor, means: Tensor, floor: float) -> dict[str, float]:
    """Compare the class means (rows) with a simplex ETF and an orthogonal frame."""
    K = len(means)
    norms = centred.norm(dim=1)
    angle = math.inf
    if float(norms.min()) > max(floor, 8 * _EPS * float(norms.max())):
        directions = centred / norms[:, None]
        cosines = (directions @ directions.T)[~torch.eye(K, dtype=torch.bool)]
        angle = float((cosines + 1 / (K - 1)).abs().mean())
    return {
        "nc2_norm": float(norms.std(correction=0) / norms.mean()) if norms.any() else math.inf,
        "nc2_angle": angle,
        "nc2_etf": _distance(_gram(centred), _etf_gram(K)),
        "nc2_of": _distance(_gram(means), torch.eye(K, dtype=torch.float64)),
    }


def _classifier(second: BetweenScatter, centred: Tensor) -> dict[str, float]:
    """Compare the classifier with the class means, with frames and with the nearest-mean rule."""
    W, b, means = second.weight, second.bias, second.statistics.means
    if W is None:
        return {}
    K = len(W)
    at_centre = W @ second.statistics.global_mean + (0.0 if b is None else b)
    return {
        "nc2_weight_etf": _distance(_gram(W), _etf_gram(K)),
        "nc2_weight_of": _distance(_gram(W), torch.eye(K, dtype=torch.float64)),
        "nc3": _distance(W, centred),
        "nc3_joint": _distance(_unit(W) @ _unit(centred).T, _etf_gram(K)),
        "nc3_uncentred": _distance(W, means),
        "nc4": int(second.disagreements) / second.statistics.num_samples,
        "bias_collapse": float(at_centre.norm()),
    }


def _etf_gram(K: int) -> Tensor:
    return torch.eye(K, dtype=torch.float64) - 1 / K


def _unit(matrix: Tensor) -> Tensor:
    """Scale a matrix to largest entry one, so that no square overflows or vanishes; zero stays zero."""
    largest = matrix.abs().max()
    return matrix / largest if largest > 0 else matrix


def _gram(rows: Tensor) -> Tensor:
    rows = _unit(rows)
    return rows @ rows.T


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the distance of two directions in matrix space, inf where one of them has none."""
    if not (a.any() and b.any()):
        return math.inf
    a, b = _unit(a), _unit(b)
    return float((a / a.norm() - b / b.norm()).norm())


def class_count(num_classes: Any, weight: Tensor | None, labels: Tensor) -> int:
    if num_classes is not None:
        K = positive_integer(num_classes, "num_classes")
    elif weight is not None:
        K = len(weight)
    else:
        K = int(labels.max()) + 1 if len(labels) else 0
    if K < 2:
        raise ValueError(
            f"num_classes must be at least 2: one class has nothing to collapse against, got {K}"
        )
    return K


def check_tolerance(rank_tol: Any, dtype: torch.dtype) -> float:
    if rank_tol is None:
        return _RANK_TOL.get(dtype, _RANK_TOL_WIDE)
    if isinstance(rank_tol, bool) or not isinstance(rank_tol, (int, float)) or not 0 <= rank_tol < 1:
        raise ValueError(f"rank_tol must be a number in [0, 1), got {rank_tol!r}")
    return float(rank_tol)
