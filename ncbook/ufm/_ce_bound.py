"""Lower bounds of the cross-entropy unconstrained features model, from its dual problem."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SHARES = (0.0, 0.5, 0.9, 0.99, 0.999)  # of the limit: singular values above are raised to it


class Dual(NamedTuple):
    """The numbers of a model that its dual problem needs, float64, with () or (B,) where runs may differ."""

    sizes: Tensor
    lambda_W: Tensor
    lambda_H: Tensor
    lambda_b: Tensor | None
    smoothing: Tensor
    nonnegative: bool
    classifier: Tensor | None

    def targets(self) -> Tensor:
        """The target of each class as a column, shape (B or 1, K, K)."""
        K = len(self.sizes)
        alpha = self.smoothing.reshape(-1, 1, 1)
        return (1 - alpha) * torch.eye(K).to(self.sizes) + alpha / K


def lower_bound(P: Tensor, dual: Dual) -> Tensor:
    """Return the best of a few dual values near the probabilities P, shape (B, K, N) -> (B,).

    All of them are indifferent to the order of the samples of a class and concave in P, so that P may be
    replaced by its class means: all that follows are K × K matrices. M stands for A = (P − Y)/N there, column
    k multiplied by √n_k, so that M has the singular values of A.
    """
    K, N = len(dual.sizes), float(dual.sizes.sum())
    sizes = [int(size) for size in dual.sizes.tolist()]
    means = torch.stack([part.mean(-1) for part in P.split(sizes, -1)], -1)
    finite = means.isfinite().all(-1).all(-1)
    Y = dual.targets()
    if K == 1:  # the one probability is 1, and A is zero
        best = means.new_zeros(len(P)) + _constant(dual)
        return torch.where(finite, best, torch.nan)
    M = torch.where(finite[:, None, None], means - Y, 0.0) * dual.sizes.sqrt() / N
    variants = (
        [] if dual.lambda_b is None else [(_without_sums(M, dual.sizes), _complement(dual.sizes.sqrt()))]
    )
    if dual.lambda_b is None or bool((dual.lambda_b > 0).any()):
        variants.append((M, torch.eye(K).to(M)))
    values = [
        _dual_value(_repaired(candidate, Y, dual), Y, dual)
        for variant, right in variants
        for candidate in _candidates(variant, right, dual)
    ]
    best = torch.stack(values).amax(0)
    return torch.where(finite, best, torch.nan)


def _without_sums(M: Tensor, sizes: Tensor) -> Tensor:
    """The nearest M with A1 = 0, which is M √n = 0."""
    root = sizes.sqrt()
    return M - (M @ root)[..., None] * root / sizes.sum()


def _limit(dual: Dual) -> Tensor:
    return (dual.lambda_W * dual.lambda_H).sqrt().reshape(-1, 1, 1)


def _constant(dual: Dual) -> Tensor:
    """The penalty of a classifier that is held."""
    if dual.classifier is None:
        return torch.zeros_like(dual.lambda_W)
    return dual.lambda_W / 2 * dual.classifier.square().sum()


def _candidates(M: Tensor, right: Tensor, dual: Dual) -> list[Tensor]:
    """Matrices near M at which the penalties outweigh ⟨A, WH⟩."""
    if dual.classifier is not None:
        return [torch.where((dual.lambda_H > 0).reshape(-1, 1, 1), M, 0.0), torch.zeros_like(M)]
    limit = _limit(dual)
    candidates = _spectral(M, right, limit)
    if dual.nonnegative:
        # c²I − MᵀM copositive is what is needed; dropping the negative entries of MᵀM can only ask for more
        size = torch.linalg.eigvalsh((M.mT @ M).clamp(min=0))[:, -1].clamp(min=0).sqrt()[:, None, None]
        factor = torch.where(size > 0, limit / size, 1.0)
        candidates += [factor * M, factor.clamp(max=1) * M]
    return candidates


def _spectral(M: Tensor, right: Tensor, limit: Tensor) -> list[Tensor]:
    """M with its singular values cut at the limit, those near it raised to it.

    At a minimum the singular values on the range of W are at the limit. The columns of A sum to zero, and its
    rows too where ``right`` is a basis of what is orthogonal to √n: what is raised keeps that.
    """
    left = _complement(torch.ones_like(right[:, 0]))
    U, S, Vh = torch.linalg.svd(left.mT @ M @ right, full_matrices=False)
    cut = torch.minimum(S, limit[..., 0])
    raised = [torch.where(share * limit[..., 0] <= S, limit[..., 0], cut) for share in _SHARES]
    return [left @ (U * s[:, None, :]) @ Vh @ right.mT for s in [cut, *raised]]


def _complement(v: Tensor) -> Tensor:
    """An orthonormal basis of what is orthogonal to a positive vector, shape (K, K−1)."""
    K = len(v)
    return torch.linalg.qr(torch.cat([v[:, None], torch.eye(K)[:, :-1].to(v)], 1)).Q[:, 1:]


def _repaired(M: Tensor, Y: Tensor, dual: Dual) -> Tensor:
    """The probabilities that belong to M, moved towards feasible positive ones where some are negative."""
    root, N = dual.sizes.sqrt(), dual.sizes.sum()
    P = Y + N * M / root
    frequencies = (Y @ (dual.sizes / N))[..., None]
    away = (frequencies - Y) * root / N
    share = torch.ones_like(Y[:, :1, :1])
    if dual.classifier is None:
        share = (_limit(dual) / torch.linalg.matrix_norm(away, 2)[:, None, None]).clamp(max=1)
    safe = Y + share * (frequencies - Y)
    step = torch.where(P < 0, safe / (safe - P), 1.0).amin((-2, -1), keepdim=True)
    return (safe + step * (P - safe)).clamp(min=0)


def _dual_value(P: Tensor, Y: Tensor, dual: Dual) -> Tensor:
    N = dual.sizes.sum()
    weights = dual.sizes / N
    value = -torch.xlogy(P, P).sum(-2) @ weights + _constant(dual)
    if dual.lambda_b is not None:
        # A1; a free bias asks for zero, which holds to rounding where it was made so
        squares = ((P - Y) @ weights).square().sum(-1)
        price = squares / (2 * dual.lambda_b)
        free = torch.where(squares > 1e-24, torch.inf, 0.0)
        value = value - torch.where(dual.lambda_b > 0, price, free)
    if dual.classifier is not None:
        pull = dual.classifier.mT @ (P - Y) / N
        if dual.nonnegative:
            pull = pull.clamp(max=0)
        squares = pull.square().sum(-2) @ dual.sizes
        value = value - torch.where(squares > 0, squares / (2 * dual.lambda_H), 0.0)
    return value
