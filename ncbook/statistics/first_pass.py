"""The first pass: counts, means and scatters of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from ncbook.statistics.rows import (
    about_origin,
    add_by_class,
    check_batch,
    check_state,
    deviations,
    gather,
    positive_integer,
    require_finite,
)

_EPS = torch.finfo(torch.float64).eps


class ClassStatistics:
    r"""Counts, means and scatters of K classes, in one pass over any stream of batches.

    .. math:: \mu_k = \frac1{n_k}\sum_i h_{k,i}, \qquad
        \mu_G = \frac1K\sum_k \mu_k, \qquad
        S_k = \sum_i \|h_{k,i}-\mu_k\|^2

    Sums are kept about a centre of each class: the first sample that it saw, or the origin where the features
    spread about it almost as about their mean, which saves the subtraction. Two states a, b merge by Chan's
    formula, here with :math:`\delta = \mu_b - \mu_a`:

    .. math:: n = n_a + n_b, \qquad \mu = \mu_a + \frac{n_b}{n}\,\delta, \qquad
        S = S_a + S_b + \frac{n_a n_b}{n}\,\|\delta\|^2

    Args:
        num_classes: the number of classes K, at least 1.
        dim: the dimension d of the features, at least 1.

    Raises:
        ValueError: ``num_classes`` or ``dim`` is not a positive integer.

    Source: Chan, Golub and LeVeque (1983) for the merge.

    >>> statistics = ClassStatistics(2, 1).update([[0.0], [2.0], [5.0]], [0, 0, 1])
    >>> statistics.means.flatten().tolist(), statistics.scatter_trace.tolist()
    ([1.0, 5.0], [2.0, 0.0])
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        self.num_classes = positive_integer(num_classes, "num_classes")
        self.dim = positive_integer(dim, "dim")
        zeros = torch.zeros(self.num_classes, self.dim, dtype=torch.float64)
        self.counts = zeros.new_zeros(self.num_classes, dtype=torch.int64)
        """Samples of each class, shape (K,), int64."""
        self.scatter_trace = zeros.new_zeros(self.num_classes)
        """Sum of the squared distances from the class mean, shape (K,), in squared feature units."""
        self._centres, self._sums = zeros, zeros.clone()
        self._axes: tuple[Tensor, Tensor] | None = None

    @property
    def num_samples(self) -> int:
        """Samples of all classes, N."""
        return int(self.counts.sum())

    @property
    def means(self) -> Tensor:
        """Class means, shape (K, d), float64; ValueError if a class is empty."""
        return self._centres + self._residual_means()

    @property
    def centred_means(self) -> Tensor:
        """Class means less their mean, shape (K, d), exact to rounding at the scale of the differences."""
        relative = (self._centres - self._centres[0]) + self._residual_means()
        relative = relative - relative[0]  # equal class means now give exact zeros
        return relative - relative.mean(0)

    @property
    def global_mean(self) -> Tensor:
        """Mean of the class means, shape (d,); also when the classes are of unequal size."""
        return self.means.mean(0)

    @property
    def resolution(self) -> float:
        """The length below which a difference of class means is rounding of the sums, in feature units."""
        return 8 * _EPS * float((self.num_classes * self.scatter_trace.max()).sqrt())

    def axes(self) -> tuple[Tensor, Tensor]:
        """Singular values (q,) and left singular vectors (d, q) of the centred means as columns.

        q = min(K−1, d): the K-th singular value of centred means is zero, and its direction arbitrary.

        >>> ClassStatistics(2, 2).update([[0.0, 1.0], [0.0, 3.0]], [0, 1]).axes()[1].abs().flatten()
        tensor([0.0000, 1.0000], dtype=torch.float64)
        """
        if self._axes is None:
            _, values, rows = torch.linalg.svd(self.centred_means, full_matrices=False)
            kept = min(self.num_classes - 1, self.dim)
            self._axes = values[:kept], rows[:kept].T.contiguous()
        return self._axes

    @torch.no_grad()
    def update(self, features: Any, labels: Any) -> Self:
        """Take in a batch; an empty one changes nothing.

        Args:
            features: rows of shape (n, d), of any real type.
            labels: integers 0 … K−1, shape (n,).

        Raises:
            ValueError: a shape does not fit, a label is no class, or a feature is not finite; the state is
                then the one before the call.
        """
        features, labels = check_batch(features, labels, self.num_classes, self.dim)
        if len(labels) == 0:
            return self
        counts = torch.bincount(labels, minlength=self.num_classes)
        centres = self._provisional_centres(features, labels)
        sums, squares = centres.new_zeros(centres.shape), centres.new_zeros(self.num_classes)
        for rows, own in deviations(features, labels, centres):
            add_by_class(sums, rows, own)
            squares.index_add_(0, own, rows.square_().sum(1))
        require_finite(squares, features)
        scatter = squares - sums.square().sum(1) / counts.clamp(min=1)
        self._absorb(counts, centres, sums, scatter)
        return self

    def merge(self, other: ClassStatistics) -> Self:
        """Take in the samples that another object has seen, by Chan's formula.

        Raises:
            ValueError: the other object has other classes or another dimension.

        >>> left = ClassStatistics(1, 1).update([[0.0]], [0])
        >>> left.merge(ClassStatistics(1, 1).update([[4.0]], [0])).scatter_trace
        tensor([8.], dtype=torch.float64)
        """
        if (self.num_classes, self.dim) != (other.num_classes, other.dim):
            raise ValueError(
                f"other must have {self.num_classes} classes in dimension {self.dim}, "
                f"got {other.num_classes} in dimension {other.dim}"
            )
        self._absorb(other.counts, other._centres, other._sums, other.scatter_trace)
        return self

    def all_reduce(self) -> Self:
        """Merge the states of all processes in the order of their ranks; all then hold the very same bits.

        Call it once, on every process, after the last update. Without a process group of
        ``torch.distributed`` it changes nothing.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self
        states = gather(self.state_dict())
        self.load_state_dict(states[0])
        for state in states[1:]:
            self.merge(ClassStatistics(self.num_classes, self.dim).load_state_dict(state))
        if bool((self.counts > 0).all()):
            # Two machines may turn the axes of equal singular values differently: rank 0 decides.
            values, basis = self.axes()
            first = gather({"values": values, "basis": basis})[0]
            self._axes = first["values"], first["basis"]
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as named tensors (copies)."""
        state = {"counts": self.counts, "centres": self._centres, "sums": self._sums}
        return {name: t.clone() for name, t in {**state, "scatter_trace": self.scatter_trace}.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Continue from a state that :meth:`state_dict` gave.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape.
        """
        loaded = check_state(state, self.state_dict())
        self.counts, self._centres = loaded["counts"], loaded["centres"]
        self._sums, self.scatter_trace = loaded["sums"], loaded["scatter_trace"]
        self._axes = None
        return self

    def _residual_means(self) -> Tensor:
        empty = (self.counts == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"labels must name every class, but class {empty[0]} has no samples")
        return self._sums / self.counts[:, None]

    def _provisional_centres(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return each class's centre so far; for a new class the origin, or else its first sample."""
        if bool((self.counts > 0).all()):
            return self._centres.to(labels.device)
        n = len(labels)
        first = torch.full((self.num_classes,), n, device=labels.device)
        first.scatter_reduce_(0, labels, torch.arange(n, device=labels.device), "amin")
        fresh = features[first.clamp(max=n - 1)].to(torch.float64)
        fresh[about_origin(features, labels, self.num_classes)] = 0.0
        unseen = (first < n) & (self.counts == 0).to(labels.device)
        return torch.where(unseen[:, None], fresh, self._centres.to(labels.device))

    def _absorb(self, counts: Tensor, centres: Tensor, sums: Tensor, scatter: Tensor) -> None:
        counts, centres, sums, scatter = counts.cpu(), centres.cpu(), sums.cpu(), scatter.cpu()
        self._centres = torch.where((self.counts == 0)[:, None], centres, self._centres)
        sums = sums + counts[:, None] * (centres - self._centres)  # now about the same centre as ours
        delta = sums / counts.clamp(min=1)[:, None] - self._sums / self.counts.clamp(min=1)[:, None]
        total = self.counts + counts
        share = self.counts.double() * counts / total.clamp(min=1)
        self.scatter_trace = self.scatter_trace + scatter + share * delta.square().sum(1)
        self._sums, self.counts, self._axes = self._sums + sums, total, None
