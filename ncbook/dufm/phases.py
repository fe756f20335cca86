"""Phase diagrams of the deep model: what hundreds of random starts end in, from cell to cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncbook.dufm.deep import DeepUFM
from ncbook.dufm.layers import deep_layers
from ncbook.dufm.params import DeepUFMParams
from ncbook.dufm.scalar import output_scale, phi
from ncbook.protocol import over_runs, require_count
from ncbook.runtime import DTYPE, as_tensor, generator

__all__ = ["KINDS", "Phases", "classify", "phase_diagram"]

KINDS = ("collapsed", "low-rank", "zero", "other")
"""What a run can end in; a kind is stored as its place in this list."""
COLLAPSED, LOW_RANK, ZERO, OTHER = range(len(KINDS))

WINDOW = 2e-3
"""Collapsed is a loss within this share of that of the collapse, low-rank one that is lower."""
_ZERO_LOSS = 0.499  # the loss of zero parameters is ½, and nothing else comes as near from below
_LARGEST_FALL = (
    5e-3  # of the loss, in a second descent; low-rank solutions lie several per cent below collapse
)
_RANK_TOL = 1e-2  # stricter tolerances count the tails of runs that are not quite at the end


class Phases(NamedTuple):
    """What the runs of every cell ended in; the axes before R are those of the cells.

    >>> from ncbook.solvers import minimise
    >>> found = phase_diagram(minimise, K=2, L=3, width=[4, 8], decay=5e-3, runs=5, steps=400)
    >>> found.kind.shape, found.share("low-rank").tolist()
    (torch.Size([2, 5]), [0.0, 0.0])
    """

    loss: Tensor
    """The objective of each run, shape (…, R)."""
    reference: Tensor
    """The value of the collapse in each cell, φ_L(t; q), shape (…)."""
    kind: Tensor
    """What each run ended in, a place in :data:`KINDS`, shape (…, R)."""
    ranks: Tensor
    """The ranks of the uncentred class means at the hidden levels 2 … L before the ReLU. Shape (…, R, D) with
    D the largest depth of all cells less 1; −1 where a cell has fewer levels."""
    converged: Tensor
    """Whether a second descent left the kind as it was and the loss within 0.5 %, shape (…, R)."""

    def share(self, kind: str) -> Tensor:
        """Return the share of the runs of one kind, shape (…).

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        return (self.kind == KINDS.index(kind)).to(DTYPE).mean(-1)

    def mean_ranks(self, *kinds: str) -> Tensor:
        """Return the mean ranks of the converged runs of some kinds, shape (…, D); NaN where there are none.

        Args:
            kinds: names in :data:`KINDS`, all of them if none is given.

        Raises:
            ValueError: there is no such kind.

        >>> from ncbook.solvers import minimise
        >>> found = phase_diagram(minimise, K=2, L=3, width=[6, 8], decay=5e-3, runs=5, steps=900)
        >>> found.mean_ranks("collapsed").tolist(), found.mean_ranks("low-rank").isnan().all().item()
        ([[2.0, 2.0], [2.0, 2.0]], True)
        """
        counted = torch.zeros_like(self.converged)
        for kind in kinds or KINDS:
            if kind not in KINDS:
                raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
            counted |= self.kind == KINDS.index(kind)
        weight = (counted & self.converged).to(DTYPE)[..., None]
        means = (weight * self.ranks).sum(-2) / weight.sum(-2)
        return torch.where((self.ranks >= 0).any(-2), means, torch.nan)

    @property
    def unconverged(self) -> Tensor:
        """The share of the runs that have not converged, shape (…)."""
        return (~self.converged).to(DTYPE).mean(-1)


def classify(loss: Any, reference: Any) -> Tensor:
    """Name what runs ended in, by their loss alone.

    *Zero* is a loss above 0.499, *collapsed* one within 0.2 % of the value of the collapse, *low-rank* one
    below that window, *other* the rest: local minima above the collapse, some with a class that is lost. That
    a run below the collapse has low rank is a name here; the ranks themselves are measured.

    Args:
        loss: the objective of the runs, any shape.
        reference: the value of the collapse, of a shape that broadcasts with ``loss``.

    Returns:
        Places in :data:`KINDS`, an int64 tensor; a loss that is not a number is *other*.

    Raises:
        ValueError: a reference is not in (0, ½].

    >>> [KINDS[k] for k in classify([0.0991, 0.0923, 0.5, 0.13, float("nan")], 0.0992)]
    ['collapsed', 'low-rank', 'zero', 'other', 'other']
    """
    loss, reference = torch.as_tensor(loss, dtype=DTYPE), as_tensor(reference, "reference", DTYPE)
    if bool(((reference <= 0) | (reference > 0.5)).any()):
        raise ValueError("reference must lie in (0, 1/2], the values that a collapse can have")
    ratio = loss / reference.to(loss.device)
    kind = torch.full_like(loss, OTHER, dtype=torch.int64)
    kind = torch.where((ratio - 1).abs() < WINDOW, COLLAPSED, kind)
    kind = torch.where(ratio <= 1 - WINDOW, LOW_RANK, kind)
    return torch.where((loss > _ZERO_LOSS) & loss.isfinite(), ZERO, kind)


