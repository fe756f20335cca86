"""Collapsed features: a readout on K tight classes, its risk in closed form, and the least-squares floor.

The model has K equally likely classes whose centred means form a simplex ETF, and isotropic noise around
them: feature = mean + √w · standard normal vector. Its covariance has K - 1 eigenvalues beta + w, the
*spikes*, and p - K + 1 eigenvalues w, the *bulk*. Targets are the centred labels: unit vector minus 1/K.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook import ridge_asymptotics
from ncbook.frames import simplex_etf
from ncbook.runtime import DTYPE, as_tensor, generator

__all__ = [
    "CollapsedRidge",
    "class_covariances",
    "collapsed_means",
    "collapsed_ridge",
    "least_squares_floor",
    "population_nc1",
    "sample_collapsed",
]

_QUADRATURE_POINTS = 801  # a step of at most 1/8, where the trapezoidal rule is exact to rounding
_LARGEST_SEPARATION = 80.0  # in standard deviations: beyond it the error rate is zero in float64
_RANK_TOLERANCE = 1e-12  # relative to the largest eigenvalue: below it, rounding


class CollapsedRidge(NamedTuple):
    """What a ridge readout of n collapsed samples does; all fields are float64 tensors of one shape.

    >>> CollapsedRidge._fields[:3]
    ('test', 'train', 'error_rate')
    """

    test: Tensor
    """Mean squared test error, summed over the K outputs."""
    train: Tensor
    """Mean squared training residual, summed over the K outputs."""
    error_rate: Tensor
    """Share of wrong decisions, the decision being the largest of the K scores."""
    nc1: Tensor
    """The population value of tr(Σ_W Σ_B⁺)/K, that is (K-1)w/(K beta)."""
    nc3: Tensor
    """Distance of the readout from the class means, √(2 - 2 cos(θ, M))."""
    floor: Tensor
    """The least population risk of any linear readout, (K-1)w/(K(beta+w))."""
    gain: Tensor
    """g = beta/(beta+w+κ): the score of the own class leads by g on average."""
    score_variance: Tensor
    """v: the scores vary around their class means with covariance v(I - J/K)."""
    kappa: Tensor
    """The effective ridge κ."""
    df1: Tensor
    """First degrees of freedom, Σ ω/(ω+κ)."""
    df2: Tensor
    """Second degrees of freedom, Σ (ω/(ω+κ))²."""


def collapsed_ridge(K: int, p: int, n: Any, ridge: Any, beta: Any, w: Any) -> CollapsedRidge:
    r"""Return the asymptotic errors of a ridge readout that learns from n samples of collapsed features.

    With :math:`t = w/\beta`, :math:`k = \kappa/\beta` and
    :math:`\mathrm{df}_a = (K-1)\big(\tfrac{1+t}{1+t+k}\big)^a + (p-K+1)\big(\tfrac{t}{t+k}\big)^a`, where
    :math:`\kappa` solves :math:`n = \Lambda/\kappa + \mathrm{df}_1`,

    .. math:: E_\text{test} = \frac{K-1}{K}\,\frac{(t+k)^2 + t}{(1+t+k)^2}\,\frac{1}{1-\mathrm{df}_2/n} .

    Args:
        K: classes, at least 2.
        p: feature dimension, at least K - 1.
        n: samples of the readout, positive. It is broadcast with the next three.
        ridge: Λ ≥ 0 of the sum Σ_i ‖y_i - θᵀφ_i‖² + Λ‖θ‖².
        beta: spike strength, positive: the squared length of a centred class mean is (K-1)·beta.
        w: variance of a feature in each direction around its class mean, not negative.

    Raises:
        ValueError: an argument is out of range, or ``ridge`` is zero and n equals the rank of the covariance,
            where the risk is infinite.

    Source: this book.

    >>> found = collapsed_ridge(K=4, p=100, n=50, ridge=0.1, beta=1, w=0.3)
    >>> round(float(found.test), 10), round(float(found.error_rate), 9)
    (0.3898339831, 0.172603339)
    """
    _require_sizes(K, p)
    n, ridge, beta, w = _broadcast(n=n, ridge=ridge, beta=beta, w=w)
    t = w / beta
    _require_finite_risk(K, p, n, ridge, t)
    k = _relative_effective_ridge(K, p, n, ridge / beta, t)
    spike, bulk = (1 + t) / (1 + t + k), _ratio(t, t + k)
    df1 = (K - 1) * spike + (p - K + 1) * bulk
    df2 = (K - 1) * spike**2 + (p - K + 1) * bulk**2
    share = (K - 1) / K
    # 1 - df2/n without cancellation: 1 - df1/n = Λ/(nκ), and df1 - df2 is a sum of positive terms
    lost = (K - 1) * spike * k / (1 + t + k) + (p - K + 1) * bulk * _ratio(k, t + k)
    residual = torch.where(ridge > 0, _ratio(ridge / beta, n * k), (1 - df1 / n) * (k == 0))
    test = share * ((t + k) ** 2 + t) / (1 + t + k) ** 2 / (residual + lost / n)
    gain = 1 / (1 + t + k)
    variance = (test * df2 / n + share * gain**2 * t) / (K - 1)
    spread = test / (n * beta) * ((K - 1) * spike / (1 + t + k) + (p - K + 1) * _ratio(bulk, t + k))
    return CollapsedRidge(
        test=test,
        train=residual**2 * test,
        error_rate=_error_rate(K, gain, variance),
        nc1=share * t,
        nc3=_duality_distance(share * gain**2 / beta, spread),
        floor=share * t / (1 + t),
        gain=gain,
        score_variance=variance,
        kappa=beta * k,
        df1=df1,
        df2=df2,
    )


def _relative_effective_ridge(K: int, p: int, n: Tensor, ridge: Tensor, t: Tensor) -> Tensor:
    """κ/beta: the fixed point of the spectrum divided by beta, one spectrum for each value of t."""
    k = torch.empty_like(t)
    for value in t.unique():
        spectrum = torch.cat([(1 + value).expand(K - 1), value.expand(p - K + 1)])
        here = t == value
        solved = ridge_asymptotics.effective_ridge(spectrum, ridge[here], n[here])
        k[here] = as_tensor(solved, "kappa", DTYPE)
    return k


def _error_rate(K: int, gain: Tensor, variance: Tensor) -> Tensor:
    """1 - E Ncdf(ξ + g/√v)^(K-1), by the trapezoidal rule around the place where errors happen."""
    separation = torch.where(variance > 0, gain / variance.sqrt(), torch.full_like(gain, math.inf))
    separation = separation.clamp(max=_LARGEST_SEPARATION)[..., None]
    unit = torch.linspace(-1, 1, _QUADRATURE_POINTS, dtype=DTYPE)
    reach = separation / 2 + 10
    xi = reach * unit - separation / 2
    density = torch.exp(-xi.square() / 2) / math.sqrt(2 * math.pi)
    wrong = -torch.expm1((K - 1) * torch.special.log_ndtr(xi + separation))
    return (density * wrong).sum(-1) * (reach[..., 0] * 2 / (_QUADRATURE_POINTS - 1))


def _duality_distance(aligned: Tensor, spread: Tensor) -> Tensor:
    """√(2 - 2 cos) with cos² = aligned/(aligned + spread), without cancellation at cos = 1."""
    cosine = (aligned / (aligned + spread)).sqrt()
    return (2 * spread / (aligned + spread) / (1 + cosine)).sqrt()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b, and zero where a is zero: an empty part of the spectrum contributes nothing."""
    return torch.where(a > 0, a / torch.where(a > 0, b, torch.ones_like(b)), torch.zeros_like(a))


