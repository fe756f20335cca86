"""The low-rank solutions of the deep ReLU model that are made of graphs: constants, weights, closed form.

The K = r(r−1)/2 classes are the edges of the complete graph on r vertices. Below the last hidden level the
class means are the columns of its incidence matrix, of rank r; the last hidden weights turn them into
pre-activations that are −1 on the diagonal, 0 for edges with a common vertex and 1 for disjoint ones; after
the ReLU these are the adjacency matrix of the Kneser graph, of rank K, which the last weights invert.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncbook.dufm.closed_forms import Collapse, _root
from ncbook.dufm.params import DeepUFMParams
from ncbook.dufm.scalar import output_scale, phi
from ncbook.frames import kneser_adjacency, triangular_incidence
from ncbook.protocol import NoClosedForm, require_count
from ncbook.runtime import DTYPE

if TYPE_CHECKING:
    from ncbook.dufm.deep import DeepUFM

__all__ = ["graph_constant", "graph_solution", "graph_vertices", "structure_constant"]

_LEAST_VERTICES, _LEAST_DEPTH = 4, 3


def graph_vertices(K: int) -> int:
    """Return the largest r with r(r−1)/2 ≤ K: the vertices of the largest graph block for K classes.

    Args:
        K: the number of classes, at least 1.

    Raises:
        ValueError: K is no positive integer.

    >>> [graph_vertices(K) for K in (1, 5, 6, 9, 10, 45)]
    [2, 3, 4, 4, 5, 10]
    """
    return (1 + math.isqrt(1 + 8 * require_count(K, "K"))) // 2


def graph_constant(r: int, L: int) -> float:
    r"""Return the structure constant of the graph solution for K = r(r−1)/2 classes.

    .. math:: C^{L+1} = \|T\|_*^2 \; r^{L-3} \; \frac{Kr}{4} \; \|A^{-1}\|_F^2

    with :math:`\|T\|_* = \sqrt{2(r-1)} + (r-1)\sqrt{r-2}` and
    :math:`\|A^{-1}\|_F^2 = \binom{r-2}{2}^{-2} + \frac{r-1}{(r-3)^2} + K - r`. The collapse has C = K.

    Args:
        r: the number of vertices, at least 4: for r = 3 the Kneser graph has no edge, and A no inverse.
        L: the number of weight matrices, at least 3.

    Raises:
        ValueError: r or L is no integer, or too small.

    Source: this book; consistent with the figure captions of Súkeník et al. (2024), not read there.

    >>> graph_constant(5, 3) < 10, graph_constant(4, 3) < 6, graph_constant(4, 4) < 6
    (True, False, True)
    """
    r, L = require_count(r, "r", _LEAST_VERTICES), require_count(L, "L", _LEAST_DEPTH)
    K = r * (r - 1) // 2
    nuclear = math.sqrt(2 * (r - 1)) + (r - 1) * math.sqrt(r - 2)
    inverse = 1 / math.comb(r - 2, 2) ** 2 + (r - 1) / (r - 3) ** 2 + K - r
    # by logarithms: r^(L−3) leaves the range of floats for deep models
    powers = 2 * math.log(nuclear) + (L - 3) * math.log(r) + math.log(K * r / 4 * inverse)
    return math.exp(powers / (L + 1))


def structure_constant(K: int, L: int, r: int | None = None) -> float:
    r"""Return the structure constant of a graph block together with a collapse of the other classes.

    .. math:: C(K) = C_{\text{graph}}(r) + K - \frac{r(r-1)}{2}

    The effective decay of the whole is :math:`q = C (n \lambda_H \prod_\ell \lambda_\ell)^{1/(L+1)}`. The
    constants of blocks that share the output scale add up.

    Args:
        K: the number of classes, at least 6.
        L: the number of weight matrices, at least 3.
        r: the vertices of the block, at least 4 and r(r−1)/2 ≤ K; None takes the largest such r.

    Raises:
        ValueError: an argument is out of its range.

    Source: this book.

    >>> structure_constant(10, 4) - graph_constant(5, 4), structure_constant(12, 4) - graph_constant(5, 4)
    (0.0, 2.0)
    """
    K, r = _block(K, r)
    return graph_constant(r, L) + K - r * (r - 1) // 2


def graph_solution(model: DeepUFM, r: int | None = None) -> Collapse:
    r"""Return the graph solution with the best scale, as explicit weights.

    .. math:: f = \varphi_L(t; q), \qquad q = C (n \lambda_H \prod_\ell \lambda_\ell)^{1/(L+1)}

    with the C of :func:`structure_constant`; it is below the collapse exactly where C < K and t > 0. The
    first r(r−1)/2 classes are the edges of a complete graph on r vertices, in lexicographic order, the other
    classes have one unit of their own at every level. All factors are balanced, block by block.

    It is a point, not in general the minimum: the scales of the eigenspaces can still be changed at a gain.

    Args:
        model: with ReLU, squared loss, no bias, equal classes; L ≥ 3, K ≥ 6; with K' = r(r−1)/2, a width of
            at least r + K − K' at the levels 1, …, L − 1 and of K at level L.
        r: the number of vertices; None takes the largest with r(r−1)/2 ≤ K.

    Returns:
        The type of the collapse; ``ranks`` are those of the uncentred class means of H_1, …, H_L, before the
        ReLU, and of Z.

    Raises:
        NoClosedForm: the model is not of that kind, a width is too small or a lambda is 0.
        ValueError: r is no integer of at least 4 with r(r−1)/2 ≤ K.

    Source: this book; consistent with the figure captions of Súkeník et al. (2024), not read there.

    >>> from ncbook.dufm import DeepUFM
    >>> model = DeepUFM(K=10, n=1, L=4, width=10, lambdas=4e-3)
    >>> found = graph_solution(model)
    >>> found.ranks.tolist(), bool(found.loss < model.collapse().loss)
    ([5, 5, 5, 5, 10], True)
    >>> bool((model.value(found.params) - found.loss).abs() < 1e-12)
    True
    """
    _require_kind(model)
    K, r = _block(model.K, r)
    others = K - r * (r - 1) // 2
    needed = (r + others,) * (model.L - 1) + (K,)
    if any(width < least for width, least in zip(model.widths, needed, strict=True)):
        raise NoClosedForm(f"the graph solution needs widths of at least {needed}, got {model.widths}")
    C, root = structure_constant(K, model.L, r), _root(model)
    q = C * model.sizes[0] ** (1 / (model.L + 1)) * root
    t = output_scale(q, model.L)
    loss = torch.where(t > 0, phi(t, torch.where(t > 0, q, 0.0), model.L), 0.5)
    before_last = (3 if r == _LEAST_VERTICES else r) + others
    ranks = torch.tensor([r + others] * (model.L - 1) + [before_last, K], device=t.device)
    ranks = ranks * (t > 0)[..., None]
    return Collapse(loss, t, _weights(model, r, t, root), ranks, t == 0, q)


def _block(K: int, r: int | None) -> tuple[int, int]:
    """Check K and r, and choose r where it is None."""
    K = require_count(K, "K", _LEAST_VERTICES * (_LEAST_VERTICES - 1) // 2)
    if r is None:
        return K, graph_vertices(K)
    r = require_count(r, "r", _LEAST_VERTICES)
    if r * (r - 1) // 2 > K:
        raise ValueError(f"r must satisfy r(r−1)/2 ≤ K = {K}, got {r}")
    return K, r


def _require_kind(model: DeepUFM) -> None:
    if model.loss != "mse":
        raise NoClosedForm("the graph solution is one of the squared loss, the model has cross-entropy")
    if not model.relu:
        raise NoClosedForm(
            "the graph solution lives from the ReLU; the minimum of a linear model is minimum()"
        )
    if model.decay_b is not None or model.counts is not None:
        raise NoClosedForm("the graph solution is one of the model without bias and with equal classes")
    if model.L < _LEAST_DEPTH:
        raise NoClosedForm(f"the graph solution needs three or more weight matrices, got L = {model.L}")
    least = _LEAST_VERTICES * (_LEAST_VERTICES - 1) // 2
    if model.K < least:
        raise NoClosedForm(f"the graph solution needs {least} or more classes, got K = {model.K}")


def _patterns(r: int, L: int) -> list[Tensor]:
    """The factors W_1, …, W_L and the class means of H_1 for one graph, each with its own norm."""
    T, A = triangular_incidence(r), kneser_adjacency(r)
    U, s, Vh = torch.linalg.svd(T, full_matrices=False)
    first, means = U * s.sqrt(), s.sqrt()[:, None] * Vh
    middle = [torch.eye(r, dtype=DTYPE)] * (L - 3)
    return [first, *middle, 0.5 - T.T, torch.linalg.inv(A), means]


def _weights(model: DeepUFM, r: int, t: Tensor, root: Tensor) -> DeepUFMParams:
    """The balanced factors: λ‖F‖² is the same for all of a block, and their product is √n t."""
    K, L, n = model.K, model.L, model.sizes[0]
    edges = r * (r - 1) // 2
    t, root = torch.atleast_1d(t).cpu(), torch.atleast_1d(root).cpu()
    share = (n ** (1 / (L + 1)) * root * t ** (2 / (L + 1)))[:, None, None]  # per unit of C
    shapes = [*zip((*model.widths[1:], K), model.widths, strict=True), (model.widths[0], K)]
    factors = []
    for pattern, decay, (rows, columns) in zip(_patterns(r, L), model.decays, shapes, strict=True):
        square = share / torch.as_tensor(decay, dtype=DTYPE).cpu().reshape(-1, 1, 1)
        F = t.new_zeros(len(t), rows, columns)
        a, b = pattern.shape
        F[:, :a, :b] = pattern / pattern.norm() * (graph_constant(r, L) * square).sqrt()
        own = torch.arange(K - edges)  # one unit for each class outside of the graph
        F[:, a + own, b + own] = square.sqrt()[..., 0]
        factors.append(F)
    *weights, means = (F.to(_device(model)) for F in factors)
    H = means.repeat_interleave(n, dim=2) / math.sqrt(n)
    return DeepUFMParams(tuple(weights), H, None)


def _device(model: DeepUFM) -> torch.device:
    """Where the numbers of a model live; the CPU where all are shared by the runs."""
    devices = [decay.device for decay in model.decays if isinstance(decay, Tensor)]
    return devices[0] if devices else torch.device("cpu")
