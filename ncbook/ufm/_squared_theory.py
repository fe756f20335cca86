"""What theory says of the squared loss: the minimum in closed form, and a bound from convex duality.

Both rest on one reduction. With λ_b the decay of the bias and γ = λ_b/(1+λ_b) (1 without a bias, 0 where
it is free), the best bias leaves ‖(WH − Y)T‖²/(2N) of the fit, where T multiplies the mean over the samples
by √γ and leaves alone what is orthogonal to it. The penalties of W and H are at least c‖WH‖_*, the nuclear
norm times c = √(λ_W λ_H). T and the nuclear norm are indifferent to rotations within a class, so that all
happens in K × K matrices: column k stands for the mean of class k times √n_k, the labels become diag(√n_k),
and the mean over the samples the unit vector u_k = √(n_k/N).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncbook.frames import simplex_etf
from ncbook.protocol import NoClosedForm, RunNumber, UFMParams, over_runs
from ncbook.runtime import DTYPE


class SquaredLossMinimum(NamedTuple):
    """The global minimum of :class:`SquaredLossUFM`; with (B,) lambdas every field has that leading axis.

    >>> from ncbook.ufm import SquaredLossUFM
    >>> SquaredLossUFM(4, 5, 8, 5e-3, 5e-3).minimum().t.round(decimals=6)
    tensor(0.9553, dtype=torch.float64)
    """

    loss: Tensor
    """The least value of the objective."""
    singular_values_H: Tensor
    """The first min(K, d) singular values of H, the largest first, last axis; all others are zero."""
    bias: Tensor | None
    """The bias, last axis K; None in a model without one."""
    trivial: Tensor
    """Whether W = 0, H = 0 is the only minimiser."""
    t: Tensor
    """The output scale (1 − q)₊ of a direction that is kept. Equal classes have one for all directions but
    the mean. Counts have a last axis: the K classes without bias, K − 1 directions with a free one; what a
    small d leaves out has 0 there."""
    q: Tensor
    """The effective decay: K√(n λ_W λ_H), or N√(λ_W λ_H / n_k) of each class (with a free bias N√(λ_W λ_H)
    over s_i of each direction, s_i the singular values of the centred labels)."""
    t_mean: Tensor | None = None
    """The output scale of the mean direction, (1 − q/γ)₊ with γ = λ_b/(1 + λ_b), 0 where the bias is free or
    d < K; None without a bias."""


def closed_form(
    sizes: tuple[int, ...],
    d: int,
    lambda_W: RunNumber,
    lambda_H: RunNumber,
    lambda_b: RunNumber | None,
    *,
    equal: bool,
) -> SquaredLossMinimum:
    """Return the global minimum for these class sizes; ``equal`` asks for the formulas of equal classes.

    Raises:
        NoClosedForm: a decay of W or H is zero, or unequal classes have a bias that costs something.
    """
    decays = _common_decays(lambda_W, lambda_H, 0.0 if lambda_b is None else lambda_b)
    if equal:
        return _equal_classes(len(sizes), sizes[0], d, *decays, has_bias=lambda_b is not None)
    if lambda_b is not None and bool((decays[2] > 0).any()):
        raise NoClosedForm(
            "with unequal classes and a bias that is penalised, the weighted mean and the labels share no "
            "singular vectors, and no formula is known"
        )
    return _unequal_classes(sizes, d, decays[0], decays[1], free_bias=lambda_b is not None)


def nonnegative_form(K: int, n: int, lambda_W: RunNumber, lambda_H: RunNumber) -> SquaredLossMinimum:
    """Return the global minimum with H ≥ 0, a free bias and d ≥ K: features of disjoint supports.

    A non-negative vector x has ‖x − mean‖² ≤ (K−1)/K ‖x‖², which stands for the operator norm in the dual.
    """
    decay_W, decay_H = _common_decays(lambda_W, lambda_H)
    q = K * (n * decay_W * decay_H).sqrt()
    share = (K - 1) / K
    t = torch.where(q < share**0.5, 1 - q / share**0.5, 0.0) if K > 1 else torch.zeros_like(q)
    loss = share * (1 - t).square() / 2 + share**0.5 * q * t
    features = (_factor(decay_W, decay_H)[..., 0] * n**0.5 * share**0.5 * t).sqrt()
    bias = torch.full((*q.shape, K), 1 / K, dtype=DTYPE, device=q.device)
    spread = features[..., None].expand(*q.shape, K).clone()
    return SquaredLossMinimum(loss, spread, bias, t == 0, t, q, torch.zeros_like(q))


def attain_nonnegative(
    minimum: SquaredLossMinimum,
    axes: Tensor,
    sizes: tuple[int, ...],
    lambda_W: RunNumber,
    lambda_H: RunNumber,
) -> UFMParams:
    """Return parameters that attain :func:`nonnegative_form`, class k along column k of axes."""
    K, n = len(sizes), sizes[0]
    lengths = torch.atleast_2d(minimum.singular_values_H)[:, :1, None]  # √n times that of a feature
    axes = axes[:, :K].to(lengths)
    ratio = torch.as_tensor(lambda_H, dtype=DTYPE) / torch.as_tensor(lambda_W, dtype=DTYPE)
    ratio = ratio.to(lengths).expand(len(lengths))[:, None, None].sqrt()
    centred = (torch.eye(K, dtype=DTYPE) - 1 / K).to(lengths) @ axes.mT * (K / max(K - 1, 1)) ** 0.5
    H = (lengths / n**0.5 * axes).repeat_interleave(n, 2)
    return UFMParams(ratio * lengths * centred, H, torch.atleast_2d(torch.as_tensor(minimum.bias)))


def _common_decays(*given: RunNumber) -> tuple[Tensor, ...]:
    """The decays as tensors of one shape on one device; those of W and H, the first two, must be positive."""
    device = next((x.device for x in given if isinstance(x, Tensor)), None)
    decays = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=DTYPE, device=device) for x in given))
    if bool(((decays[0] == 0) | (decays[1] == 0)).any()):
        raise NoClosedForm("with a lambda of 0 the infimum is not attained, or leaves H undetermined")
    return tuple(decays)


def _equal_classes(
    K: int, n: int, d: int, lambda_W: Tensor, lambda_H: Tensor, lambda_b: Tensor, *, has_bias: bool
) -> SquaredLossMinimum:
    """K − 1 directions orthogonal to the mean with decay q, and the mean with weight γ and decay q/γ."""
    q = K * (n * lambda_W * lambda_H).sqrt()
    gamma = lambda_b / (1 + lambda_b) if has_bias else torch.ones_like(q)
    t = torch.where(q < 1, 1 - q, 0.0)
    t_mean = torch.where((q < gamma) & (d >= K), 1 - q / gamma, 0.0)
    fitted = min(K - 1, d)
    loss = fitted * ((1 - t).square() / 2 + q * t) + (K - 1 - fitted) / 2
    loss = (loss + gamma * (1 - t_mean).square() / 2 + q * t_mean) / K
    scales = torch.cat([t[..., None].expand(*t.shape, fitted), t_mean[..., None]], -1)[..., : min(K, d)]
    features = (_factor(lambda_W, lambda_H) * n**0.5 * scales).sqrt()
    alive = t_mean > 0
    if fitted:
        alive = alive | (t > 0)
    if not has_bias:
        return SquaredLossMinimum(loss, features, None, ~alive, t, q)
    bias = ((1 - t_mean) / (K * (1 + lambda_b)))[..., None].expand(*q.shape, K).clone()
    return SquaredLossMinimum(loss, features, bias, ~alive, t, q, t_mean)


def _unequal_classes(
    sizes: tuple[int, ...], d: int, lambda_W: Tensor, lambda_H: Tensor, *, free_bias: bool
) -> SquaredLossMinimum:
    """Each singular value s of the labels (centred, with a free bias) shrinks by N√(λ_W λ_H); d remain."""
    K, N = len(sizes), sum(sizes)
    values = _label_spectrum(sizes, centred=free_bias)[1].to(lambda_W.device)
    bias, t_mean = None, None
    if free_bias:
        share = torch.tensor(sizes, dtype=DTYPE, device=lambda_W.device) / N
        bias, t_mean = share.expand(*lambda_W.shape, K).clone(), torch.zeros_like(lambda_W)
    q = N * (lambda_W * lambda_H).sqrt()[..., None] / values
    kept = torch.zeros_like(values)
    kept[values.argsort(descending=True, stable=True)[:d]] = 1
    t = torch.where(q < 1, 1 - q, 0.0) * kept
    share = values.square() / N
    loss = torch.where(t > 0, (1 - t).square() / 2 + q * t, 0.5).mul(share).sum(-1)
    features = (_factor(lambda_W, lambda_H) * values * t).sqrt().sort(-1, descending=True).values
    features = torch.nn.functional.pad(features, (0, 1))[..., : min(K, d)]  # a free bias leaves K − 1
    return SquaredLossMinimum(loss, features, bias, (t == 0).all(-1), t, q, t_mean)


def _label_spectrum(sizes: tuple[int, ...], *, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors (columns), singular values and right vectors of diag(√n_k), centred if asked for."""
    counts = torch.tensor(sizes, dtype=DTYPE)
    if not centred:
        axes = torch.eye(len(sizes), dtype=DTYPE)
        return axes, counts.sqrt(), axes
    mean = (counts / counts.sum()).sqrt()
    labels = counts.sqrt().diag()
    U, values, Vh = torch.linalg.svd(labels - torch.outer(labels @ mean, mean))
    return U[:, :-1], values[:-1], Vh.mT[:, :-1]


