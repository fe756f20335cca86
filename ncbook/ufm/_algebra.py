"""The few batched products that the gradients of all models are made of."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ncbook.protocol import RunNumber, over_runs


@lru_cache(maxsize=32)
def labels(K: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The one-hot labels I_K ⊗ 1_nᵀ, shape (K, N); kept, because every step of a solver needs them."""
    return torch.eye(K, dtype=dtype, device=device).repeat_interleave(n, dim=1)


@lru_cache(maxsize=32)
def class_labels(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The one-hot labels of classes of any sizes, shape (K, N), kept like :func:`labels`."""
    counts = torch.tensor(sizes, device=device)
    return torch.eye(len(sizes), dtype=dtype, device=device).repeat_interleave(counts, dim=1)


def square_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1)).square()


def decayed(x: Tensor, decay: RunNumber, left: Tensor, right: Tensor, weight: float) -> Tensor:
    """decay · x + weight · left @ right, in one pass where the decay is shared by all runs."""
    if isinstance(decay, Tensor):
        return torch.baddbmm(over_runs(decay, x) * x, left, right, alpha=weight)
    return torch.baddbmm(x, left, right, beta=decay, alpha=weight)


def add_product(into: Tensor, keep: RunNumber, left: Tensor, right: Tensor, weight: float) -> None:
    """Overwrite ``into`` by keep · into + weight · left @ right."""
    if isinstance(keep, Tensor):
        into.mul_(keep).baddbmm_(left, right, alpha=weight)
    else:
        into.baddbmm_(left, right, beta=keep, alpha=weight)


def add_multiple(into: Tensor, x: Tensor, weight: RunNumber) -> None:
    """Add weight · x."""
    if isinstance(weight, Tensor):
        into.addcmul_(x, weight)
    else:
        into.add_(x, alpha=weight)
