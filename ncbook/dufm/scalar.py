r"""The one scalar problem to which squared loss reduces every deep linear model, and the ReLU collapse.

.. math:: \varphi_L(t; q) = \frac{(1-t)^2}{2} + \frac{L+1}{2}\, q\, t^{2/(L+1)}, \qquad t \ge 0

L counts weight matrices, t is the share of the labels that the logits reach, and
:math:`q = K (n \lambda_H \prod_\ell \lambda_\ell)^{1/(L+1)}` is the effective decay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncbook.protocol import require_count
from ncbook.runtime import DTYPE, as_tensor

__all__ = ["existence_limit", "larger_root", "output_scale", "phi", "product_price", "threshold"]

_NEWTON_STEPS = 80  # near the fold an error is halved at each step at first: 26 steps to half of the digits


def phi(t: Any, q: Any, L: int) -> Tensor:
    r"""Return :math:`\varphi_L(t; q)`; its value at t = 0 is ½ for every q.

    Args:
        t: the scale of the output, not negative, any shape.
        q: the effective decay, not negative, of a shape that broadcasts with t.
        L: the number of weight matrices, at least 1.

    Raises:
        ValueError: L is no positive integer, or t or q is negative or not finite.

    >>> phi(0.5, threshold(2), L=2)
    tensor(0.5000, dtype=torch.float64)
    """
    L, t, q = require_count(L, "L"), _not_negative(t, "t"), _not_negative(q, "q")
    return (1 - t).square() / 2 + (L + 1) / 2 * q * t ** (2 / (L + 1))


def threshold(L: int) -> float:
    r"""Return q*(L), the decay at which the non-trivial minimum is no longer below ½.

    .. math:: q^*(L) = \frac1L \left(\frac{L-1}{L}\right)^{(L-1)/(L+1)}

    There the output scale is (L−1)/L: it falls to zero in a jump where L ≥ 2, continuously where L = 1.

    Args:
        L: the number of weight matrices, at least 1.

    Raises:
        ValueError: L is no positive integer.

    >>> threshold(1), round(threshold(2), 6)
    (1.0, 0.39685)
    """
    L = require_count(L, "L")
    return ((L - 1) / L) ** ((L - 1) / (L + 1)) / L


def product_price(matrix: Any, decays: Any) -> Tensor:
    r"""Return the least penalty of m factors whose product is a given matrix, a Schatten quasi-norm.

    .. math:: \min_{F_m \cdots F_1 = A} \sum_j \frac{\lambda_j}{2} \|F_j\|_F^2
        = \frac m2 (\lambda_1 \cdots \lambda_m)^{1/m} \sum_i s_i(A)^{2/m}

    It is attained where all inner dimensions are at least the rank of A. The more factors, the closer the
    sum comes to the rank.

    Args:
        matrix: A, or a batch of them, shape (…, rows, columns).
        decays: the m decays, not negative, shape (m,).

    Returns:
        A float64 tensor of shape (…).

    Raises:
        ValueError: ``matrix`` has fewer than two axes, ``decays`` is empty, has not one axis or a negative
            number, or a number is not finite.

    Source: the variational form of the nuclear norm for m = 2; for every m the chapter on linear layers.

    >>> product_price([[4.0, 0.0], [0.0, 1.0]], [0.1, 0.1])
    tensor(0.5000, dtype=torch.float64)
    """
    A, decays = as_tensor(matrix, "matrix", DTYPE), _not_negative(decays, "decays")
    if A.dim() < 2:
        raise ValueError(f"matrix must have the shape (…, rows, columns), got {list(A.shape)}")
    if decays.dim() != 1 or not len(decays):
        raise ValueError(f"decays must be a row of at least one number, got the shape {list(decays.shape)}")
    m = len(decays)
    return m / 2 * decays.prod() ** (1 / m) * (torch.linalg.svdvals(A) ** (2 / m)).sum(-1)


def existence_limit(L: int) -> float:
    r"""Return q_s(L), the decay above which zero is the only critical point of the scalar problem.

    .. math:: q_s(L) = (1 - t_m)\, t_m^{(L-1)/(L+1)}, \qquad t_m = \frac{L-1}{2L}

    Args:
        L: the number of weight matrices, at least 1.

    Raises:
        ValueError: L is no positive integer.

    >>> existence_limit(1), round(existence_limit(2), 6)
    (1.0, 0.47247)
    """
    fold = _fold(require_count(L, "L"))
    return (1 - fold) * fold ** ((L - 1) / (L + 1))


def larger_root(q: Any, L: int) -> Tensor:
    r"""Return the larger root t of :math:`(1-t)\, t^{(L-1)/(L+1)} = q`, a local minimum of φ_L.

    The left side is concave, and falls from q_s(L) at t_m to 0 at 1: Newton's method from t = 1 comes down to
    the root without ever passing it. The result is the root for a q that is off by rounding; at q_s(L), where
    two roots meet, that leaves half of the digits.

    Args:
        q: the effective decay, not negative, any shape.
        L: the number of weight matrices, at least 1.

    Returns:
        A float64 tensor of the shape of q; NaN where q > q_s(L), for there is no root.

    Raises:
        ValueError: L is no positive integer, or q is negative or not finite.

    >>> larger_root([0.0, threshold(3), 1.0], L=3)
    tensor([1.0000, 0.6667,    nan], dtype=torch.float64)
    """
    L, q = require_count(L, "L"), _not_negative(q, "q")
    power, fold = (L - 1) / (L + 1), _fold(L)
    if L == 1:
        return torch.where(q <= 1, 1 - q, torch.nan)
    t = torch.ones_like(q)
    for _ in range(_NEWTON_STEPS):
        slope = power * t ** (power - 1) - (power + 1) * t**power
        new = t + (q - (1 - t) * t**power) / slope
        new = torch.where(slope < 0, new, t).clamp(min=fold)
        if torch.equal(new, t):
            break
        t = new
    return torch.where(q <= existence_limit(L), t, torch.nan)


def output_scale(q: Any, L: int) -> Tensor:
    """Return the global minimiser t of φ_L: the larger root where q < q*(L), else 0.

    Args:
        q: the effective decay, not negative, any shape.
        L: the number of weight matrices, at least 1.

    Returns:
        A float64 tensor of the shape of q.

    Raises:
        ValueError: L is no positive integer, or q is negative or not finite.

    >>> output_scale([0.1, 0.39, 0.4], L=2)
    tensor([0.8963, 0.5127, 0.0000], dtype=torch.float64)
    """
    q = _not_negative(q, "q")
    alive = q < threshold(L)
    return torch.where(alive, larger_root(torch.where(alive, q, 0.0), L), 0.0)


def _fold(L: int) -> float:
    """Where the two roots meet."""
    return (L - 1) / (2 * L)


def _not_negative(x: Any, name: str) -> Tensor:
    tensor = as_tensor(x, name, DTYPE)
    if bool((tensor < 0).any()):
        raise ValueError(f"{name} must not be negative, got {tensor.min().item()}")
    return tensor
