"""The parameters of the deep models."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["DeepUFMParams"]


class DeepUFMParams(NamedTuple):
    """The parameters of a deep unconstrained features model, B runs at once.

    >>> import torch
    >>> from ncbook.dufm import DeepUFM
    >>> model = DeepUFM(K=4, n=5, L=2, width=(8, 6), lambdas=5e-3)
    >>> params = model.init(7, torch.Generator().manual_seed(0))
    >>> [list(W.shape) for W in params.weights], list(params.H.shape)
    ([[7, 6, 8], [7, 4, 6]], [7, 8, 20])
    """

    weights: tuple[Tensor, ...]
    """W_1 of shape (B, d_2, d_1), …, W_L of shape (B, K, d_L)."""
    H: Tensor
    """The free features H_1 as columns, shape (B, d_1, N), class after class."""
    b: Tensor | None = None
    """The biases of the last layer, shape (B, K), or None in a model without bias."""
