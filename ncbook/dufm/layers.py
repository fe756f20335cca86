"""Deep collapse, level by level: the metrics DNC1 to DNC3, ranks and Gram matrices of a batch of runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ncbook.dufm.deep import DeepUFM
from ncbook.dufm.params import DeepUFMParams
from ncbook.protocol import over_runs
from ncbook.runtime import as_tensor

__all__ = ["DeepLayers", "deep_layers"]


class DeepLayers(NamedTuple):
    """What each level of a deep model looks like, for each of B runs.

    *Before* runs over the L + 1 matrices H_1, …, H_L and Z, none of them activated; *after* over the L inputs
    of the weight matrices, H_1 and the activated H_2, …, H_L. All Gram matrices, ranks and singular values
    are those of the class means, not centred.

    >>> from ncbook.dufm import DeepUFM
    >>> model = DeepUFM(K=3, n=2, L=3, width=5, lambdas=2e-3)
    >>> layers = deep_layers(model, model.collapse().params)
    >>> layers.ranks_after.tolist(), bool(layers.dnc1_before.max() < 1e-20)
    ([[3, 3, 3]], True)
    """

    dnc1_before: Tensor
    """tr Σ_W / tr Σ_B of each level, shape (B, L + 1); NaN where all class means are equal."""
    dnc1_after: Tensor
    """The same after the activation, shape (B, L)."""
    dnc2_before: Tensor
    """Distance of the Gram matrix of the class means, of norm 1, from I/√K, shape (B, L + 1)."""
    dnc2_after: Tensor
    """The same after the activation, shape (B, L)."""
    dnc3_span: Tensor
    """The share of each W_ℓ (in Frobenius norm) outside the span of the class means below it, (B, L)."""
    dnc3: Tensor
    """1 − the mean cosine between row k of W_L and the mean of class k below it, shape (B,)."""
    grams_before: Tensor
    """The Gram matrices of the class means, shape (B, L + 1, K, K)."""
    grams_after: Tensor
    """The same after the activation, shape (B, L, K, K)."""
    singular_before: Tensor
    """The K singular values of the class means, largest first, shape (B, L + 1, K)."""
    singular_after: Tensor
    """The same after the activation, shape (B, L, K)."""
    ranks_before: Tensor
    """How many of them are above rank_tol times the largest, shape (B, L + 1)."""
    ranks_after: Tensor
    """The same after the activation, shape (B, L)."""
    ranks_weights: Tensor
    """The ranks of W_1, …, W_L at the same tolerance, shape (B, L)."""
    penalties: Tensor
    """λ‖·‖² of W_1, …, W_L and H_1, shape (B, L + 1): equal at every stationary point."""


def deep_layers(model: DeepUFM, params: DeepUFMParams, rank_tol: float = 1e-2) -> DeepLayers:
    r"""Measure deep collapse at every level of every run.

    With the class means :math:`\bar H_\ell`, uncentred,

    - DNC1: :math:`\operatorname{tr} \Sigma_W / \operatorname{tr} \Sigma_B`;
    - DNC2: :math:`\| \bar H_\ell^\top \bar H_\ell / \| \cdot \|_F - I/\sqrt K \|_F`;
    - DNC3: :math:`\|W_\ell (I - P_\ell)\|_F / \|W_\ell\|_F` with the projector on the columns of
      :math:`\sigma(\bar H_\ell)` that the rank counts, and for W_L the cosines of its rows.

    Under DNC1 the mean of the activated features is the activated mean; in general it is the former that is
    measured after the activation.

    Args:
        model: the model; its ``relu`` says what the activation is.
        params: the parameters of B runs.
        rank_tol: a singular value counts for the rank if it is above this share of the largest.

    Raises:
        ValueError: ``params`` are not those of the model or not finite, or ``rank_tol`` is outside of (0, 1).

    Source: Súkeník et al. (2023, 2024) for the three properties; the spans of DNC3: this book.

    >>> from ncbook.dufm import DeepUFM
    >>> from ncbook.solvers import minimise
    >>> model = DeepUFM(K=2, n=3, L=3, width=6, lambdas=5e-3)
    >>> found = minimise(model, batch=8)
    >>> best = found.loss.argmin()
    >>> deep_layers(model, found.params).ranks_after[best].tolist()
    [2, 2, 2]
    """
    rank_tol = float(as_tensor(rank_tol, "rank_tol"))
    if not 0 < rank_tol < 1:
        raise ValueError(f"rank_tol must lie between 0 and 1, got {rank_tol}")
    for i, W in enumerate(params.weights):
        as_tensor(W, f"params.weights[{i}]")
    as_tensor(params.H, "params.H")
    logits = model._forward(params)[1]  # refuses parameters that are not the model's
    before, after = [params.H], [params.H]
    for W in params.weights[:-1]:
        before.append(torch.bmm(W, after[-1]))
        after.append(before[-1].relu() if model.relu else before[-1])
    before.append(logits)
    measured_before = [_level(X, model.sizes, rank_tol) for X in before]
    measured_after = [_level(X, model.sizes, rank_tol) for X in after]
    weights_rank = [_rank(torch.linalg.svdvals(W), rank_tol) for W in params.weights]
    outside = [
        _outside(W, means, rank_tol) for W, (means, _) in zip(params.weights, measured_after, strict=True)
    ]
    rows, columns = params.weights[-1], measured_after[-1][0].mT
    cosines = torch.nn.functional.cosine_similarity(rows, columns, dim=-1)
    squares = [
        over_runs(decay, x[:, 0, 0]) * x.square().sum((1, 2))
        for x, decay in zip((*params.weights, params.H), model.decays, strict=True)
    ]

    below, above = _stacked(measured_before), _stacked(measured_after)
    return DeepLayers(
        dnc1_before=below.ratio,
        dnc1_after=above.ratio,
        dnc2_before=below.distance,
        dnc2_after=above.distance,
        dnc3_span=torch.stack(outside, 1),
        dnc3=1 - cosines.mean(-1),
        grams_before=below.gram,
        grams_after=above.gram,
        singular_before=below.singular,
        singular_after=above.singular,
        ranks_before=below.rank,
        ranks_after=above.rank,
        ranks_weights=torch.stack(weights_rank, 1),
        penalties=torch.stack(squares, 1),
    )


class _Measured(NamedTuple):
    ratio: Tensor
    distance: Tensor
    gram: Tensor
    singular: Tensor
    rank: Tensor


def _stacked(levels: list[tuple[Tensor, _Measured]]) -> _Measured:
    return _Measured(*(torch.stack(column, 1) for column in zip(*(x for _, x in levels), strict=True)))


def _level(X: Tensor, sizes: tuple[int, ...], rank_tol: float) -> tuple[Tensor, _Measured]:
    """The class means of a level, and what is measured on it."""
    K, counts = len(sizes), torch.tensor(sizes, device=X.device)
    labels = torch.arange(K, device=X.device).repeat_interleave(counts)
    averages = torch.nn.functional.one_hot(labels, K).to(X) / counts.to(X)
    means = X @ averages
    within = (X - means[:, :, labels]).square().sum((1, 2)) / len(labels)
    between = (means - means.mean(-1, keepdim=True)).square().sum((1, 2)) / K
    gram = means.mT @ means
    frame = torch.eye(K, dtype=X.dtype, device=X.device) / K**0.5
    distance = (gram / gram.norm(dim=(1, 2), keepdim=True) - frame).norm(dim=(1, 2))
    values = torch.linalg.svdvals(means)
    values = pad(values, (0, K - values.shape[-1]))
    return means, _Measured(within / between, distance, gram, values, _rank(values, rank_tol))


def _rank(values: Tensor, rank_tol: float) -> Tensor:
    return ((values > rank_tol * values[..., :1]) & (values > 0)).sum(-1)


def _outside(W: Tensor, means: Tensor, rank_tol: float) -> Tensor:
    """‖W(I − P)‖/‖W‖ with the projector P on the columns of the means."""
    U, values, _ = torch.linalg.svd(means, full_matrices=False)
    U = U * (values > rank_tol * values[:, :1]).to(U)[:, None, :]
    return (W - (W @ U) @ U.mT).norm(dim=(1, 2)) / W.norm(dim=(1, 2))
