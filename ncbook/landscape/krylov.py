"""The lowest eigenpairs of large symmetric operators: block Lanczos with thick restarts, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from ncbook.landscape.hessian import Hessian

__all__ = ["iterates", "lowest_eigenpairs"]

_GUARD = 2  # more vectors than are asked for: they carry the neighbours of the last one
_BLOCKS = 16  # the basis holds this many blocks before it is shrunk to the best two
_SAFETY = 0.25  # the residual of the iteration must be this much below the tolerance


def iterates(k: int, size: int) -> bool:
    """Say whether three blocks fit into the space, so that a shrunk basis can grow again.

    >>> iterates(1, 9), iterates(5, 9)
    (True, False)
    """
    return 3 * (k + _GUARD) <= size


def lowest_eigenpairs(
    hessian: Hessian, k: int, tol: float, steps: int, sign: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k lowest eigenvalues (B, k) of sign · Hessian, unit eigenvectors (B, k, P), and the scale.

    Each step adds the residuals of the lowest Ritz pairs to an orthonormal basis, on which the operator is
    diagonalised again; that is block Lanczos, in a form in which a full basis can be shrunk to its best part
    at any time. A block sees an eigenvalue as often as its multiplicity. The iteration ends when all runs
    have residuals below the tolerance times the scale, the largest modulus of the Ritz values, or when the
    steps are spent; the caller looks at what was reached.

    Args:
        hessian: the operator, of P variables.
        k: the number of eigenpairs; :func:`iterates` says whether it is small enough for P.
        tol: the relative residual to reach.
        steps: the largest number of steps.
        sign: 1, or −1 for the largest eigenvalues of the Hessian.
        generator: the source of the first vectors.

    >>> from ncbook.ufm import SquaredLossUFM, UFMParams
    >>> model = SquaredLossUFM(3, 1, 2, 0.1, 0.1)
    >>> hessian = Hessian(model, UFMParams(torch.zeros(1, 3, 2), torch.zeros(1, 2, 3)))
    >>> values, _, _ = lowest_eigenpairs(hessian, 1, 1e-6, 10, 1.0, torch.Generator().manual_seed(0))
    >>> values
    tensor([[-0.2333]])
    """
    B, P = hessian.flat.shape
    width = k + _GUARD
    basis = _orthonormal(_noise((B, width, P), hessian.flat, generator))
    images = sign * hessian.block(basis)
    scale = hessian.flat.new_zeros(B)
    for _ in range(steps):
        values, mixing = torch.linalg.eigh(basis @ images.mT)
        scale = torch.maximum(scale, values.abs().amax(1))
        best = mixing[:, :, :width].mT
        vectors, residual = best @ basis, best @ images
        residual = residual - values[:, :width, None] * vectors
        norms = torch.linalg.vector_norm(residual, dim=2)
        if bool((norms[:, :k] <= _SAFETY * tol * scale[:, None]).all()) or basis.shape[1] == P:
            break
        if basis.shape[1] + width > min(P, _BLOCKS * width):
            kept = mixing[:, :, : 2 * width].mT
            basis, images = kept @ basis, kept @ images
        fresh = _against(_revive(residual, norms, generator), basis)
        basis = torch.cat([basis, fresh], 1)
        images = torch.cat([images, sign * hessian.block(fresh)], 1)
    return values[:, :k], _orthonormal(vectors[:, :k]), scale


def _noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.mT)[0].mT


def _revive(residual: Tensor, norms: Tensor, generator: torch.Generator) -> Tensor:
    """Replace residuals that have vanished by random vectors: a converged pair has no direction to offer."""
    scaled = residual / norms.clamp(min=torch.finfo(norms.dtype).tiny)[..., None]
    gone = norms <= torch.finfo(norms.dtype).eps * norms.amax(1, keepdim=True)
    noise = _noise(tuple(residual.shape), residual, generator) / residual.shape[2] ** 0.5
    return torch.where(gone[..., None], noise, scaled)


def _against(rows: Tensor, basis: Tensor) -> Tensor:
    """Make rows orthonormal, and orthogonal to the basis; once is not enough in floating point."""
    for _ in range(3):
        rows = _orthonormal(rows - (rows @ basis.mT) @ basis)
    return rows