def attain(
    minimum: SquaredLossMinimum,
    axes: Tensor,
    sizes: tuple[int, ...],
    lambda_W: RunNumber,
    lambda_H: RunNumber,
    *,
    equal: bool,
) -> UFMParams:
    """Return parameters that attain a minimum; direction i of the labels lies along column i of axes."""
    left, scales, right = _optimal_logits(minimum, sizes, len(axes), equal=equal)
    axes = axes[:, : scales.shape[-1]].to(scales)
    root = scales[:, None].sqrt()
    factor = (torch.as_tensor(lambda_W, dtype=DTYPE) / torch.as_tensor(lambda_H, dtype=DTYPE)).to(scales)
    factor = factor.expand(len(scales))[:, None, None] ** 0.25
    counts = torch.tensor(sizes, device=scales.device)
    means = factor * (axes * root) @ right.mT / counts.to(scales).sqrt()
    b = None if minimum.bias is None else torch.atleast_2d(minimum.bias)
    return UFMParams(left * root @ axes.mT / factor, means.repeat_interleave(counts, 2), b)


def _optimal_logits(
    minimum: SquaredLossMinimum, sizes: tuple[int, ...], d: int, *, equal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors of the optimal WH and (B, ·) singular values, in the K × K coordinates, at most d."""
    K, t = len(sizes), minimum.t
    if equal and minimum.t_mean is not None:
        mean = torch.full((K, 1), K**-0.5, dtype=DTYPE)
        hyperplane = mean[:, :0] if K == 1 else simplex_etf(K, K - 1).mT * ((K - 1) / K) ** 0.5
        left = right = torch.cat([hyperplane, mean], 1)
        values = torch.full((K,), sizes[0] ** 0.5, dtype=DTYPE)
        t = torch.cat([t[..., None].expand(*t.shape, K - 1), minimum.t_mean[..., None]], -1)
    else:
        left, values, right = _label_spectrum(sizes, centred=minimum.t_mean is not None)
        t = t[..., None] if equal else t
    order = values.argsort(descending=True, stable=True)[:d]
    scales = torch.atleast_2d(values.to(t) * t)[:, order.to(t.device)]
    return left[:, order].to(scales), scales, right[:, order].to(scales)


def _factor(lambda_W: Tensor, lambda_H: Tensor) -> Tensor:
    """The square of a singular value of H over that of WH, where both factors are balanced."""
    return (lambda_W / lambda_H).sqrt()[..., None]


def dual_bound(
    residual: Tensor,
    labels: Tensor,
    d: int,
    lambda_W: RunNumber,
    lambda_H: RunNumber,
    lambda_b: RunNumber | None,
) -> Tensor:
    """Return the bound of :meth:`SquaredLossUFM.lower_bound` from WH − Y, shape (B, K, N)."""
    N, K = residual.shape[-1], residual.shape[-2]
    root = labels.sum(1).sqrt()
    means = -(residual @ labels.mT) / root
    finite = means.isfinite().all(-1).all(-1)
    means = torch.where(finite[:, None, None], means, 0.0)
    limit = (_each_run(lambda_W, means) * _each_run(lambda_H, means)).sqrt()[:, None]
    gamma = torch.ones_like(limit)
    if lambda_b is not None:
        gamma = _each_run(lambda_b, means)[:, None]
        gamma = gamma / (1 + gamma)
    mean = root / N**0.5
    U, _, Vh = torch.linalg.svd(means - _part(means, mean, 1 - gamma))
    # A T⁻¹ = U diag(a) tiltᵀ, where a free bias (γ = 0) has no inverse but drops the mean
    stretch = torch.where(gamma > 0, gamma.clamp(min=torch.finfo(gamma.dtype).tiny).rsqrt() - 1, -1.0)
    tilt = Vh.mT + mean[:, None] * (Vh @ mean * stretch)[:, None, :]
    target = root.diag() - _part(root.diag().expand_as(means), mean, 1 - gamma.sqrt())
    signal = (U * (target @ tilt)).sum(-2)
    metric = N * tilt.square().sum(-2)
    best = signal / metric.clamp(min=torch.finfo(metric.dtype).tiny)
    a = torch.minimum(best.clamp(min=0), limit)
    bound = (a * signal - metric * a.square() / 2).sum(-1)
    if d < K:
        rest = target - N * (U * a[:, None, :]) @ tilt.mT
        bound = bound + torch.linalg.svdvals(rest)[:, d:].square().sum(-1) / (2 * N)
    return torch.where(finite, bound, torch.nan)


def _part(matrices: Tensor, mean: Tensor, share: Tensor) -> Tensor:
    """A share of the part of each matrix along the mean: share · X u uᵀ."""
    return share[..., None] * (matrices @ mean)[..., None] * mean


def _each_run(x: RunNumber, like: Tensor) -> Tensor:
    return like.new_ones(len(like)) * over_runs(x, like[:, 0, 0])