def least_squares_floor(between: Any, within: Any, K: int) -> Tensor:
    r"""Return the least mean squared error of any linear readout of the centred labels, from two covariances.

    .. math:: E_{\min} = \frac1K\Big(K - 1 - \operatorname{tr}\,\Sigma_B\,(\Sigma_B+\Sigma_W)^{+}\Big)

    It never exceeds NC1 = tr(Σ_W Σ_B⁺)/K when Σ_B has rank K - 1.

    Args:
        between: Σ_B of K equally likely classes, (…, p, p), positive semidefinite of rank at most K - 1.
        within: Σ_W, (…, p, p), positive semidefinite; it may be singular.
        K: classes, at least 2.

    Returns:
        (…,) the risk, summed over the K outputs, between 0 and (K-1)/K.

    Raises:
        ValueError: an array is not square, the shapes differ, or K is below 2.

    Source: this book.

    >>> simplex = torch.eye(3) - 1 / 3
    >>> round(float(least_squares_floor(simplex, 0.5 * torch.eye(3), 3)), 6)
    0.222222
    """
    between, within = _require_covariances(between, within, K)
    total = between + within
    eigenvalues, vectors = torch.linalg.eigh(total)
    alive = eigenvalues > _RANK_TOLERANCE * eigenvalues[..., -1:].clamp(min=0)
    scale = torch.where(alive, eigenvalues, torch.ones_like(eigenvalues)).rsqrt() * alive
    whiten = vectors * scale[..., None, :]
    # Noise shares: eigenvalues of the whitened Σ_W. Directions without any variance count as pure noise.
    share = whiten.mT @ within @ whiten + torch.diag_embed((~alive).to(DTYPE))
    noise = torch.linalg.eigvalsh((share + share.mT) / 2).clamp(0, 1)  # rounding may leave [0, 1]
    missing = max(K - 1 - noise.shape[-1], 0)  # no readout sees more directions than there are features
    return (noise[..., : K - 1].sum(-1) + missing) / K


