r"""What ridge regression on frozen features costs: test error, training error, overlaps, bias and variance.

All of it follows from the eigenvalues ω of the covariance Ω, the squared coordinates ψ² of E[φy] in its
eigenbasis, and the power ρ of the labels. One eigendecomposition serves every sample size and every ridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.ridge_asymptotics.fixed_point import (
    RANK_TOL,
    degrees_of_freedom,
    require_eigenvalues,
    require_not_negative,
    require_points,
    solve_effective_ridge,
)
from ncbook.runtime import DTYPE, as_tensor

__all__ = [
    "BiasVariance",
    "RidgeAsymptotics",
    "SpectralData",
    "bias_variance",
    "learning_curve",
    "ridge_asymptotics",
    "spectral_data",
]

_SYMMETRY_TOL = 1e-8  # of a covariance, against its largest entry
_NULL_TOL = 1e-9  # of ψ outside the range of Ω, against what the range could hold
_SIGN_TOL = 1e-10  # of a numerator that theory keeps from being negative


@dataclass(frozen=True)
class RidgeAsymptotics:
    """The deterministic equivalents of a ridge readout, tensors of the broadcast shape of ridge and n.

    Attributes:
        kappa: effective ridge κ.
        df1: Σ ω/(ω+κ).
        df2: Σ (ω/(ω+κ))².
        test: mean squared error on a fresh sample, the noise of its label included.
        excess: the same without that noise, ``test − sigma2``: the risk against the noiseless label.
        train: mean squared residual on the readout samples.
        m: overlap ψᵀRψ = E[θ̂·ψ].
        q: overlap E[θ̂ᵀΩθ̂], the power of the prediction.
        residual_factor: 1/(1+h) = 1 − df1/n, by which a training residual is smaller than a fresh one.
        inflation: 1/(1 − df2/n), the factor that finite samples put on the error.

    >>> ridge_asymptotics([1.0] * 4, [0.25] * 4, 1.0, n=8, ridge=0.0, sigma2=0.1).inflation
    tensor(2., dtype=torch.float64)
    """

    kappa: Tensor
    df1: Tensor
    df2: Tensor
    test: Tensor
    excess: Tensor
    train: Tensor
    m: Tensor
    q: Tensor
    residual_factor: Tensor
    inflation: Tensor

    @property
    def h(self) -> Tensor:
        """The leverage of a sample that is left out, h = Tr(Ω E S⁻¹); infinite where training is exact.

        >>> ridge_asymptotics([1.0] * 4, [0.25] * 4, 1.0, n=8, ridge=0.0).h
        tensor(1., dtype=torch.float64)
        """
        return 1 / self.residual_factor - 1


class SpectralData(NamedTuple):
    """What the theory needs of a covariance: ``eigenvalues`` (p,), the largest first, and ``psi2`` (p,).

    >>> SpectralData(torch.ones(2), torch.zeros(2)).psi2
    tensor([0., 0.])
    """

    eigenvalues: Tensor
    psi2: Tensor


class BiasVariance(NamedTuple):
    """Three parts of the test error: ``floor`` + ``bias`` + ``variance``.

    >>> sum(BiasVariance(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)))
    tensor(6.)
    """

    floor: Tensor
    bias: Tensor
    variance: Tensor


def ridge_asymptotics(
    eigenvalues: Any,
    psi2: Any,
    rho: Any,
    n: Any,
    ridge: Any,
    sigma2: Any = 0.0,
    *,
    rank_tol: float = RANK_TOL,
) -> RidgeAsymptotics:
    r"""Return the asymptotic errors of the ridge readout of n samples.

    .. math:: E_{\text{test}} = \frac{\rho + \sigma^2 - \psi^\top (R + \kappa R^2) \psi}{1 - \mathrm{df}_2/n},
        \qquad E_{\text{train}} = \left(1 - \frac{\mathrm{df}_1}{n}\right)^2 E_{\text{test}},
        \qquad R = (\Omega + \kappa)^{-1}

    Args:
        eigenvalues: ω of the feature covariance Ω, shape (p,).
        psi2: squared coordinates of ψ = E[φy] in the eigenbasis of Ω, summed over outputs, shape (p,).
        rho: power E y² of the noiseless labels, summed over outputs, a number.
        n: readout samples, positive, a number or an array.
        ridge: Λ of Σ(y − φ·θ)² + Λ‖θ‖², not negative, a number or an array that broadcasts with ``n``.
        sigma2: variance of the label noise, summed over outputs, a number.
        rank_tol: for Λ = 0, eigenvalues up to this share of the largest one count as zero.

    Raises:
        ValueError: an argument is negative, empty, of the wrong shape or not finite; psi2 is not zero where
            the eigenvalues are; no labels have this rho and psi2; or Λ = 0 and n is the rank, where the
            error diverges.

    Source: Schröder et al. (2024) for the test error, in this book's form; the training error is the
    generalised cross-validation identity in the limit.

    >>> result = ridge_asymptotics([1.0] * 100, [0.01] * 100, 1.0, n=[50, 100], ridge=1.0, sigma2=0.25)
    >>> result.test
    tensor([0.9820, 1.4296], dtype=torch.float64)
    """
    problem = _Problem.of(eigenvalues, psi2, rho, sigma2)
    Lam, samples = require_points(ridge, n)
    kappa = solve_effective_ridge(problem.omega, Lam, samples, rank_tol=rank_tol).kappa
    df1, df2 = degrees_of_freedom(problem.omega, kappa, rank_tol=rank_tol)
    _require_finite_error(kappa, df1, samples)
    # Both differences as sums of positive terms: nothing cancels at the interpolation peak.
    unspent = torch.where(kappa > 0, Lam / torch.where(kappa > 0, kappa, 1.0), samples - df1)  # n − df1
    R = problem.resolvent(kappa, rank_tol)
    inflation = samples / (unspent + kappa * (problem.omega * R.square()).sum(-1))
    unexplained = problem.power - (problem.psi2 * (R + kappa[..., None] * R.square())).sum(-1)
    _require_possible(unexplained, problem.power)
    test = unexplained * inflation
    factor = unspent / samples
    return RidgeAsymptotics(
        kappa=kappa,
        df1=df1,
        df2=df2,
        test=test,
        excess=test - problem.sigma2,
        train=factor.square() * test,
        m=(problem.psi2 * R).sum(-1),
        q=(problem.psi2 * problem.omega * R.square()).sum(-1) + df2 * test / samples,
        residual_factor=factor,
        inflation=inflation,
    )


def bias_variance(
    eigenvalues: Any,
    psi2: Any,
    rho: Any,
    n: Any,
    ridge: Any,
    sigma2: Any = 0.0,
    *,
    rank_tol: float = RANK_TOL,
) -> BiasVariance:
    r"""Return the three parts of the test error: what no linear readout can avoid, bias, and variance.

    .. math:: \text{floor} = \sigma^2 + \rho - \psi^\top \Omega^{-1} \psi, \quad
        \text{bias} = \frac{\kappa^2\, \theta_*^\top \Omega R^2 \theta_*}{1 - \mathrm{df}_2/n}, \quad
        \text{variance} = \text{floor}\, \frac{\mathrm{df}_2/n}{1 - \mathrm{df}_2/n}

    with the population optimum :math:`\theta_* = \Omega^{-1} \psi`; where Ω is singular, its pseudo-inverse.

    Args:
        eigenvalues: as in :func:`ridge_asymptotics`.
        psi2: as in :func:`ridge_asymptotics`.
        rho: as in :func:`ridge_asymptotics`.
        n: as in :func:`ridge_asymptotics`.
        ridge: as in :func:`ridge_asymptotics`.
        sigma2: as in :func:`ridge_asymptotics`.
        rank_tol: eigenvalues up to this share of the largest one count as zero in the pseudo-inverse.

    Returns:
        Tensors of the broadcast shape of ridge and n; their sum is the test error.

    Raises:
        ValueError: as in :func:`ridge_asymptotics`.

    >>> parts = bias_variance([1.0] * 100, [0.01] * 100, 1.0, n=200, ridge=0.0, sigma2=0.25)
    >>> [round(float(part), 6) for part in parts]
    [0.25, 0.0, 0.25]
    """
    result = ridge_asymptotics(eigenvalues, psi2, rho, n, ridge, sigma2, rank_tol=rank_tol)
    problem = _Problem.of(eigenvalues, psi2, rho, sigma2)
    live = problem.omega > rank_tol * problem.omega.max()
    omega, squares = problem.omega[live], problem.psi2[live]
    floor = problem.power - (squares / omega).sum()
    missed = (result.kappa[..., None] / (omega + result.kappa[..., None])).square()
    bias = (squares / omega * missed).sum(-1) * result.inflation
    return BiasVariance(floor.expand_as(bias), bias, floor * (result.inflation - 1))


def learning_curve(
    Omega: Any, psi: Any, rho: Any, ns: Any, ridge: Any, sigma2: Any = 0.0, *, rank_tol: float = RANK_TOL
) -> RidgeAsymptotics:
    """Return the asymptotic errors at many sample sizes, from the moments and one eigendecomposition.

    Args:
        Omega: covariance of the features, shape (p, p).
        psi: E[φy], shape (p,), or (p, K) for K outputs.
        rho: power of the noiseless labels, summed over outputs.
        ns: the sample sizes, shape (m,).
        ridge: Λ, a number or an array that broadcasts with ``ns``.
        sigma2: variance of the label noise, summed over outputs.
        rank_tol: as in :func:`ridge_asymptotics`.

    Raises:
        ValueError: as in :func:`spectral_data` and :func:`ridge_asymptotics`.

    >>> learning_curve([[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0], 3.0, ns=[4, 8], ridge=0.0, sigma2=0.1).test
    tensor([0.2000, 0.1333], dtype=torch.float64)
    """
    data = spectral_data(Omega, psi)
    return ridge_asymptotics(data.eigenvalues, data.psi2, rho, ns, ridge, sigma2, rank_tol=rank_tol)


def spectral_data(Omega: Any, psi: Any) -> SpectralData:
    """Return the eigenvalues of a covariance and the squared coordinates of E[φy] in its eigenbasis.

    Args:
        Omega: covariance of the features, symmetric and positive semidefinite, shape (p, p).
        psi: E[φy], shape (p,), or (p, K) for K outputs, over which the squares are summed.

    Returns:
        Both of shape (p,), the largest eigenvalue first; what rounding pushed below zero is zero.

    Raises:
        ValueError: Omega is not square, not symmetric or not positive semidefinite, or psi does not fit it.

    >>> data = spectral_data([[1.0, 0.0], [0.0, 4.0]], [3.0, 1.0])
    >>> data.eigenvalues, data.psi2
    (tensor([4., 1.], dtype=torch.float64), tensor([1., 9.], dtype=torch.float64))
    """
    covariance, cross = require_covariance(Omega), as_tensor(psi, "psi", DTYPE)
    p = len(covariance)
    if cross.dim() not in (1, 2) or len(cross) != p:
        raise ValueError(f"psi must have the shape ({p},) or ({p}, K), got {list(cross.shape)}")
    eigenvalues, U = torch.linalg.eigh(covariance)
    coordinates = U.mT @ cross.reshape(p, -1)
    return SpectralData(require_eigenvalues(eigenvalues).flip(0), coordinates.square().sum(1).flip(0))


def require_covariance(Omega: Any) -> Tensor:
    """Return a covariance as a symmetric float64 matrix, or say why it is none."""
    covariance = as_tensor(Omega, "Omega", DTYPE)
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1] or not len(covariance):
        raise ValueError(f"Omega must have the shape (p, p) with p ≥ 1, got {list(covariance.shape)}")
    defect = float((covariance - covariance.mT).abs().max())
    if defect > _SYMMETRY_TOL * float(covariance.abs().max()):
        raise ValueError(f"Omega must be symmetric, got entries that differ by {defect:.2g}")
    return (covariance + covariance.mT) / 2


class _Problem(NamedTuple):
    """The checked population: eigenvalues, squared coordinates, E y² with the noise, and the noise."""

    omega: Tensor
    psi2: Tensor
    power: Tensor
    sigma2: Tensor

    @classmethod
    def of(cls, eigenvalues: Any, psi2: Any, rho: Any, sigma2: Any) -> _Problem:
        omega, squares = require_eigenvalues(eigenvalues), as_tensor(psi2, "psi2", DTYPE)
        if squares.shape != omega.shape:
            raise ValueError(
                f"psi2 must have the shape of eigenvalues, {list(omega.shape)}, got {list(squares.shape)}"
            )
        require_not_negative(squares, "psi2")
        signal, noise = _number(rho, "rho"), _number(sigma2, "sigma2")
        outside = float(squares[omega == 0].sum())
        if outside > _NULL_TOL * float(omega.max() * signal):
            raise ValueError(f"psi2 must be zero where eigenvalues are, got {outside:.3g} in all there")
        return cls(omega, squares, signal + noise, noise)

    def resolvent(self, kappa: Tensor, rank_tol: float) -> Tensor:
        """The eigenvalues 1/(ω+κ) of R for each κ; at κ = 0 those of the pseudo-inverse."""
        k = kappa[..., None]
        live = (k > 0) | (self.omega > rank_tol * self.omega.max())
        return torch.where(live, 1 / torch.where(live, self.omega + k, 1.0), 0.0)


def _number(x: Any, name: str) -> Tensor:
    value = as_tensor(x, name, DTYPE)
    if value.dim():
        raise ValueError(f"{name} must be one number, got the shape {list(value.shape)}")
    require_not_negative(value, name)
    return value


def _require_finite_error(kappa: Tensor, df1: Tensor, n: Tensor) -> None:
    if bool(((kappa == 0) & (n == df1)).any()):
        rank = float(df1[kappa == 0].max())
        raise ValueError(f"ridge 0 with n equal to the rank {rank:g} has no finite error: take a ridge > 0")


def _require_possible(unexplained: Tensor, power: Tensor) -> None:
    if float(unexplained.min()) < -_SIGN_TOL * float(power):
        raise ValueError(
            "rho must be at least the power that psi2 explains, ψᵀΩ⁻¹ψ: no labels have these moments"
        )
