"""Ridge readouts of given features, their exact risk in a known population, and a pool's moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.ridge_asymptotics.errors import require_covariance
from ncbook.ridge_asymptotics.fixed_point import require_not_negative
from ncbook.runtime import DTYPE, as_tensor

__all__ = ["Moments", "empirical_moments", "population_risk", "ridge_readout"]


class Moments(NamedTuple):
    """Second moments of a pool taken as a population, and the means that were subtracted.

    ``Omega`` (p, p), ``psi`` (p,) or (p, K), ``rho`` () summed over outputs, ``feature_mean`` (p,) and
    ``label_mean`` () or (K,).

    >>> empirical_moments([[1.0], [3.0]], [0.0, 2.0]).rho
    tensor(1., dtype=torch.float64)
    """

    Omega: Tensor
    psi: Tensor
    rho: Tensor
    feature_mean: Tensor
    label_mean: Tensor


def ridge_readout(F: Any, Y: Any, ridge: float) -> Tensor:
    r"""Return the readout that minimises the ridge objective on given features.

    .. math:: \hat\theta = \arg\min_\theta \sum_i (y_i - \phi_i \cdot \theta)^2 + \Lambda \|\theta\|^2

    With n ≥ p it solves the p equations (FᵀF + Λ)θ = FᵀY, otherwise the n equations of the dual form
    θ = Fᵀ(FFᵀ + Λ)⁻¹Y. Without a ridge the result is the least-squares solution of least norm.

    Args:
        F: features, one sample a row, shape (n, p), or (…, n, p) for a batch of readouts.
        Y: labels, shape (…, n), or (…, n, K) for K outputs.
        ridge: Λ, a number, not negative.

    Returns:
        θ̂ of shape (…, p) or (…, p, K), float64.

    Raises:
        ValueError: shapes do not fit, a number is not finite, the ridge is negative, or it is so small that
            the equations are singular in float64.

    >>> ridge_readout([[1.0, 0.0], [0.0, 2.0]], [1.0, 1.0], ridge=1.0)
    tensor([0.5000, 0.4000], dtype=torch.float64)
    """
    features, labels, single = _samples(F, Y)
    Lam = as_tensor(ridge, "ridge", DTYPE)
    if Lam.dim():
        raise ValueError(f"ridge must be one number, got the shape {list(Lam.shape)}")
    require_not_negative(Lam, "ridge")
    theta = _least_norm(features, labels) if Lam == 0 else _ridge(features, labels, float(Lam))
    return theta.squeeze(-1) if single else theta


def population_risk(w: Any, Omega: Any, psi: Any, rho: Any) -> Tensor:
    r"""Return the exact mean squared error of a readout against the noiseless labels of a population.

    .. math:: \mathbb E\,(y - \phi\cdot w)^2 = \rho - 2\, w^\top \psi + w^\top \Omega\, w

    The noise of a fresh label is not in it: it is the *excess*, not the test error. There is no test set,
    hence no noise of one.

    Args:
        w: the readout, shape (…, p), or (…, p, K) where psi has K columns.
        Omega: covariance of the features, shape (p, p).
        psi: E[φy], shape (p,) or (p, K).
        rho: power of the noiseless labels, summed over outputs.

    Returns:
        The risk summed over outputs, of the batch shape of ``w``.

    Raises:
        ValueError: shapes do not fit, Omega is not symmetric, or a number is not finite.

    >>> population_risk([1.0, 0.0], [[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0], 3.0)
    tensor(1., dtype=torch.float64)
    """
    covariance, cross = require_covariance(Omega), as_tensor(psi, "psi", DTYPE)
    theta, power = as_tensor(w, "w", DTYPE), as_tensor(rho, "rho", DTYPE)
    p = len(covariance)
    if cross.dim() not in (1, 2) or len(cross) != p:
        raise ValueError(f"psi must have the shape ({p},) or ({p}, K), got {list(cross.shape)}")
    if theta.shape[-cross.dim() :] != cross.shape:
        raise ValueError(
            f"w must have the shape (…, {', '.join(map(str, cross.shape))}), got {list(theta.shape)}"
        )
    if cross.dim() == 1:
        theta, cross = theta[..., None], cross[:, None]
    return power + (theta * (covariance @ theta - 2 * cross)).sum((-2, -1))


def empirical_moments(F: Any, Y: Any, centre: bool = True) -> Moments:
    r"""Return the moments of a finite pool that is taken as the whole population.

    .. math:: \Omega = \tfrac1N F^\top F, \qquad \psi = \tfrac1N F^\top Y, \qquad \rho = \tfrac1N \|Y\|_F^2

    of the centred features and labels. Samples drawn from the pool *with replacement* and centred by the
    same means have exactly these population moments.

    Args:
        F: features of the pool, one sample a row, shape (N, p).
        Y: labels, shape (N,) or (N, K).
        centre: subtract the means of features and labels first.

    Raises:
        ValueError: shapes do not fit, the pool is empty, or a number is not finite.

    >>> empirical_moments([[1.0, 0.0], [3.0, 0.0]], [0.0, 2.0]).psi
    tensor([1., 0.], dtype=torch.float64)
    """
    features, labels, single = _samples(F, Y)
    if features.dim() != 2:
        raise ValueError(f"F must have the shape (N, p), got {list(features.shape)}")
    mean, label_mean = features.mean(0), labels.mean(0)
    if not centre:
        mean, label_mean = torch.zeros_like(mean), torch.zeros_like(label_mean)
    features, labels = features - mean, labels - label_mean
    N = len(features)
    psi = features.mT @ labels / N
    return Moments(
        Omega=features.mT @ features / N,
        psi=psi.squeeze(1) if single else psi,
        rho=labels.square().sum() / N,
        feature_mean=mean,
        label_mean=label_mean.squeeze(0) if single else label_mean,
    )


def _samples(F: Any, Y: Any) -> tuple[Tensor, Tensor, bool]:
    """Features (…, n, p), labels (…, n, K), and whether the labels came without the last axis."""
    features, labels = as_tensor(F, "F", DTYPE), as_tensor(Y, "Y", DTYPE)
    if features.dim() < 2 or not features.shape[-2] or not features.shape[-1]:
        raise ValueError(f"F must have the shape (…, n, p) with n, p ≥ 1, got {list(features.shape)}")
    single = labels.dim() == features.dim() - 1
    if single:
        labels = labels[..., None]
    if labels.shape[:-1] != features.shape[:-1] or not labels.shape[-1]:
        wanted = ", ".join(map(str, features.shape[:-1]))
        raise ValueError(
            f"Y must have the shape ({wanted}) or ({wanted}, K), got {list(as_tensor(Y, 'Y').shape)}"
        )
    return features, labels, single


def _ridge(F: Tensor, Y: Tensor, ridge: float) -> Tensor:
    """The ridge solution by the smaller of the two systems of equations."""
    n, p = F.shape[-2:]
    gram = F.mT @ F if n >= p else F @ F.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool((info != 0).any()):
        raise ValueError(f"ridge {ridge:g} is too small for these features in float64: take 0 for the limit")
    if n >= p:
        return torch.cholesky_solve(F.mT @ Y, factor)
    return F.mT @ torch.cholesky_solve(Y, factor)


def _least_norm(F: Tensor, Y: Tensor) -> Tensor:
    """The least-squares solution of least norm, singular values below rounding counted as zero."""
    U, s, Vt = torch.linalg.svd(F, full_matrices=False)
    kept = s > max(F.shape[-2:]) * torch.finfo(DTYPE).eps * s.amax(-1, keepdim=True)
    inverse = torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0)
    return Vt.mT @ (inverse[..., None] * (U.mT @ Y))