def population_nc1(between: Any, within: Any, K: int, *, rank_tol: float = 1e-10) -> Tensor:
    r"""Return NC1 = tr(Σ_W Σ_B⁺)/K of two population covariances.

    Args:
        between: Σ_B, (…, p, p).
        within: Σ_W, (…, p, p).
        K: classes, at least 2; at most K - 1 eigenvalues of Σ_B are inverted.
        rank_tol: eigenvalues of Σ_B below this share of the largest count as zero.

    Raises:
        ValueError: an array is not square, the shapes differ, K is below 2, or Σ_B vanishes.

    >>> simplex = torch.eye(3) - 1 / 3
    >>> round(float(population_nc1(simplex, 0.5 * torch.eye(3), 3)), 6)
    0.333333
    """
    between, within = _require_covariances(between, within, K)
    eigenvalues, vectors = torch.linalg.eigh(between)
    eigenvalues, vectors = eigenvalues[..., -(K - 1) :], vectors[..., -(K - 1) :]
    top = eigenvalues[..., -1:]
    if not bool((top > 0).all()):
        raise ValueError("between must not vanish: classes with equal means have no NC1")
    alive = eigenvalues > rank_tol * top
    variance = (vectors * (within @ vectors)).sum(-2)
    return torch.where(alive, variance / torch.where(alive, eigenvalues, top), 0).sum(-1) / K


