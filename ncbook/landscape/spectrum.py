"""Eigenvalues of the Hessian: all of them where the variables are few, extreme ones where they are many."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ncbook import runtime
from ncbook.landscape.hessian import Hessian
from ncbook.landscape.krylov import iterates, lowest_eigenpairs
from ncbook.protocol import Problem, require_count

__all__ = [
    "EigenvalueNotConverged",
    "ModeCount",
    "count_modes",
    "hessian_spectrum",
    "minimum_hessian_eigenvalue",
]

DENSE_SIZE = 800
"""Up to this number of variables the whole Hessian is formed: exact, and a fraction of a second."""


class EigenvalueNotConverged(ArithmeticError):
    """Raised where an eigenvalue was not found to the accuracy asked for; the message gives the residuals.

    >>> issubclass(EigenvalueNotConverged, ArithmeticError)
    True
    """


class ModeCount(NamedTuple):
    """How many eigenvalues of each run are negative, zero and positive, and how clear the count is.

    >>> count_modes(torch.tensor([[-2.0, 1e-12, 3.0]]), 1e-9).zero
    tensor([1])
    """

    negative: Tensor
    """The eigenvalues below −tol (the Morse index of a critical point), shape (B,)."""
    zero: Tensor
    """The eigenvalues of modulus at most tol, shape (B,)."""
    positive: Tensor
    """The eigenvalues above tol, shape (B,)."""
    largest_zero: Tensor
    """The largest modulus that was counted as zero, 0 where there is none, shape (B,)."""
    smallest_other: Tensor
    """The smallest modulus that was not, infinity where there is none, shape (B,)."""


def minimum_hessian_eigenvalue(
    problem: Problem,
    params: Any,
    *,
    tol: float | None = None,
    steps: int = 2_000,
    dense_size: int = DENSE_SIZE,
    seed: int = 0,
) -> tuple[Tensor, Any]:
    r"""Return the smallest eigenvalue of the Hessian of every run, and a unit eigenvector.

    Up to ``dense_size`` variables the Hessian is formed and diagonalised. Beyond, it is seen through its
    products with vectors alone (thick-restarted block Lanczos). In both cases the residual
    :math:`\|\nabla^2 f\, v - \mu v\|`, which bounds the distance of μ from an eigenvalue, is computed at the
    end, and one above the tolerance raises.

    Args:
        problem: a problem.
        params: its parameters, B runs.
        tol: the residual to reach, relative to the largest modulus of the eigenvalues seen; None means
            1e-8, or 1e-4 in float32.
        steps: the largest number of steps of the iteration.
        dense_size: the largest number of variables for which the Hessian is formed.
        seed: of the vectors that the iteration starts from.

    Returns:
        The eigenvalues, shape (B,), and the eigenvectors as parameters of norm one.

    Raises:
        EigenvalueNotConverged: a residual is above the tolerance.
        ValueError: the parameters are not finite, or the problem has no second derivatives.

    >>> from ncbook.ufm import SquaredLossUFM, UFMParams
    >>> model = SquaredLossUFM(4, 5, 8, 5e-3, 5e-3)
    >>> origin = UFMParams(torch.zeros(1, 4, 8), torch.zeros(1, 8, 20))
    >>> value, direction = minimum_hessian_eigenvalue(model, origin)
    >>> round(value.item(), 6)  # λ − 1/(K√n)
    -0.106803
    """
    hessian = Hessian(problem, params)
    values, vectors = _lowest(hessian, 1, tol, steps, dense_size, seed, largest=False)
    return values[:, 0], hessian.layout.params(vectors[:, 0])


def hessian_spectrum(
    problem: Problem,
    params: Any,
    k: int | None = None,
    *,
    which: Literal["smallest", "largest"] = "smallest",
    tol: float | None = None,
    steps: int = 2_000,
    dense_size: int = DENSE_SIZE,
    seed: int = 0,
) -> Tensor:
    """Return eigenvalues of the Hessian of every run, ascending, with their multiplicities.

    Args:
        problem: a problem.
        params: its parameters, B runs of P variables.
        k: the number of eigenvalues; None asks for all P, for which the Hessian is formed whatever its size.
        which: the end of the spectrum that is meant by ``k``.
        tol: the residual to reach, relative to the largest modulus of the eigenvalues seen; None means
            1e-8, or 1e-4 in float32.
        steps: the largest number of steps of the iteration.
        dense_size: the largest number of variables for which the Hessian is formed where k is given.
        seed: of the vectors that the iteration starts from.

    Returns:
        The eigenvalues, shape (B, k), or (B, P).

    Raises:
        EigenvalueNotConverged: a residual is above the tolerance.
        ValueError: k is not among 1, …, P, or the parameters are not finite.

    >>> from ncbook.ufm import SquaredLossUFM, UFMParams
    >>> model = SquaredLossUFM(2, 1, 1, 0.1, 0.1)
    >>> hessian_spectrum(model, UFMParams(torch.zeros(1, 2, 1), torch.zeros(1, 1, 2)))
    tensor([[-0.4000, -0.4000,  0.6000,  0.6000]])
    """
    hessian = Hessian(problem, params)
    if which not in ("smallest", "largest"):
        raise ValueError(f"which must be 'smallest' or 'largest', got {which!r}")
    if k is None:
        runs = range(len(hessian.flat))
        return torch.stack([torch.linalg.eigvalsh(hessian.dense(run)) for run in runs])
    if require_count(k, "k") > hessian.size:
        raise ValueError(f"k must be at most the number of variables, {hessian.size}, got {k}")
    largest = which == "largest"
    values = _lowest(hessian, k, tol, steps, dense_size, seed, largest=largest)[0]
    return -values.flip(1) if largest else values


def count_modes(spectrum: Any, tol: float) -> ModeCount:
    """Count the negative, zero and positive eigenvalues of every run.

    A count of zeros is only as good as the gap around the tolerance: the result tells how far the nearest
    eigenvalues on both sides lie from it.

    Args:
        spectrum: eigenvalues, shape (B, P) or (P,) for a single run.
        tol: eigenvalues of at most this modulus count as zero, positive.

    Raises:
        ValueError: the tolerance is not positive, or the eigenvalues are no finite (B, P) array.

    >>> count = count_modes([-2.0, 1e-12, 3.0], 1e-9)
    >>> count.negative, count.positive, count.smallest_other
    (tensor([1]), tensor([1]), tensor([2.], dtype=torch.float64))
    """
    values = runtime.as_tensor(spectrum, "spectrum")
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.numel() == 0 or not values.is_floating_point():
        raise ValueError(f"spectrum must be (B, P) eigenvalues, got {values.dtype} of {list(values.shape)}")
    if not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol must be a positive number, got {tol!r}")
    modulus = values.abs()
    zero = modulus <= tol
    return ModeCount(
        (values < -tol).sum(1),
        zero.sum(1),
        (values > tol).sum(1),
        torch.where(zero, modulus, 0.0).amax(1),
        torch.where(zero, math.inf, modulus).amin(1),
    )


def _lowest(
    hessian: Hessian, k: int, tol: float | None, steps: int, dense_size: int, seed: int, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """The k lowest eigenpairs of the Hessians (of their negatives, if the largest are wanted), checked."""
    dtype = hessian.flat.dtype
    if tol is None:
        tol = 1e-8 if dtype == torch.float64 else 1e-4
    if not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol must be a positive number, got {tol!r}")
    require_count(steps, "steps")
    require_count(dense_size, "dense_size", 0)
    sign = -1.0 if largest else 1.0
    if hessian.size <= dense_size or not iterates(k, hessian.size):
        values, vectors, scale = _lowest_dense(hessian, k, sign)
    else:
        generator = runtime.generator(seed)
        values, vectors, scale = lowest_eigenpairs(hessian, k, tol, steps, sign, generator)
    products = sign * hessian.block(vectors)
    residual = torch.linalg.vector_norm(products - values[..., None] * vectors, dim=2).amax(1)
    bad = torch.nonzero(~(residual <= tol * scale)).flatten().tolist()
    if bad:
        raise EigenvalueNotConverged(
            f"the eigenvalues of runs {bad} have residuals up to {residual[bad].max().item():.1e}, above tol "
            f"= {tol:.1e} times {scale[bad].max().item():.1e}: allow more steps than {steps}, or a larger tol"
        )
    return values, vectors


def _lowest_dense(hessian: Hessian, k: int, sign: float) -> tuple[Tensor, Tensor, Tensor]:
    pairs = [torch.linalg.eigh(sign * hessian.dense(run)) for run in range(len(hessian.flat))]
    values, vectors = (torch.stack(x) for x in zip(*pairs, strict=True))
    scale = values.abs().amax(1)
    return values[:, :k], vectors[:, :, :k].mT.contiguous(), scale
