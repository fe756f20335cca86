"""The second pass: every feature seen from its own class mean, along the axes of the class means."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from ncbook.statistics.first_pass import ClassStatistics
from ncbook.statistics.rows import (
    check_batch,
    check_classifier,
    deviations,
    gather,
    product_dtype,
    require_finite,
    spread_about_origin,
)


class BetweenScatter:
    r"""The second pass: within-class scatter along the axes of the class means, and decisions that differ.

    With M = USVᵀ the centred means as columns it sums, over all samples and for each axis j,

    .. math:: c_j = \sum_{k,i} \bigl(u_j^\top (h_{k,i}-\mu_k)\bigr)^2

    and, given a classifier, counts the samples on which
    :math:`\arg\max_k(\langle w_k,h\rangle+b_k)` and :math:`\arg\min_k\|h-\mu_k\|` differ (a tie goes to the
    first class).

    Float32 features are projected in float32, after their class mean is taken off wherever that saves a
    digit; everything else is done in float64.

    Args:
        statistics: the finished first pass (reduced over processes, where there are several).
        weight: the classifier, shape (K, d), or None.
        bias: its bias, shape (K,), or None for none.

    Raises:
        ValueError: a class is empty, there are fewer than two, or weight or bias do not fit.

    >>> features, labels = [[0.0], [1.0], [3.0], [4.0]], [0, 0, 1, 1]
    >>> second = BetweenScatter(ClassStatistics(2, 1).update(features, labels)).update(features, labels)
    >>> second.projected_scatter
    tensor([1.], dtype=torch.float64)
    """

    def __init__(self, statistics: ClassStatistics, weight: Any = None, bias: Any = None) -> None:
        K = statistics.num_classes
        if K < 2:
            raise ValueError(f"num_classes must be at least 2 to compare classes, got {K}")
        weight, bias = check_classifier(weight, bias, statistics.dim)
        if weight is not None and len(weight) != K:
            raise ValueError(
                f"weight must have one row for each of {K} classes, got shape {list(weight.shape)}"
            )
        self.statistics, self._means = statistics, statistics.means
        spread = statistics.scatter_trace / statistics.counts
        at_origin = spread_about_origin(self._means.square().sum(1) + spread, spread)
        self._centres = torch.where(at_origin[:, None], 0.0, self._means)
        self.singular_values, self.basis = statistics.axes()
        """Singular values of the centred means (q,) and their directions in feature space (d, q)."""
        self.counts = torch.zeros_like(statistics.counts)
        """Samples of each class that this pass has seen, shape (K,)."""
        self.projected_scatter = torch.zeros_like(self.singular_values)
        """Within-class scatter along each direction, shape (q,), in squared feature units."""
        self.disagreements = torch.zeros_like(statistics.counts[0])
        """Samples on which the classifier and the nearest class mean differ; 0 without a classifier."""
        rows = statistics.centred_means
        self._coordinates = rows @ self.basis
        self.distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        """Distances between the class means, shape (K, K), computed so that small ones are right too."""
        self.weight, self.bias = weight, bias
        # A sample is seen along the axes from its own class mean, and in the logits of the classifier.
        self._columns, self._at_means = self.basis, torch.zeros_like(self._coordinates)
        if weight is not None:
            logits = self._means @ weight.T + (0.0 if bias is None else bias)
            self._columns = torch.cat([self.basis, weight.T], 1)
            self._at_means = torch.cat([self._at_means, logits], 1)

    @torch.no_grad()
    def update(self, features: Any, labels: Any) -> Self:
        """Take in a batch, the arguments as in :meth:`ClassStatistics.update`.

        Raises:
            ValueError: as there; the state is then the one before the call.
        """
        K, d = self._means.shape
        features, labels = check_batch(features, labels, K, d)
        with torch.autocast(features.device.type, enabled=False):
            squares, differing = self._look(features, labels, product_dtype(features))
            if not bool(torch.isfinite(squares).all()):  # products may overflow in float32 only
                squares, differing = self._look(features, labels, torch.float64)
        require_finite(squares, features)
        self.projected_scatter = self.projected_scatter + squares[: len(self.singular_values)].cpu()
        self.disagreements = self.disagreements + differing.cpu()
        self.counts = self.counts + torch.bincount(labels, minlength=K).cpu()
        return self

    def merge(self, other: BetweenScatter) -> Self:
        """Add the sums of another object built on the same statistics.

        Raises:
            ValueError: the other object looks along other axes.
        """
        if not torch.equal(self.basis, other.basis):
            raise ValueError("other must be built on the same statistics, got one with other axes")
        self.counts = self.counts + other.counts
        self.projected_scatter = self.projected_scatter + other.projected_scatter
        self.disagreements = self.disagreements + other.disagreements
        return self

    def all_reduce(self) -> Self:
        """Add the sums of all processes; call it once, on every process, after the last update.

        Raises:
            ValueError: the processes look along other axes: the statistics were not reduced before.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self
        names = ("basis", "counts", "projected_scatter", "disagreements")
        states = gather({name: getattr(self, name) for name in names})
        if any(not torch.equal(state["basis"], states[0]["basis"]) for state in states):
            raise ValueError(
                "statistics must be all-reduced before the second pass, the processes' means differ"
            )
        for name in names[1:]:
            setattr(self, name, torch.stack([state[name] for state in states]).sum(0))
        return self

    def _look(self, features: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return sums of squares along the axes and of the logits, and the number of differing decisions."""
        device, q = features.device, len(self.singular_values)
        centres, projection = self._centres.to(dtype), self._columns.T.to(device, dtype).contiguous()
        # From the centres, rounded as they are, back to the means, from which the samples shall be seen.
        at_means = (self._at_means - (self._means - centres.double()) @ self._columns).to(device)
        squares = torch.zeros_like(at_means[0])
        differing = torch.zeros_like(self.disagreements, device=device)
        for rows, own in deviations(features, labels, centres.to(device)):
            seen = (projection @ rows.T).double().T.contiguous().add_(at_means.index_select(0, own))
            squares += seen.square().sum(0)
            if self.weight is not None:
                differing += self._differing(seen[:, :q], seen[:, q:], own)
        return squares, differing

    def _differing(self, deviations: Tensor, logits: Tensor, own: Tensor) -> Tensor:
        """Count the rows whose largest logit and nearest class mean are not the same class."""
        coordinates, distances = self._coordinates.to(own.device), self.distances.to(own.device)
        # ‖h−μ_k‖² less the part common to all k, written in differences from the own class: nothing cancels.
        nearness = torch.addmm(
            distances.square().index_select(0, own), deviations, coordinates.T, alpha=2, beta=-1
        )
        return (logits.argmax(1) != nearness.argmax(1)).sum()
