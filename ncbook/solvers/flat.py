"""Parameters as one flat (B, P) buffer, and a problem seen through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ncbook.protocol import Problem, optional_method

__all__ = ["Layout", "Objective"]


class Layout:
    """Where each tensor of a parameter tuple lies in a flat (B, P) buffer.

    Args:
        params: a (named) tuple of tensors with a common leading batch axis; a field may be None, or a tuple.

    Raises:
        ValueError: a field is something else, there is no tensor, or the batch axes differ or are empty.

    >>> layout = Layout((torch.zeros(5, 2, 3), None, torch.zeros(5, 4)))
    >>> layout.batch, layout.size, [list(x.shape) for x in layout.leaves(torch.zeros(5, 10))]
    (5, 10, [[5, 2, 3], [5, 4]])
    """

    def __init__(self, params: Any) -> None:
        self.template = params
        leaves = list(tensors_of(params))
        batches = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
        if len(batches) != 1 or batches & {None, 0}:
            shapes = [list(leaf.shape) for leaf in leaves]
            raise ValueError(
                f"params must be tensors with a common batch axis of one or more runs, got {shapes}"
            )
        self.batch: int = leaves[0].shape[0]
        self.shapes = [leaf.shape[1:] for leaf in leaves]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.size = sum(self.sizes)

    def leaves(self, flat: Tensor) -> list[Tensor]:
        """Return views of the buffer, shape (B, …), one for each tensor of the parameters."""
        pieces = zip(flat.split(self.sizes, dim=1), self.shapes, strict=True)
        return [piece.unflatten(1, shape) if shape else piece.squeeze(1) for piece, shape in pieces]

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return copies of what :meth:`leaves` shows, each contiguous: products into views are slow."""
        return [leaf.clone(memory_format=torch.contiguous_format) for leaf in self.leaves(flat)]

    def params(self, flat: Tensor) -> Any:
        """Return the parameter tuple, its tensors views of the buffer."""
        return self.rebuild(self.leaves(flat))

    def rebuild(self, leaves: Sequence[Tensor]) -> Any:
        """Return the parameter tuple that holds these tensors."""
        return _rebuild(self.template, iter(leaves))

    def flatten(self, params: Any) -> Tensor:
        """Copy the tensors of a parameter tuple into a new buffer."""
        return torch.cat(
            [leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None] for leaf in tensors_of(params)], 1
        )


class Objective:
    """A problem as a function of the flat buffer, restricted at will to some of its runs.

    A problem with ``take`` is restricted to the runs asked for; one without is evaluated on the whole batch,
    zeros standing for the runs left out, and only the wanted results are kept.

    Args:
        problem: the problem.
        layout: the layout of its parameters.
        runs: the runs of the original batch that the rows of a buffer stand for; all of them when None.
    """

    def __init__(self, problem: Problem, layout: Layout, runs: Tensor | None = None) -> None:
        self.problem, self.layout, self.runs = problem, layout, runs
        self._take = optional_method(problem, "take")
        self._grad = optional_method(problem, "grad")
        self._accumulate = optional_method(problem, "accumulate_grad")
        self._project = optional_method(problem, "project")
        self._lower_bound = optional_method(problem, "lower_bound")
        self.projects = self._project is not None
        self.bounded = self._lower_bound is not None
        self.divisible = self._take is not None

    def restrict(self, index: Tensor) -> Objective:
        """Return the objective of some rows only, in the order of the index."""
        if self._take is not None:
            return Objective(self._take(index), self.layout)
        return Objective(self.problem, self.layout, index if self.runs is None else self.runs[index])

    def value_and_grad(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values, shape (B,), and the gradient as a buffer."""
        value, gradient = self.problem.value_and_grad(self._params(flat))
        return self._rows(value), self._rows(self.layout.flatten(gradient))

    def gradient(self, leaves: list[Tensor]) -> list[Tensor]:
        """Return the gradient at separate tensors as separate tensors, without a buffer in between."""
        params = self.layout.rebuild(leaves)
        if self.runs is not None:
            params = self._params(self.layout.flatten(params))
        gradient = self._grad(params) if self._grad is not None else self.problem.value_and_grad(params)[1]
        return [self._rows(leaf) for leaf in tensors_of(gradient)]

    def accumulate(self, into: list[Tensor], leaves: list[Tensor], keep: float, weight: float) -> None:
        """Overwrite ``into``, which may be ``leaves`` itself, by keep · into + weight · gradient."""
        if self._accumulate is not None and self.runs is None:
            self._accumulate(self.layout.rebuild(into), self.layout.rebuild(leaves), keep, weight)
            return
        for x, gradient in zip(into, self.gradient(leaves), strict=True):
            x.mul_(keep).add_(gradient, alpha=weight)

    def project(self, flat: Tensor) -> Tensor:
        """Return the nearest feasible buffer; the same one where the problem has no constraint."""
        if self._project is None:
            return flat
        return self._rows(self.layout.flatten(self._project(self._params(flat))))

    def lower_bound(self, flat: Tensor) -> Tensor:
        """Return a bound that no parameters go below, shape (B,); minus infinity without one."""
        if self._lower_bound is None:
            return flat.new_full((len(flat),), -torch.inf)
        return self._rows(self._lower_bound(self._params(flat)))

    def residual(self, flat: Tensor, gradient: Tensor) -> Tensor:
        """Return how far each run is from stationary: ‖∇f‖, or ‖x − project(x − ∇f)‖ under a constraint."""
        if self.projects:
            gradient = flat - self.project(flat - gradient)
        return torch.linalg.vector_norm(gradient, dim=1)

    def _params(self, flat: Tensor) -> Any:
        if self.runs is None:
            return self.layout.params(flat)
        whole = flat.new_zeros(self.layout.batch, self.layout.size)
        whole[self.runs] = flat
        return self.layout.params(whole)

    def _rows(self, x: Tensor) -> Tensor:
        return x if self.runs is None else x[self.runs]


def tensors_of(params: Any) -> list[Tensor]:
    """Return the tensors of a parameter tuple in order, those of nested tuples too, without the Nones.

    Raises:
        ValueError: a field is neither a tensor, a tuple nor None.

    >>> len(tensors_of(((torch.zeros(1), torch.ones(1)), None)))
    2
    """
    if isinstance(params, Tensor):
        return [params]
    if params is None:
        return []
    if not isinstance(params, tuple):
        raise ValueError(f"params must be tuples of tensors (or None), got {type(params).__name__}")
    return [leaf for field in params for leaf in tensors_of(field)]


def _rebuild(template: Any, leaves: Any) -> Any:
    if isinstance(template, Tensor):
        return next(leaves)
    if template is None:
        return None
    fields = [_rebuild(field, leaves) for field in template]
    return type(template)(*fields) if hasattr(template, "_fields") else tuple(fields)
