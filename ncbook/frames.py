"""The geometries of collapse: simplex ETF, orthogonal frames, graph frames, their bounds and distances.

A *frame* is a ``(d, K)`` matrix whose columns are K vectors of dimension d; everything here is float64 on the
CPU. Functions of a given frame accept leading batch axes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncbook.runtime import DTYPE, as_tensor, generator

__all__ = [
    "centre",
    "coherence",
    "etf_general_distance",
    "etf_orthogonal_distance",
    "frame_distance",
    "general_orthogonal_frame",
    "gram",
    "haar_orthogonal",
    "kneser_adjacency",
    "largest_cosine",
    "margin",
    "orthogonal_frame",
    "orthogonal_general_distance",
    "rankin_bound",
    "simplex_etf",
    "triangular_incidence",
    "welch_bound",
]


def simplex_etf(K: int, d: int | None = None, *, seed: int | None = None) -> Tensor:
    r"""Return K unit vectors at the largest mutual angle, the simplex equiangular tight frame.

    .. math:: M^\top M = \tfrac{K}{K-1}\left(I - \tfrac1K J\right), \qquad
        \langle m_k, m_l \rangle = -\tfrac{1}{K-1} \quad (k \ne l)

    The canonical frame is :math:`\sqrt{K/(K-1)}\,(I - J/K)`, with rows of zeros below when d > K; for
    d = K−1 its coordinates in the orthonormal (Helmert) basis of the hyperplane of sum zero.

    Args:
        K: the number of vectors, at least 2.
        d: their dimension, at least K−1; None means K.
        seed: None gives the canonical frame, a seed rotates it by a Haar-random orthogonal matrix.

    Returns:
        The frame, shape (d, K).

    Raises:
        ValueError: K < 2, or d < K−1 (no such frame exists).

    Source: Papyan, Han and Donoho (2020), who named the geometry of collapse; the frame is classical.

    >>> gram(simplex_etf(3)).round(decimals=3)
    tensor([[ 1.0000, -0.5000, -0.5000],
            [-0.5000,  1.0000, -0.5000],
            [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    _require_integer(K, "K", 2)
    d = K if d is None else d
    _require_integer(d, "d", K - 1, " (K−1: fewer dimensions hold no simplex ETF)")
    directions = _helmert(K) if d == K - 1 else torch.eye(K, dtype=DTYPE) - 1 / K
    return _embed(math.sqrt(K / (K - 1)) * directions, d, seed)


def orthogonal_frame(K: int, d: int | None = None, *, seed: int | None = None) -> Tensor:
    r"""Return K orthonormal vectors, :math:`M^\top M = I`.

    Args:
        K: the number of vectors, at least 1.
        d: their dimension, at least K; None means K.
        seed: None gives the first K unit vectors, a seed rotates them by a Haar-random orthogonal matrix.

    Returns:
        The frame, shape (d, K).

    Raises:
        ValueError: K < 1, or d < K.

    >>> orthogonal_frame(2, 3)
    tensor([[1., 0.],
            [0., 1.],
            [0., 0.]], dtype=torch.float64)
    """
    _require_integer(K, "K", 1)
    return general_orthogonal_frame(torch.ones(K, dtype=DTYPE), d, seed=seed)


def general_orthogonal_frame(lengths: Any, d: int | None = None, *, seed: int | None = None) -> Tensor:
    r"""Return orthogonal vectors of given lengths, :math:`M^\top M = \mathrm{diag}(\ell_1^2, …, \ell_K^2)`.

    This is the geometry of the squared loss without bias when the classes are of unequal size.

    Args:
        lengths: the K lengths, not negative; a class that has vanished has length 0.
        d: the dimension, at least K; None means K.
        seed: None puts the vectors on the axes, a seed rotates them by a Haar-random orthogonal matrix.

    Returns:
        The frame, shape (d, K).

    Raises:
        ValueError: a length is negative or not finite, or d < K.

    Source: Dang et al. (2023), who gave the frame its name.

    >>> gram(general_orthogonal_frame([2.0, 1.0])).diagonal()
    tensor([4., 1.], dtype=torch.float64)
    """
    lengths = _lengths(lengths)
    K = lengths.shape[0]
    d = K if d is None else d
    _require_integer(d, "d", K, f" (K orthogonal vectors need d ≥ K = {K})")
    return _embed(torch.diag(lengths), d, seed)


def haar_orthogonal(d: int, seed: int) -> Tensor:
    """Return a random orthogonal matrix, distributed uniformly (by the Haar measure) over all of them.

    The Q of the QR factorisation of a Gaussian matrix is uniform only once the signs of R's diagonal are
    made positive, for otherwise the algorithm's own choice of signs remains.

    Args:
        d: the dimension, at least 1.
        seed: the seed of the Gaussian matrix.

    Returns:
        The matrix, shape (d, d).

    Raises:
        ValueError: d < 1.

    Source: Mezzadri (2007), "How to generate random matrices from the classical compact groups".

    >>> Q = haar_orthogonal(4, seed=0)
    >>> torch.allclose(Q.T @ Q, torch.eye(4, dtype=torch.float64))
    True
    """
    _require_integer(d, "d", 1)
    Q, R = torch.linalg.qr(torch.randn(d, d, dtype=DTYPE, generator=generator(seed)))
    return Q * torch.where(R.diagonal() < 0, -1.0, 1.0)


def triangular_incidence(r: int) -> Tensor:
    r"""Return the vertex–edge incidence matrix of the complete graph on r vertices.

    Column e, the edge between the vertices i < j, has a one in the rows i and j; edges stand in
    lexicographic order. :math:`T T^\top = (r-2) I + J`, so that the singular values are
    :math:`\sqrt{2(r-1)}` once and :math:`\sqrt{r-2}` for the other r−1.

    Args:
        r: the number of vertices, at least 2.

    Returns:
        The incidence matrix, shape (r, K) with K = r(r−1)/2.

    Raises:
        ValueError: r < 2.

    >>> triangular_incidence(3)
    tensor([[1., 1., 0.],
            [1., 0., 1.],
            [0., 1., 1.]], dtype=torch.float64)
    """
    _require_integer(r, "r", 2)
    ends = torch.triu_indices(r, r, offset=1)
    incidence = torch.zeros(r, ends.shape[1], dtype=DTYPE)
    return incidence.scatter_(0, ends, 1.0)


def kneser_adjacency(r: int) -> Tensor:
    r"""Return the adjacency matrix of the Kneser graph K(r, 2): pairs of r things, joined when disjoint.

    :math:`A = J + I - T^\top T` with the incidence T of :func:`triangular_incidence`; r = 5 gives the
    Petersen graph. Eigenvalues: (r−2)(r−3)/2 once, −(r−3) for r−1 and 1 for the other K−r (r ≥ 4).

    Args:
        r: the number of things, at least 2.

    Returns:
        The adjacency matrix, shape (K, K) with K = r(r−1)/2.

    Raises:
        ValueError: r < 2.

    >>> kneser_adjacency(5).sum(0)
    tensor([3., 3., 3., 3., 3., 3., 3., 3., 3., 3.], dtype=torch.float64)
    """
    incidence = triangular_incidence(r)
    K = incidence.shape[1]
    return torch.ones(K, K, dtype=DTYPE) + torch.eye(K, dtype=DTYPE) - incidence.T @ incidence


def gram(frame: Any) -> Tensor:
    r"""Return the Gram matrix :math:`M^\top M` of the columns.

    Args:
        frame: the vectors as columns, shape (…, d, K).

    Returns:
        The inner products, shape (…, K, K).

    Raises:
        ValueError: the frame is not a matrix, is empty or is not finite.

    >>> gram([[3.0, 0.0], [4.0, 1.0]])
    tensor([[25.,  4.],
            [ 4.,  1.]], dtype=torch.float64)
    """
    matrix = _matrix(frame, "frame")
    return matrix.mT @ matrix


def centre(frame: Any) -> Tensor:
    r"""Subtract the mean column, :math:`M (I - J/K)`.

    Args:
        frame: the vectors as columns, shape (…, d, K).

    Raises:
        ValueError: the frame is not a matrix, is empty or is not finite.

    >>> centre([[1.0, 3.0], [0.0, 2.0]])
    tensor([[-1.,  1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    matrix = _matrix(frame, "frame")
    return matrix - matrix.mean(-1, keepdim=True)


def largest_cosine(frame: Any) -> Tensor:
    r"""Return the largest cosine between two different columns, :math:`\max_{k \ne l} \cos(m_k, m_l)`.

    It is the quantity of Rankin's bound: the smaller it is, the larger is the least angle.

    Args:
        frame: the vectors as columns, shape (…, d, K) with K ≥ 2 and no zero column.

    Returns:
        The cosine, shape (…).

    Raises:
        ValueError: fewer than two columns, or a column of zeros.

    >>> largest_cosine(simplex_etf(5)).round(decimals=10)
    tensor(-0.2500, dtype=torch.float64)
    """
    return _off_diagonal_cosines(frame).amax((-2, -1))


def coherence(frame: Any) -> Tensor:
    r"""Return the largest cosine in absolute value, :math:`\max_{k \ne l} |\cos(m_k, m_l)|`.

    It is the quantity of Welch's bound. It differs from :func:`largest_cosine` where vectors point away from
    each other: m and −m have coherence 1 and largest cosine −1.

    Args:
        frame: the vectors as columns, shape (…, d, K) with K ≥ 2 and no zero column.

    Returns:
        The coherence, shape (…).

    Raises:
        ValueError: fewer than two columns, or a column of zeros.

    >>> coherence([[1.0, -1.0]])
    tensor(1., dtype=torch.float64)
    """
    cosines = _off_diagonal_cosines(frame)
    return torch.where(cosines.isinf(), 0.0, cosines.abs()).amax((-2, -1))


def rankin_bound(K: int, d: int) -> float:
    r"""Return Rankin's lower bound on the largest cosine of K vectors in d dimensions.

    .. math:: \max_{k \ne l} \cos(m_k, m_l) \ge -\tfrac{1}{K-1} \quad (K \le d+1),
        \qquad \ge 0 \quad (K \ge d+2)

    The first is attained by the simplex ETF alone, the second by 2d vectors ±e_i (and any K ≤ 2d of them).

    Args:
        K: the number of vectors, at least 2.
        d: their dimension, at least 1.

    Raises:
        ValueError: K < 2 or d < 1.

    Source: Rankin (1955), "The closest packing of spherical caps in n dimensions".

    >>> rankin_bound(5, 4), rankin_bound(5, 3)
    (-0.25, 0.0)
    """
    _require_integer(K, "K", 2)
    _require_integer(d, "d", 1)
    return 0.0 if d + 2 <= K else -1 / (K - 1)


def welch_bound(K: int, d: int) -> float:
    r"""Return Welch's lower bound on the coherence of K vectors in d dimensions.

    .. math:: \max_{k \ne l} |\cos(m_k, m_l)| \ge \sqrt{\frac{K - d}{d (K - 1)}} \qquad (K > d)

    With d ≥ K it says nothing, and 0 is returned; with d = K−1 it is 1/(K−1), met by the simplex ETF.

    Args:
        K: the number of vectors, at least 2.
        d: their dimension, at least 1.

    Raises:
        ValueError: K < 2 or d < 1.

    Source: Welch (1974), "Lower bounds on the maximum cross correlation of signals".

    >>> welch_bound(5, 4), welch_bound(5, 5)
    (0.25, 0.0)
    """
    _require_integer(K, "K", 2)
    _require_integer(d, "d", 1)
    return math.sqrt(max(K - d, 0) / (d * (K - 1)))


def frame_distance(gram_a: Any, gram_b: Any) -> Tensor:
    r"""Return the distance of two geometries, that of their Gram matrices after normalisation.

    .. math:: \left\| \frac{A}{\|A\|_F} - \frac{B}{\|B\|_F} \right\|_F

    Neither rotating a frame nor scaling all of it changes the distance.

    Args:
        gram_a: a Gram matrix, shape (…, K, K).
        gram_b: another one of the same K.

    Returns:
        The distance, shape (…), between 0 and √2 for Gram matrices.

    Raises:
        ValueError: the matrices are not square, differ in K, or one is zero.

    >>> frame_distance(gram(simplex_etf(4)), gram(orthogonal_frame(4))).round(decimals=4)
    tensor(0.5176, dtype=torch.float64)
    """
    a, b = _normalised_gram(gram_a, "gram_a"), _normalised_gram(gram_b, "gram_b")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"gram_b must be {a.shape[-1]} by {a.shape[-1]} like gram_a, got {list(b.shape)}")
    return torch.linalg.matrix_norm(a - b)


def etf_orthogonal_distance(K: int) -> float:
    r"""Return the distance between the simplex ETF and the orthogonal frame of K vectors.

    .. math:: \sqrt{2 - 2\sqrt{(K-1)/K}}

    (evaluated as :math:`\sqrt{(2/K) / (1 + \sqrt{(K-1)/K})}`, which loses no digits at large K.)

    Args:
        K: the number of vectors, at least 2.

    Raises:
        ValueError: K < 2.

    >>> round(etf_orthogonal_distance(4), 4)
    0.5176
    """
    _require_integer(K, "K", 2)
    return math.sqrt((2 / K) / (1 + math.sqrt((K - 1) / K)))


def orthogonal_general_distance(lengths: Any) -> float:
    r"""Return the distance between the orthogonal frame and the general one with the given lengths.

    .. math:: \sqrt{2 - 2c}, \qquad c = \frac{\sum_k \ell_k^2}{\sqrt K \, \sqrt{\sum_k \ell_k^4}}

    Args:
        lengths: the K lengths, not negative and not all zero.

    Raises:
        ValueError: a length is negative or not finite, or all are zero.

    >>> orthogonal_general_distance([2.0, 2.0, 2.0])
    0.0
    """
    return math.sqrt(2 * _one_minus_cosine(lengths))


def etf_general_distance(lengths: Any) -> float:
    r"""Return the distance between the simplex ETF and the general orthogonal frame with the given lengths.

    .. math:: \sqrt{2 - 2c\sqrt{(K-1)/K}},
        \qquad c = \frac{\sum_k \ell_k^2}{\sqrt K \, \sqrt{\sum_k \ell_k^4}}

    Equal lengths give :func:`etf_orthogonal_distance`, the least value.

    Args:
        lengths: the K ≥ 2 lengths, not negative and not all zero.

    Raises:
        ValueError: fewer than two lengths, one that is negative or not finite, or all are zero.

    >>> abs(etf_general_distance([1.0, 1.0, 1.0]) - etf_orthogonal_distance(3)) < 1e-15
    True
    """
    K = _lengths(lengths).shape[0]
    _require_integer(K, "the number of lengths", 2)
    away, ratio = _one_minus_cosine(lengths), math.sqrt((K - 1) / K)
    return math.sqrt(2 * (away + (1 - away) / (K * (1 + ratio))))  # 1 − ratio = 1/(K (1 + ratio))


def margin(classifier: Any, features: Any) -> Tensor:
    r"""Return the least margin of a linear classifier on one feature of each class.

    .. math:: \min_k \min_{l \ne k} \langle w_k - w_l, h_k \rangle

    With norms of at most 1 it is at most K/(K−1), attained by the simplex ETF with w = h.

    Args:
        classifier: the rows w_k, shape (…, K, d) with K ≥ 2.
        features: the columns h_k, shape (…, d, K).

    Returns:
        The margin, shape (…).

    Raises:
        ValueError: the shapes do not fit, or K < 2.

    >>> M = simplex_etf(5)
    >>> margin(M.T, M).round(decimals=10)
    tensor(1.2500, dtype=torch.float64)
    """
    W, H = _matrix(classifier, "classifier"), _matrix(features, "features")
    K = W.shape[-2]
    if H.shape[-1] != K or H.shape[-2] != W.shape[-1]:
        raise ValueError(f"features must be (…, d, K) = {(W.shape[-1], K)}, got {list(H.shape)}")
    _require_integer(K, "the number of classes", 2)
    dtype = torch.promote_types(W.dtype, H.dtype)
    logits = W.to(dtype) @ H.to(dtype)
    gaps = logits.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) - logits
    return gaps.masked_fill(_diagonal_mask(logits), math.inf).amin((-2, -1))


def _require_integer(value: Any, name: str, least: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}{why}, got {value!r}")


def _matrix(x: Any, name: str) -> Tensor:
    matrix = as_tensor(x, name)
    if matrix.ndim < 2 or matrix.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty matrix (or a batch of them), got shape {list(matrix.shape)}"
        )
    return matrix if matrix.is_floating_point() else matrix.to(DTYPE)


def _lengths(lengths: Any) -> Tensor:
    tensor = as_tensor(lengths, "lengths", DTYPE)
    if tensor.ndim != 1 or tensor.numel() == 0:
        raise ValueError(f"lengths must be a non-empty vector, got shape {list(tensor.shape)}")
    if bool((tensor < 0).any()):
        raise ValueError(f"lengths must not be negative, got {tensor.min().item()}")
    return tensor


def _one_minus_cosine(lengths: Any) -> float:
    """1 − cos of the squared lengths and the vector of ones, without the cancellation of 1 − c near 0."""
    squares = _lengths(lengths) ** 2
    if not bool(squares.any()):
        raise ValueError("lengths must not all be zero")
    unit = squares / squares.norm()
    ones = torch.full_like(unit, 1 / math.sqrt(unit.shape[0]))
    return float((unit - ones).square().sum() / 2)


def _normalised_gram(x: Any, name: str) -> Tensor:
    matrix = _matrix(x, name)
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{name} must be a square Gram matrix, got shape {list(matrix.shape)}")
    norm = torch.linalg.matrix_norm(matrix, keepdim=True)
    if bool((norm == 0).any()):
        raise ValueError(f"{name} must not be zero: no geometry is left to compare")
    return matrix / norm


def _off_diagonal_cosines(frame: Any) -> Tensor:
    """The cosines of all pairs of columns, with minus infinity on the diagonal."""
    matrix = _matrix(frame, "frame")
    norms = torch.linalg.vector_norm(matrix, dim=-2, keepdim=True)
    if matrix.shape[-1] < 2 or bool((norms == 0).any()):
        raise ValueError(f"frame must have two or more columns, none zero, got shape {list(matrix.shape)}")
    unit = matrix / norms
    cosines = unit.mT @ unit
    return cosines.masked_fill(_diagonal_mask(cosines), -math.inf)


def _diagonal_mask(square: Tensor) -> Tensor:
    return torch.eye(square.shape[-1], dtype=torch.bool, device=square.device)


def _helmert(K: int) -> Tensor:
    """An orthonormal basis of the vectors of sum zero, as rows: (1, …, 1, −j, 0, …)/√(j(j+1)) with j ones."""
    j = torch.arange(1, K, dtype=DTYPE).unsqueeze(1)
    column = torch.arange(K, dtype=DTYPE).unsqueeze(0)
    rows = torch.where(column < j, 1.0, torch.where(column == j, -j, 0.0))
    return rows / (j * (j + 1)).sqrt()


def _embed(frame: Tensor, d: int, seed: int | None) -> Tensor:
    """Append rows of zeros up to dimension d, then rotate if there is a seed."""
    padded = torch.nn.functional.pad(frame, (0, 0, 0, d - frame.shape[0]))
    return padded if seed is None else haar_orthogonal(d, seed) @ padded
