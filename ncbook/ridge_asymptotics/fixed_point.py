r"""The effective ridge κ of ridge regression, by Newton's method in 1/κ.

.. math:: n = \frac{\Lambda}{\kappa} + \sum_i \frac{\omega_i}{\omega_i + \kappa}

The left side counts samples; the right side counts what they are spent on, the penalty Λ and the directions
of the covariance, each of which takes at most one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from ncbook.runtime import DTYPE, as_tensor

__all__ = ["RANK_TOL", "FixedPoint", "degrees_of_freedom", "effective_ridge", "solve_effective_ridge"]

Array = Tensor | np.ndarray | Sequence[Any]

RANK_TOL = 1e-12
"""Where no ridge decides, eigenvalues up to this share of the largest one count as zero."""

_NEGATIVE_TOL = 1e-10  # the most that rounding pushes an eigenvalue below zero, as a share of the largest one
_NEWTON_STEPS = 60  # far more than any problem has needed: the count is measured in the tests
_RELATIVE_STEP = 1e-9  # of a quadratically convergent method: the step after it is below rounding
_ROUNDING = 4 * torch.finfo(DTYPE).eps
_BLOCK = 2_000_000  # numbers in one array of points by eigenvalues: 16 MB


class FixedPoint(NamedTuple):
    """The effective ridge and what it cost: ``kappa`` of the broadcast shape, Newton ``steps`` in all.

    >>> solve_effective_ridge([1.0, 1.0], 1.0, 2).steps <= 3
    True
    """

    kappa: Tensor
    steps: int


@overload
def effective_ridge(eigenvalues: Array, ridge: float, n: float, *, rank_tol: float = RANK_TOL) -> float: ...
@overload
def effective_ridge(
    eigenvalues: Array, ridge: Array, n: float | Array, *, rank_tol: float = RANK_TOL
) -> Tensor: ...
@overload
def effective_ridge(eigenvalues: Array, ridge: float, n: Array, *, rank_tol: float = RANK_TOL) -> Tensor: ...
def effective_ridge(eigenvalues: Any, ridge: Any, n: Any, *, rank_tol: float = RANK_TOL) -> float | Tensor:
    r"""Return the effective ridge κ, the positive solution of the fixed-point equation.

    .. math:: n = \frac{\Lambda}{\kappa} + \sum_i \frac{\omega_i}{\omega_i + \kappa}

    Without a ridge, κ is the limit for Λ → 0: the solution of the same equation where n is less than the
    rank, and zero from there on.

    Args:
        eigenvalues: ω of the feature covariance, not negative up to rounding, shape (p,).
        ridge: Λ of the objective Σ(y − φ·θ)² + Λ‖θ‖², not negative, a number or an array.
        n: readout samples, positive, a number or an array that broadcasts with ``ridge``.
        rank_tol: for Λ = 0, eigenvalues up to this share of the largest one count as zero.

    Returns:
        A float for two numbers, otherwise a float64 tensor of the broadcast shape.

    Raises:
        ValueError: an argument is negative, empty, of the wrong shape or not finite.

    Source: Schröder et al. (2024) in the form of this book.

    >>> round(effective_ridge([1.0] * 100, 1.0, 50), 9)
    1.039244745
    """
    kappa = solve_effective_ridge(eigenvalues, ridge, n, rank_tol=rank_tol).kappa
    plain = all(isinstance(x, (int, float, np.integer, np.floating)) for x in (ridge, n))
    return float(kappa) if plain else kappa


def solve_effective_ridge(eigenvalues: Any, ridge: Any, n: Any, *, rank_tol: float = RANK_TOL) -> FixedPoint:
    r"""Return the effective ridge with the number of Newton steps that it took.

    In u = 1/κ the equation is F(u) = 0 with

    .. math:: F(u) = \Lambda u + \sum_i \frac{\omega_i u}{1 + \omega_i u} - n ,

    increasing and concave: from a start with F ≤ 0 the tangents cut the axis left of the root, and Newton's
    method climbs to it without a safeguard. The start is the largest root of r simpler equations, in which
    the j largest eigenvalues are infinite and the others equal to their mean; by concavity none of them lies
    beyond the root.

    Args:
        eigenvalues: as in :func:`effective_ridge`.
        ridge: as in :func:`effective_ridge`.
        n: as in :func:`effective_ridge`.
        rank_tol: as in :func:`effective_ridge`.

    Raises:
        ValueError: as in :func:`effective_ridge`.
        ArithmeticError: Newton's method has not converged, for example because Λ is so close to the smallest
            float that 1/κ overflows.

    >>> solve_effective_ridge([2.0, 1.0], [0.0, 1.0], 3).kappa
    tensor([0.0000, 0.6180], dtype=torch.float64)
    """
    omega = require_eigenvalues(eigenvalues)
    Lam, samples = require_points(ridge, n)
    shape = Lam.shape
    Lam, samples = Lam.flatten(), samples.flatten()
    kappa = torch.empty_like(Lam)
    steps = 0
    for free in (False, True):  # the eigenvalues that count differ without a ridge
        chosen = torch.nonzero((Lam == 0) == free).squeeze(1)
        spectrum = _positive(omega, rank_tol if free else 0.0)
        for block in chosen.split(max(1, _BLOCK // max(1, len(spectrum)))):
            kappa[block], taken = _solve(spectrum, Lam[block], samples[block])
            steps = max(steps, taken)
    return FixedPoint(kappa.reshape(shape), steps)


def degrees_of_freedom(eigenvalues: Any, kappa: Any, *, rank_tol: float = RANK_TOL) -> tuple[Tensor, Tensor]:
    r"""Return the two degrees of freedom of ridge regression at the effective ridge κ.

    .. math:: \mathrm{df}_1 = \sum_i \frac{\omega_i}{\omega_i + \kappa}, \qquad
        \mathrm{df}_2 = \sum_i \left(\frac{\omega_i}{\omega_i + \kappa}\right)^2

    Args:
        eigenvalues: ω of the feature covariance, shape (p,).
        kappa: the effective ridge, not negative, any shape. At zero both are the rank.
        rank_tol: for κ = 0, eigenvalues up to this share of the largest one count as zero.

    Returns:
        Two float64 tensors of the shape of ``kappa``.

    Raises:
        ValueError: an argument is negative, empty, of the wrong shape or not finite.

    >>> degrees_of_freedom([3.0, 1.0], 1.0)
    (tensor(1.2500, dtype=torch.float64), tensor(0.8125, dtype=torch.float64))
    """
    omega = require_eigenvalues(eigenvalues)
    k = as_tensor(kappa, "kappa", DTYPE)
    require_not_negative(k, "kappa")
    share = omega / (omega + torch.where(k == 0, 1.0, k)[..., None])
    share = torch.where((k == 0)[..., None], (omega > rank_tol * omega.max()).to(DTYPE), share)
    return share.sum(-1), share.square().sum(-1)


def require_eigenvalues(eigenvalues: Any) -> Tensor:
    """Return the eigenvalues as a float64 row; what rounding has pushed below zero is zero."""
    omega = as_tensor(eigenvalues, "eigenvalues", DTYPE)
    if omega.dim() != 1 or not len(omega):
        raise ValueError(f"eigenvalues must have the shape (p,) with p ≥ 1, got {list(omega.shape)}")
    largest, least = float(omega.max()), float(omega.min())
    if least < -_NEGATIVE_TOL * max(largest, 0.0):
        raise ValueError(f"eigenvalues must not be negative, got {least}")
    return omega.clamp(min=0.0)


def require_points(ridge: Any, n: Any) -> tuple[Tensor, Tensor]:
    """Return ridge and sample size as float64 tensors of their common shape."""
    Lam, samples = as_tensor(ridge, "ridge", DTYPE), as_tensor(n, "n", DTYPE)
    require_not_negative(Lam, "ridge")
    if samples.numel() and float(samples.min()) <= 0:
        raise ValueError(f"n must be positive, got {float(samples.min())}")
    try:
        Lam, samples = torch.broadcast_tensors(Lam, samples)
    except RuntimeError:
        raise ValueError(
            f"ridge and n must broadcast, got the shapes {list(Lam.shape)} and {list(samples.shape)}"
        ) from None
    if not Lam.numel():
        raise ValueError("ridge and n must hold at least one number, got none")
    return Lam, samples


def require_not_negative(x: Tensor, name: str) -> None:
    """Raise the ValueError of a number that must not be negative."""
    if x.numel() and float(x.min()) < 0:
        raise ValueError(f"{name} must not be negative, got {float(x.min())}")


def _positive(omega: Tensor, tol: float) -> Tensor:
    """The eigenvalues above a share of the largest one, from the largest to the smallest."""
    return omega[omega > tol * omega.max()].sort(descending=True).values


def _solve(omega: Tensor, Lam: Tensor, n: Tensor) -> tuple[Tensor, int]:
    """The effective ridge of each point (m,) for positive, sorted eigenvalues (r,), and the steps taken."""
    rank = len(omega)
    closed = (Lam == 0) & (n >= rank)  # κ = 0
    if not rank:
        return torch.where(closed, torch.zeros_like(n), Lam / n), 0
    kappa = torch.zeros_like(Lam)
    open_points = torch.nonzero(~closed).squeeze(1)
    if not len(open_points):
        return kappa, 0
    Lam, n = Lam[open_points], n[open_points]
    u = _start(omega, Lam, n)
    for step in range(1, _NEWTON_STEPS + 1):
        value, slope, noise = _newton_terms(omega, Lam, n, u)
        change = -value / slope
        u = u + change
        if bool(((value >= -noise) | (change <= _RELATIVE_STEP * u)).all()):
            kappa[open_points] = 1 / u
            return kappa, step
    raise ArithmeticError(f"Newton's method for the effective ridge took more than {_NEWTON_STEPS} steps")


def _newton_terms(omega: Tensor, Lam: Tensor, n: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F(u), F'(u), and what rounding may leave of F. From n > r/2 on, r − Σ 1/(1+ωu) stands for the sum:
    near n = r, where 1/κ is large, nothing of the size of n has to cancel then."""
    rank = len(omega)
    left = 1 / (1 + omega * u[:, None])  # the share of each direction that is not spent
    spent, unspent = (omega * (u[:, None] * left)).sum(-1), left.sum(-1)
    complement = 2 * n > rank
    fit = torch.where(complement, (rank - n) - unspent, spent - n)
    size = torch.where(complement, (rank - n).abs() + unspent, spent + n) + Lam * u
    return Lam * u + fit, Lam + (omega * left.square()).sum(-1), _ROUNDING * size


def _start(omega: Tensor, Lam: Tensor, n: Tensor) -> Tensor:
    """The largest of the lower bounds of 1/κ that the isotropic problem gives, j directions set aside.

    By Jensen's inequality df1 ≤ j + (r−j) a u/(1+a u) with a the mean of the r−j smallest eigenvalues, so
    the root of Λu + (r−j) a u/(1+a u) = n−j, a quadratic equation, does not exceed the root wanted.
    """
    rank = len(omega)
    aside = torch.arange(rank, dtype=DTYPE, device=omega.device)
    mean = omega.flip(0).cumsum(0).flip(0) / (rank - aside)
    left, Lam = n[:, None] - aside, Lam[:, None]
    linear = Lam + mean * (rank - n[:, None])
    root = (linear.square() + 4 * mean * Lam * left.clamp(min=0)).sqrt()
    rising = 2 * left / (linear + root)
    falling = (root - linear) / (2 * mean * Lam)
    bound = torch.where(linear >= 0, rising, falling)
    return torch.where(left > 0, bound, 0.0).max(-1).values
