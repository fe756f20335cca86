r"""How far is a candidate from the covariance of features that are only known by samples?

The distance of the *sample* covariance to a candidate L measures mostly the sampling error. Products of
different samples do not: for independent i and j

.. math:: \mathbb E\, \langle f_i g_i^\top - L,\; f_j g_j^\top - L \rangle_F
    = \| \mathbb E f g^\top - L \|_F^2 .

Split the samples into halves with sample covariances A and B, and :math:`\langle A - L, B - L\rangle_F` is
unbiased; the average over all splits is what is computed here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.runtime import DTYPE, as_tensor

__all__ = ["CovarianceError", "covariance_error"]


class CovarianceError(NamedTuple):
    """The squared Frobenius error of a candidate, unbiased and naive.

    Fields: ``squared`` the unbiased estimate, which may come out negative where the error is small;
    ``naive_squared`` the squared distance of the sample covariance from the candidate; ``noise`` a scale of
    the estimate's own standard error, to first order in 1/N and for nearly Gaussian features.

    >>> CovarianceError(0.04, 0.09, 0.001).error
    0.2
    """

    squared: float
    naive_squared: float
    noise: float

    @property
    def error(self) -> float:
        """The root of the unbiased estimate, with its sign: negative where the estimate is."""
        return math.copysign(math.sqrt(abs(self.squared)), self.squared)


def covariance_error(features: Any, candidate: Any, other: Any = None) -> CovarianceError:
    r"""Estimate :math:`\|\mathbb E f g^\top - L\|_F^2` from samples, without the samples' own error.

    .. math:: \frac{1}{N(N-1)} \sum_{i \ne j} \langle f_i g_i^\top - L, f_j g_j^\top - L \rangle_F
        = \frac{N \|\hat\Omega - L\|_F^2 - \frac1N \sum_i \|f_i g_i^\top - L\|_F^2}{N - 1}

    the average of the split-sample estimate over all splits. Features count as centred: subtract a known
    mean before.

    Args:
        features: independent samples f, one a row, (N, p), N ≥ 2.
        candidate: the matrix L to be judged, (p, p), or (p, k) with ``other``.
        other: samples g of the second features, (N, k), row by row beside f; None: g = f.

    Raises:
        ValueError: shapes do not fit, or there are fewer than two samples.

    >>> x = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = covariance_error(x, torch.eye(50))
    >>> abs(found.squared) < 0.2 * found.naive_squared
    True
    """
    f = as_tensor(features, "features", DTYPE)
    g = f if other is None else as_tensor(other, "other", DTYPE)
    L = as_tensor(candidate, "candidate", DTYPE)
    if f.ndim != 2 or g.ndim != 2 or len(f) != len(g) or L.shape != (f.shape[1], g.shape[1]):
        raise ValueError(
            "candidate must have shape (p, k) for features (N, p) and other (N, k), got "
            f"{tuple(L.shape)}, {tuple(f.shape)} and {tuple(g.shape)}"
        )
    count = len(f)
    if count < 2:
        raise ValueError(f"features must hold at least two samples, got {count}")
    naive = float((f.mT @ g / count - L).square().sum())
    norms = f.square().sum(1), g.square().sum(1)
    own = norms[0] * norms[1] - 2 * ((f @ L) * g).sum(1) + L.square().sum()
    squared = (count * naive - float(own.mean())) / (count - 1)
    return CovarianceError(squared, naive, _noise(f, g, L, squared, count))


def _noise(f: Tensor, g: Tensor, L: Tensor, squared: float, count: int) -> float:
    """Hoeffding's two terms of the variance, with the Gaussian fourth moments of f and g."""
    Omega, Psi = f.mT @ f / count, g.mT @ g / count
    degenerate = 2 * (float(Omega.square().sum() * Psi.square().sum()) + float(L.square().sum()) ** 2)
    linear = (
        8 * max(squared, 0.0) * float(torch.linalg.matrix_norm(Omega, 2) * torch.linalg.matrix_norm(Psi, 2))
    )
    return math.sqrt(degenerate / count**2 + linear / count)