def class_covariances(features: Any, labels: Any, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return Σ_B and Σ_W of labelled features: they add up to the covariance when classes are balanced.

    Args:
        features: (N, p) rows.
        labels: (N,) classes 0, …, num_classes - 1, each of them present.
        num_classes: K, at least 2.

    Returns:
        between: (p, p), the mean of Δ_k Δ_kᵀ over the classes, Δ_k being the mean of class k minus the mean
            of the class means; within: (p, p), the covariance around the class means.

    Raises:
        ValueError: the shapes do not fit, a label is out of range, or a class is empty.

    >>> between, within = class_covariances([[0.0], [2.0], [4.0], [6.0]], [0, 0, 1, 1], 2)
    >>> float(between), float(within)
    (4.0, 1.0)
    """
    rows, y = as_tensor(features, "features", DTYPE), as_tensor(labels, "labels", torch.int64)
    K = _require_classes(num_classes)
    if rows.ndim != 2 or y.shape != rows.shape[:1]:
        raise ValueError(
            f"features must be (N, p) and labels (N,), got {tuple(rows.shape)} and {tuple(y.shape)}"
        )
    if y.numel() == 0 or int(y.min()) < 0 or int(y.max()) >= K:
        raise ValueError(f"labels must be classes from 0 to {K - 1}, at least one each")
    counts = torch.bincount(y, minlength=K)
    if bool((counts == 0).any()):
        raise ValueError(f"labels must contain every class, class {int(counts.argmin())} is empty")
    means = torch.zeros(K, rows.shape[1], dtype=DTYPE).index_add_(0, y, rows) / counts[:, None]
    deviations, centred = rows - means[y], means - means.mean(0)
    return centred.T @ centred / K, deviations.T @ deviations / len(rows)


def collapsed_means(K: int, p: int, beta: float = 1.0, *, seed: int | None = None) -> Tensor:
    """Return the centred class means of the model: (p, K) columns, a simplex ETF with Σ_B = beta · projector.

    Args:
        K: classes, at least 2.
        p: feature dimension, at least K - 1.
        beta: spike strength, positive.
        seed: rotates the frame at random; None is the canonical frame.

    Raises:
        ValueError: an argument is out of range.

    >>> means = collapsed_means(4, 9, beta=2.0)
    >>> means.shape, round(float(means[:, 0].square().sum()), 10)
    (torch.Size([9, 4]), 6.0)
    """
    _require_sizes(K, p)
    return math.sqrt((K - 1) * _number("beta", beta)) * simplex_etf(K, p, seed=seed)


def sample_collapsed(
    means: Any, w: float, n: int, *, seed: int, batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw samples of the model: equally likely classes, normal noise of variance w around their means.

    Args:
        means: (p, K) columns.
        w: variance in each direction, not negative.
        n: samples, at least 1.
        seed: of the draw.
        batch: independent sets of samples; None for one set without a batch axis.

    Returns:
        features: (n, p) or (batch, n, p) rows; labels: (n,) or (batch, n).

    Raises:
        ValueError: an argument is out of range.

    >>> features, labels = sample_collapsed(collapsed_means(3, 5), w=0.1, n=8, seed=0, batch=2)
    >>> features.shape, labels.shape
    (torch.Size([2, 8, 5]), torch.Size([2, 8]))
    """
    columns = as_tensor(means, "means", DTYPE)
    if columns.ndim != 2 or columns.numel() == 0:
        raise ValueError(f"means must be (p, K) columns, got shape {tuple(columns.shape)}")
    for name, value in (("n", n), ("batch", 1 if batch is None else batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    variance = _number("w", w)
    source = generator(seed)
    shape = (n,) if batch is None else (batch, n)
    labels = torch.randint(columns.shape[1], shape, generator=source)
    noise = torch.randn(*shape, columns.shape[0], dtype=DTYPE, generator=source)
    return columns.T[labels] + math.sqrt(variance) * noise, labels


def _require_classes(K: Any) -> int:
    if isinstance(K, bool) or not isinstance(K, int) or K < 2:
        raise ValueError(f"K must be an integer of at least 2, got {K!r}")
    return K


def _require_sizes(K: Any, p: Any) -> None:
    _require_classes(K)
    if isinstance(p, bool) or not isinstance(p, int) or p < K - 1:
        raise ValueError(f"p must be an integer of at least K - 1 = {K - 1}, got {p!r}")


def _broadcast(**numbers: Any) -> list[Tensor]:
    """The arguments as float64 tensors of one shape; ``n`` and ``beta`` positive, the others not negative."""
    tensors = {name: as_tensor(value, name, DTYPE) for name, value in numbers.items()}
    for name, tensor in tensors.items():
        positive = name in ("n", "beta")
        if bool((tensor <= 0).any() if positive else (tensor < 0).any()):
            wanted = "positive" if positive else "not negative"
            raise ValueError(f"{name} must be {wanted}, got {float(tensor.min())}")
    try:
        return [tensor.clone() for tensor in torch.broadcast_tensors(*tensors.values())]
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{', '.join(tensors)} must have shapes that broadcast, got {shapes}") from None


def _number(name: str, value: Any) -> float:
    (tensor,) = _broadcast(**{name: value})
    if tensor.numel() != 1:
        raise ValueError(f"{name} must be one number, got shape {tuple(tensor.shape)}")
    return tensor.item()


def _require_finite_risk(K: int, p: int, n: Tensor, ridge: Tensor, t: Tensor) -> None:
    free = ridge == 0
    if bool((free & (t > 0) & (t <= ridge_asymptotics.RANK_TOL * (1 + t))).any()):
        raise ValueError("w must be zero, or more than rounding against beta, where ridge is zero")
    if bool((free & (n == torch.where(t > 0, float(p), float(K - 1)))).any()):
        raise ValueError("ridge must be positive where n is the rank of the covariance: the risk is infinite")


def _require_covariances(between: Any, within: Any, K: Any) -> tuple[Tensor, Tensor]:
    _require_classes(K)
    first, second = as_tensor(between, "between", DTYPE), as_tensor(within, "within", DTYPE)
    for name, matrix in (("between", first), ("within", second)):
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.numel() == 0:
            raise ValueError(f"{name} must be a square matrix (…, p, p), got shape {tuple(matrix.shape)}")
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"between and within must have one size, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return first, second