def phase_diagram(
    minimise: Callable[..., Any],
    K: int,
    L: Any,
    width: Any,
    decay: Any,
    *,
    scale: Any = 1.0,
    n: int = 1,
    runs: int = 24,
    steps: int = 1500,
    lr: float = 0.05,
    seed: int = 0,
    dtype: torch.dtype = DTYPE,
) -> Phases:
    r"""Solve many deep ReLU models with squared loss at once and say what they ended in.

    The cells of the diagram are all that L, width, decay and scale broadcast to, like arrays; cells of equal
    depth and width are one batch. Each run is Adam with a step size that a cosine takes from ``lr`` to 0. A
    second descent of a quarter of the steps, from ``lr``/10 to 0, tells whether it had converged. The
    gradient cannot tell: the low-rank solutions lie on kinks of the ReLU, where it does not vanish.

    Args:
        minimise: the solver :func:`ncbook.solvers.minimise`; an argument, as solvers stand above the models.
        K: the number of classes, at least 1.
        L: the number of weight matrices, at least 2; integers of any shape.
        width: the width of all hidden levels; integers of any shape.
        decay: the λ that all factors share; positive numbers of any shape.
        scale: the scale of the starting points, entries N(0, scale²/fan_in); positive numbers of any shape.
        n: the samples of each class.
        runs: the number R of runs in each cell.
        steps: the steps of the first descent, at least 4.
        lr: its step size.
        seed: of the starting points; all runs of a diagram start from different ones.
        dtype: the precision of the descent; float32 halves the time.

    Raises:
        ValueError: an argument is out of its range, or the shapes do not broadcast.

    >>> from ncbook.solvers import minimise
    >>> found = phase_diagram(minimise, K=6, L=4, width=12, decay=4e-3, scale=[0.1, 1], runs=4, steps=600)
    >>> found.share("zero").tolist(), found.reference.round(decimals=4).tolist()
    ([1.0, 0.0], [0.0597, 0.0597])
    """
    K, runs, steps = require_count(K, "K"), require_count(runs, "runs"), require_count(steps, "steps", 4)
    depths, widths, decays, scales = _cells(L, width, decay, scale)
    reference = _reference(K * n ** (1 / (depths + 1)) * decays, depths)
    random, shape = generator(seed), (depths.size, runs)
    loss, converged = torch.zeros(shape, dtype=DTYPE), torch.zeros(shape, dtype=torch.bool)
    ranks = torch.full((*shape, int(depths.max()) - 1), -1)
    for depth, d in sorted(set(zip(depths.flat, widths.flat, strict=True))):
        cells = torch.as_tensor(np.flatnonzero((depths == depth) & (widths == d)))
        lambdas, sizes = (torch.as_tensor(x.ravel())[cells].repeat_interleave(runs) for x in (decays, scales))
        model = DeepUFM(K, n, int(depth), int(d), lambdas)
        start = _start(model, sizes, random, dtype)
        ended = _descend_twice(minimise, model, start, reference[cells].repeat_interleave(runs), steps, lr)
        loss[cells], converged[cells] = (x.reshape(-1, runs) for x in ended[:2])
        ranks[cells, :, : int(depth) - 1] = ended[2].reshape(len(cells), runs, -1)
    kind = classify(loss, reference[:, None])
    found = (x.reshape((*depths.shape, *x.shape[1:])) for x in (loss, reference, kind, ranks, converged))
    return Phases(*found)


def _cells(L: Any, width: Any, decay: Any, scale: Any) -> tuple[np.ndarray, ...]:
    """Check the four arguments that span the cells, and broadcast them."""
    counts = [np.asarray(x, dtype=object) for x in (L, width)]
    for name, array, least in (("L", counts[0], 2), ("width", counts[1], 1)):
        for x in array.flat:
            require_count(x, name, least)
    numbers = [as_tensor(x, name, DTYPE).cpu().numpy() for x, name in ((decay, "decay"), (scale, "scale"))]
    for name, array in zip(("decay", "scale"), numbers, strict=True):
        if not (array > 0).all():
            raise ValueError(f"{name} must be positive, got {array.min()}")
    arrays = [x.astype(np.int64) for x in counts] + numbers
    try:
        cells = np.broadcast_arrays(*arrays)
    except ValueError:
        shapes = ", ".join(str(list(x.shape)) for x in arrays)
        raise ValueError(f"L, width, decay and scale must broadcast, got the shapes {shapes}") from None
    if cells[0].size == 0:
        raise ValueError("L, width, decay and scale must span at least one cell")
    return tuple(cells)


def _reference(q: np.ndarray, depths: np.ndarray) -> Tensor:
    """The value of the collapse in every cell, ½ where it is zero."""
    values = []
    for x, depth in zip(q.flat, depths.flat, strict=True):
        t = output_scale(float(x), int(depth))
        values.append(phi(t, float(x), int(depth)))
    return torch.stack(values)


def _start(model: DeepUFM, scales: Tensor, random: torch.Generator, dtype: torch.dtype) -> DeepUFMParams:
    """Starting points with a scale of their own for each run."""
    drawn = model.init(len(scales), random, dtype=dtype)
    weights = tuple(W * over_runs(scales, W) for W in drawn.weights)
    return DeepUFMParams(weights, drawn.H * over_runs(scales, drawn.H), None)


def _descend_twice(
    minimise: Callable[..., Any],
    model: DeepUFM,
    start: DeepUFMParams,
    reference: Tensor,
    steps: int,
    lr: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the convergence and the ranks of a batch of runs."""
    first = minimise(model, method="adam", start=start, steps=steps, lr=lr)
    second = minimise(model, method="adam", start=first.params, steps=steps // 4, lr=lr / 10)
    before, after = first.loss.to(DTYPE).cpu(), second.loss.to(DTYPE).cpu()
    same = classify(before, reference) == classify(after, reference)
    converged = same & (before - after < _LARGEST_FALL * after)  # false for NaN
    finite = [x.nan_to_num(0.0, 0.0, 0.0) for x in (*second.params.weights, second.params.H)]
    levels = deep_layers(model, DeepUFMParams(tuple(finite[:-1]), finite[-1], None), _RANK_TOL)
    return after, converged, levels.ranks_before[:, 1:-1].cpu()
