r"""The low-rank solutions of the deep linear model with cross-entropy that are made of blocks of classes.

The classes are divided into blocks of s classes each. A block is a small collapse of its own: its logits are
m(I − J/s) among its classes and zero elsewhere. A single block of all classes is the collapse; blocks of two
are the pairs, of half its rank. Blocks do not disturb each other, so that each is one scalar problem,

.. math:: \psi_s(m; q) = \log\bigl(1 + (s-1) e^{-m} + (K-s) e^{-c m}\bigr) + \alpha c m
    + \frac{L+1}{2}\, c\, q\, m^{2/(L+1)}, \qquad c = \frac{s-1}{s}

with the effective decay :math:`q = K (n \lambda_H \prod_\ell \lambda_\ell)^{1/(L+1)}`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncbook.dufm.closed_forms import Collapse, _centred_basis, _Modes, _params, _root
from ncbook.protocol import NoClosedForm, require_count
from ncbook.runtime import DTYPE, as_tensor

if TYPE_CHECKING:
    from ncbook.dufm.deep import DeepUFM

__all__ = ["block_margin", "block_phi", "pair_solution"]

_SMALLEST, _LARGEST = 1e-6, 1600.0  # exp(−m/2) is zero from the second on
_GRID = 1200  # neighbours differ by less than two per cent
_HALVINGS = 60  # of an interval of four per cent: to the last digit


def block_phi(m: Any, q: Any, K: int, s: int, L: int, smoothing: Any = 0.0) -> Tensor:
    r"""Return ψ_s(m; q), what a sample of a block of s classes contributes; log K at m = 0 for every q.

    With s = K it is :func:`ncbook.dufm.margin.margin_phi`. A division of the classes into blocks of the sizes
    s_1, s_2, … has the objective :math:`\sum_b (s_b/K)\, \psi_{s_b}(m_b; q)`.

    Args:
        m: the margin inside of the block, not negative, any shape.
        q: the effective decay, not negative, of a shape that broadcasts with m.
        K: the number of all classes, at least 2.
        s: the classes of the block, 2 ≤ s ≤ K.
        L: the number of weight matrices, at least 1.
        smoothing: the label smoothing α in [0, 1], of a shape that broadcasts with m.

    Raises:
        ValueError: an argument is out of its range, or not finite.

    Source: Garrod and Keating (2025) for s = 2 and s = K; blocks of any size: this book.

    >>> block_phi([0.0, 10.0], 0.02, K=4, s=2, L=2)
    tensor([1.3863, 0.0831], dtype=torch.float64)
    """
    K, s, L, alpha = _counts(K, s, L, smoothing)
    m, q = _not_negative(m, "m"), _not_negative(q, "q")
    c = (s - 1) / s
    fit = torch.log1p((s - 1) * torch.exp(-m) + (K - s) * torch.exp(-c * m)) + alpha * c * m
    return fit + (L + 1) / 2 * c * q * m ** (2 / (L + 1))


def block_margin(q: Any, K: int, s: int, L: int, smoothing: Any = 0.0) -> Tensor:
    r"""Return the global minimiser m of ψ_s: 0 where zero is at least as good as any positive margin.

    A positive critical point solves

    .. math:: m^{(L-1)/(L+1)} \left(\frac{s e^{-m} + (K-s) e^{-c m}}{1 + (s-1) e^{-m} + (K-s) e^{-c m}}
        - \alpha\right) = q

    The best point of a fine grid is found first, then the root next to it by bisection.

    Args:
        q: the effective decay, positive, any shape.
        K: the number of all classes, at least 2.
        s: the classes of the block, 2 ≤ s ≤ K.
        L: the number of weight matrices, at least 1.
        smoothing: the label smoothing α in [0, 1], of a shape that broadcasts with q.

    Returns:
        A float64 tensor of the common shape of q and α. Margins below 1e-6 count as 0.

    Raises:
        ValueError: an argument is out of its range, or not finite.

    Source: this book.

    >>> block_margin([0.01, 0.1, 2.0], K=4, s=2, L=2)
    tensor([12.2634,  7.2608,  0.0000], dtype=torch.float64)
    """
    K, s, L, alpha = _counts(K, s, L, smoothing)
    q = as_tensor(q, "q", DTYPE)
    if bool((q <= 0).any()):
        raise ValueError(f"q must be positive, got {q.min().item()}")
    q, alpha = torch.broadcast_tensors(q, alpha.to(q.device))
    ratio = math.log(_LARGEST / _SMALLEST) / (_GRID - 1)
    grid = _SMALLEST * torch.exp(ratio * torch.arange(_GRID, dtype=DTYPE, device=q.device))
    best = block_phi(grid, q[..., None], K, s, L, alpha[..., None]).argmin(-1)
    low, high = (grid[(best + step).clamp(0, _GRID - 1)] for step in (-1, 1))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _decay(middle, K, s, L, alpha) > q
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    root = (low + high) / 2
    better = block_phi(root, q, K, s, L, alpha) < block_phi(0.0, q, K, s, L, alpha)
    return torch.where(better & (root > 2 * _SMALLEST), root, 0.0)


def pair_solution(model: DeepUFM) -> Collapse:
    r"""Return the pair solution with the best scale, as explicit weights.

    For even K the classes 1 and 2, 3 and 4, … are opposite, and orthogonal to all others:

    .. math:: Z = b\, \operatorname{diag}\left(\begin{pmatrix} 1 & -1 \\ -1 & 1 \end{pmatrix}, \dots\right)
        \otimes 1^\top, \qquad
        f = \log\bigl(1 + (K-2) e^{-b} + e^{-2b}\bigr) + \alpha b + \frac{L+1}{4}\, q\, (2b)^{2/(L+1)}

    of rank K/2, where collapse has rank K − 1. For odd K ≥ 5 the last three classes are a triangle,
    :math:`m (I - J/3)`, with a scale of its own: the rank is (K+1)/2. It is a critical point for every L; for
    L ≥ 2 and enough classes it is below the collapse. It is an upper bound of the minimum, not the minimum:
    deep models have polygons that are lower, and for odd K it is a saddle as a rule (K = 5, 7, 9 with
    L = 2, 3, 4 at the decay 1e-3; not so K = 5, L = 2 at 0.02 and 0.05).

    Args:
        model: with cross-entropy, linear layers (or L = 1) and equal classes; for odd K without bias.

    Returns:
        The type of the collapse. ``scale`` is b for even K, (b, m) on a last axis for odd K.

    Raises:
        NoClosedForm: the model is not of that kind, K is 1 or 3, a width is below the rank or a lambda is 0.

    Source: Garrod and Keating (2025), even K; odd K: this book.

    >>> from ncbook.dufm import DeepUFM
    >>> model = DeepUFM(K=10, n=5, L=2, width=12, lambdas=2**-10, relu=False, loss="ce")
    >>> found = pair_solution(model)
    >>> found.ranks.tolist(), bool(found.loss < model.collapse().loss)
    ([5, 5, 5], True)
    >>> bool((model.value(found.params) - found.loss).abs() < 1e-12)
    True
    """
    _require_kind(model)
    K, L, n = model.K, model.L, model.sizes[0]
    blocks = [2] * (K // 2) if K % 2 == 0 else [2] * (K // 2 - 1) + [3]
    root = _root(model)
    q, alpha = torch.broadcast_tensors(
        K * n ** (1 / (L + 1)) * root, torch.as_tensor(model.smoothing, dtype=DTYPE).to(root.device)
    )
    margins = {s: block_margin(q, K, s, L, alpha) for s in set(blocks)}
    parts = [s / K * block_phi(margins[s], q, K, s, L, alpha) for s in blocks]
    loss = torch.stack(parts).sum(0)
    t = torch.stack([margins[s] for s in blocks for _ in range(s - 1)], -1)
    fitted = torch.arange(t.shape[-1], device=t.device)
    size = torch.tensor([n**0.5], dtype=DTYPE, device=t.device)
    modes = _Modes(_block_basis(blocks).to(t), size, size, q, t, fitted, root.expand_as(q))
    bias = None if model.decay_b is None else torch.zeros_like(q)
    alive = (t > 0).sum(-1)
    ranks = alive[..., None].expand(*alive.shape, L + 1).clone()
    scale = margins[2] / 2 if K % 2 == 0 else torch.stack([margins[2] / 2, margins[3]], -1)
    return Collapse(loss, scale, _params(model, modes, bias), ranks, alive == 0, q)


def _require_kind(model: DeepUFM) -> None:
    K = model.K
    if model.loss != "ce":
        raise NoClosedForm("the pair solution is one of cross-entropy, the model has the squared loss")
    if model.relu and model.L > 1:
        raise NoClosedForm("the pair solution is one of linear layers, the model has ReLU")
    if model.counts is not None:
        raise NoClosedForm("the pair solution is one of equal classes")
    if K in (1, 3):
        raise NoClosedForm(f"pairs need two classes, or four and more, got K = {K}")
    if K % 2 and model.decay_b is not None:
        raise NoClosedForm(
            "with an odd number of classes and a bias the pairs are no critical point: the pull on the bias "
            "differs between the pairs and the triangle"
        )
    rank = (K + 1) // 2
    if min(model.widths) < rank:
        raise NoClosedForm(
            f"the pair solution needs a width of at least {rank} at every level, got {model.widths}"
        )


def _block_basis(blocks: list[int]) -> Tensor:
    """Orthonormal columns that span the vectors of sum zero in each block, block after block."""
    return torch.block_diag(*(_centred_basis(s)[:, :-1] for s in blocks))


def _decay(m: Tensor, K: int, s: int, L: int, alpha: Tensor) -> Tensor:
    """The decay at which m is critical."""
    near, far = torch.exp(-m), (K - s) * torch.exp(-(s - 1) / s * m)
    share = (s * near + far) / (1 + (s - 1) * near + far)
    return m ** ((L - 1) / (L + 1)) * (share - alpha)


def _counts(K: int, s: int, L: int, smoothing: Any) -> tuple[int, int, int, Tensor]:
    K, s = require_count(K, "K", 2), require_count(s, "s", 2)
    if s > K:
        raise ValueError(f"s must be at most K = {K}, got {s}")
    alpha = _not_negative(smoothing, "smoothing")
    if bool((alpha > 1).any()):
        raise ValueError(f"smoothing must lie between 0 and 1, got {alpha.max().item()}")
    return K, s, require_count(L, "L"), alpha


def _not_negative(x: Any, name: str) -> Tensor:
    tensor = as_tensor(x, name, DTYPE)
    if bool((tensor < 0).any()):
        raise ValueError(f"{name} must not be negative, got {tensor.min().item()}")
    return tensor
