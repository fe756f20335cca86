r"""The scalar problem to which cross-entropy reduces the collapse of every deep linear model.

.. math:: \varphi(m; q) = \log\bigl(1 + (K-1) e^{-m}\bigr) + \tfrac{K-1}{K} \alpha m
    + \frac{L+1}{2} \frac{K-1}{K}\, q\, m^{2/(L+1)}, \qquad m \ge 0

m is the margin of the collapsed logits :math:`Z = m (I - J/K) \otimes 1^\top`, α the label smoothing, and
:math:`q = K (n \lambda_H \prod_\ell \lambda_\ell)^{1/(L+1)}` the effective decay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncbook.protocol import require_count
from ncbook.runtime import DTYPE, as_tensor

__all__ = ["margin", "margin_phi", "margin_threshold"]

_LARGEST = 800.0  # exp(−m) is zero from here on
_HALVINGS = 80  # from 800 to the last digit of any margin above 1e-6


def margin_phi(m: Any, q: Any, K: int, L: int, smoothing: Any = 0.0) -> Tensor:
    r"""Return φ(m; q), the value of a collapse with margin m; log K at m = 0 for every q.

    Args:
        m: the margin, not negative, any shape.
        q: the effective decay, not negative, of a shape that broadcasts with m.
        K: the number of classes, at least 1.
        L: the number of weight matrices, at least 1.
        smoothing: the label smoothing α in [0, 1], of a shape that broadcasts with m.

    Raises:
        ValueError: an argument is out of its range, or not finite.

    Source: Zhu et al. (2021) for L = 1; Garrod and Keating (2025) for L ≥ 2 with equal decays.

    >>> margin_phi([0.0, 5.0], 0.02, K=4, L=2)
    tensor([1.3863, 0.0858], dtype=torch.float64)
    """
    K, L, alpha = _counts(K, L, smoothing)
    m, q = _not_negative(m, "m"), _not_negative(q, "q")
    share = (K - 1) / K
    fit = torch.log1p((K - 1) * torch.exp(-m)) + share * alpha * m
    return fit + (L + 1) / 2 * share * q * m ** (2 / (L + 1))


def margin(q: Any, K: int, L: int, smoothing: Any = 0.0) -> Tensor:
    r"""Return the global minimiser m of φ: 0 where zero is at least as good as any positive margin.

    A positive critical point solves :math:`m^{(L-1)/(L+1)} \bigl(\frac{K}{K-1+e^m} - \alpha\bigr) = q`. The
    left side rises to one maximum and falls; the larger root is the local minimum, found by bisection.

    Args:
        q: the effective decay, positive, any shape.
        K: the number of classes, at least 1.
        L: the number of weight matrices, at least 1.
        smoothing: the label smoothing α in [0, 1], of a shape that broadcasts with q.

    Returns:
        A float64 tensor of the common shape of q and α.

    Raises:
        ValueError: an argument is out of its range, or not finite.

    Source: Zhu et al. (2021) for L = 1; Garrod and Keating (2025) for L ≥ 2; the larger root: this book.

    >>> margin([0.01, 0.1, 2.0], K=4, L=2)
    tensor([6.6174, 4.1123, 0.0000], dtype=torch.float64)
    """
    K, L, alpha = _counts(K, L, smoothing)
    q = as_tensor(q, "q", DTYPE)
    if bool((q <= 0).any()):
        raise ValueError(f"q must be positive, got {q.min().item()}")
    q, alpha = torch.broadcast_tensors(q, alpha)
    if K == 1:
        return torch.zeros_like(q)
    fold, top = _fold(K, L, alpha), _end(K, alpha)
    low, high = fold, top
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _decay(middle, K, L, alpha) > q
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    # where q exceeds the maximum of the left side the bisection ends at the fold, no root
    root = torch.where(_decay(fold, K, L, alpha) > q, low, 0.0)
    better = margin_phi(root, q, K, L, alpha) < margin_phi(0.0, q, K, L, alpha)
    return torch.where(better, root, 0.0)


def margin_threshold(K: int, L: int, smoothing: Any = 0.0) -> Tensor:
    r"""Return the decay from which on zero is the minimiser of φ.

    For L = 1 it is 1 − α. For L ≥ 2 the larger root m and log K are equally low at

    .. math:: \log\bigl(1 + (K-1) e^{-m}\bigr) + \tfrac{K-1}{K} \alpha m
        + \frac{L+1}{2} \tfrac{K-1}{K}\, m \Bigl( \frac{K}{K-1+e^m} - \alpha \Bigr) = \log K

    and the margin jumps from there to 0.

    Args:
        K: the number of classes, at least 2.
        L: the number of weight matrices, at least 1.
        smoothing: the label smoothing α in [0, 1), any shape.

    Raises:
        ValueError: an argument is out of its range, or not finite.

    Source: this book; L = 1: Zhu et al. (2021).

    >>> margin_threshold(4, 1), margin_threshold(4, 2)
    (tensor(1., dtype=torch.float64), tensor(0.5931, dtype=torch.float64))
    """
    require_count(K, "K", 2)
    K, L, alpha = _counts(K, L, smoothing)
    if bool((alpha == 1).any()):
        raise ValueError("smoothing must be below 1: with it zero is the minimiser at every decay")
    if L == 1:
        return 1 - alpha
    low, high = _fold(K, L, alpha), _end(K, alpha)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # along the larger roots the value falls as the margin grows
        q = _decay(middle, K, L, alpha).clamp(min=0.0)
        above = margin_phi(middle, q, K, L, alpha) > margin_phi(0.0, q, K, L, alpha)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return _decay((low + high) / 2, K, L, alpha)


def _counts(K: int, L: int, smoothing: Any) -> tuple[int, int, Tensor]:
    alpha = _not_negative(smoothing, "smoothing")
    if bool((alpha > 1).any()):
        raise ValueError(f"smoothing must lie between 0 and 1, got {alpha.max().item()}")
    return require_count(K, "K"), require_count(L, "L"), alpha


def _decay(m: Tensor, K: int, L: int, alpha: Tensor) -> Tensor:
    """The decay at which m is critical."""
    small = torch.exp(-m)
    return m ** ((L - 1) / (L + 1)) * (K * small / (1 + (K - 1) * small) - alpha)


def _end(K: int, alpha: Tensor) -> Tensor:
    """Where the decay of :func:`_decay` comes down to zero; 0 for α = 1."""
    return torch.log((K - alpha * (K - 1)) / alpha).clamp(max=_LARGEST)


def _fold(K: int, L: int, alpha: Tensor) -> Tensor:
    """Where the decay of :func:`_decay` is largest: a zero of the slope of its logarithm, which falls."""
    a, end = (L - 1) / (L + 1), _end(K, alpha)
    low, high = torch.zeros_like(end), end
    if L == 1:
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        small = torch.exp(-middle)
        p = 1 / (1 + (K - 1) * small)
        slack = K - alpha * ((K - 1) + 1 / small.clamp(min=1e-300))
        above = a * slack > middle * p * K
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def _not_negative(x: Any, name: str) -> Tensor:
    tensor = as_tensor(x, name, DTYPE)
    if bool((tensor < 0).any()):
        raise ValueError(f"{name} must not be negative, got {tensor.min().item()}")
    return tensor
