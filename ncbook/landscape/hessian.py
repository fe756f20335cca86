"""The Hessian of a problem as an operator on flat buffers, by its own product or by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ncbook.protocol import Problem, optional_method
from ncbook.solvers.flat import Layout, tensors_of

__all__ = ["Hessian", "curvature", "flat_direction", "hessian_vector_product", "require_params"]

_CHUNK_BYTES = 2**25  # of the directions that are multiplied at once


def hessian_vector_product(problem: Problem, params: Any, direction: Any) -> Any:
    r"""Return the Hessian of every run applied to its direction.

    .. math:: \left.\frac{d}{d\epsilon} \nabla f(x + \epsilon \Delta)\right|_{\epsilon = 0}
        = \nabla^2 f(x)\, \Delta

    Args:
        problem: a problem; its ``hvp`` is used where it has one, otherwise its ``value`` is differentiated
            twice.
        params: its parameters, B runs.
        direction: the direction Δ, a tuple of the same shapes.

    Returns:
        A tuple of the same shapes.

    Raises:
        ValueError: the shapes differ, an entry is not finite, or ``value`` cannot be differentiated.

    >>> from ncbook.ufm import SquaredLossUFM, UFMParams
    >>> model = SquaredLossUFM(2, 1, 2, 0.1, 0.3)
    >>> origin = UFMParams(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    >>> hessian_vector_product(model, origin, UFMParams(torch.eye(2)[None], torch.eye(2)[None])).W
    tensor([[[-0.4000,  0.0000],
             [ 0.0000, -0.4000]]])
    """
    layout = require_params(params)
    return layout.params(Hessian(problem, params).product(flat_direction(layout, direction, "direction")))


def curvature(problem: Problem, params: Any, direction: Any) -> Tensor:
    r"""Return the second derivative of the objective along a direction, shape (B,).

    .. math:: \nabla^2 f(x)[\Delta, \Delta] = \left.\frac{d^2}{d\epsilon^2} f(x + \epsilon \Delta)
        \right|_{\epsilon = 0}

    The direction is not normalised: divided by ‖Δ‖² this is the Rayleigh quotient.

    Args:
        problem: a problem.
        params: its parameters, B runs.
        direction: the direction Δ, a tuple of the same shapes.

    Raises:
        ValueError: as in :func:`hessian_vector_product`.

    >>> from ncbook.ufm import SquaredLossUFM, UFMParams
    >>> model = SquaredLossUFM(2, 1, 2, 0.1, 0.3)
    >>> origin = UFMParams(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    >>> curvature(model, origin, UFMParams(torch.eye(2)[None], torch.eye(2)[None]))
    tensor([-1.2000])
    """
    layout = require_params(params)
    flat = flat_direction(layout, direction, "direction")
    return (flat * Hessian(problem, params).product(flat)).sum(1)


class Hessian:
    """The Hessians of all runs, as one operator on buffers.

    Args:
        problem: the problem.
        params: the parameters at which it is looked at.
    """

    def __init__(self, problem: Problem, params: Any) -> None:
        self.layout = require_params(params)
        self.problem = problem
        self.flat = self.layout.flatten(params).detach()
        self._take: Callable[..., Any] | None = optional_method(problem, "take")

    @property
    def size(self) -> int:
        """The number of variables P of a run."""
        return self.layout.size

    def product(self, flat: Tensor) -> Tensor:
        """Apply the Hessian of every run to one direction each, (B, P) to (B, P)."""
        return _product(self.problem, self.layout, self.flat, flat)

    def block(self, directions: Tensor) -> Tensor:
        """Apply the Hessian of every run to k directions each, (B, k, P) to (B, k, P)."""
        B, k, P = directions.shape
        if self._take is None:  # the numbers of a run cannot be repeated: one direction after the other
            return torch.stack([self.product(directions[:, i]) for i in range(k)], 1)
        rows = torch.arange(B, device=directions.device).repeat_interleave(k)
        step = max(1, _CHUNK_BYTES // (P * directions.element_size()))
        parts = [
            _product(self._take(index), self.layout, self.flat[index], part)
            for index, part in zip(rows.split(step), directions.flatten(0, 1).split(step), strict=True)
        ]
        return torch.cat(parts).view(B, k, P)

    def dense(self, run: int) -> Tensor:
        """Return the Hessian of one run as a symmetric (P, P) matrix.

        Raises:
            ValueError: the product is not symmetric, so that it is no Hessian.
        """
        identity = torch.eye(self.size, dtype=self.flat.dtype, device=self.flat.device)
        matrix = self.restrict(run).block(identity[None])[0]
        defect, scale = (matrix - matrix.mT).abs().max(), matrix.abs().max()
        if not bool(defect <= torch.finfo(matrix.dtype).eps ** 0.5 * scale):
            raise ValueError(
                f"the hvp of problem must be symmetric, it differs from its transpose by {defect}"
            )
        return (matrix + matrix.mT) / 2

    def restrict(self, run: int) -> Hessian:
        """Return the Hessian of one run alone; of all of them in turn where the problem cannot be divided."""
        index = torch.tensor([run], device=self.flat.device)
        if self._take is not None:
            return Hessian(self._take(index), self.layout_of(index))
        return self if len(self.flat) == 1 else _OneRun(self, run)

    def layout_of(self, index: Tensor) -> Any:
        """Return the parameters of some runs."""
        return self.layout.params(self.flat[index])


class _OneRun(Hessian):
    """One run of a problem that can only be evaluated on its whole batch."""

    def __init__(self, whole: Hessian, run: int) -> None:
        self.layout, self.problem, self.whole, self.run = whole.layout, whole.problem, whole, run
        self.flat, self._take = whole.flat[run : run + 1], None

    def product(self, flat: Tensor) -> Tensor:
        padded = flat.new_zeros(len(self.whole.flat), self.size)
        padded[self.run] = flat[0]
        return self.whole.product(padded)[self.run : self.run + 1]


def require_params(params: Any) -> Layout:
    """Return the layout of parameters that are finite floating-point numbers.

    Raises:
        ValueError: they are not, or they are no batch of tensors.

    >>> require_params((torch.zeros(2, 3),)).size
    3
    """
    layout = Layout(params)
    for leaf in tensors_of(params):
        if not leaf.is_floating_point():
            raise ValueError(f"params must hold floating-point numbers, got {leaf.dtype}")
        if not bool(torch.isfinite(leaf).all()):
            raise ValueError(f"params must be finite, got NaN or infinity in a tensor of {list(leaf.shape)}")
    return layout


def flat_direction(layout: Layout, direction: Any, name: str) -> Tensor:
    """Return a direction as a buffer.

    Raises:
        ValueError: its shapes are not those of the parameters, or an entry is not finite.

    >>> flat_direction(Layout((torch.zeros(1, 2),)), (torch.ones(1, 2),), "direction")
    tensor([[1., 1.]])
    """
    leaves = tensors_of(direction)
    wanted = [torch.Size((layout.batch, *shape)) for shape in layout.shapes]
    if [leaf.shape for leaf in leaves] != wanted:
        raise ValueError(
            f"{name} must have the shapes of params, {[list(shape) for shape in wanted]}, "
            f"got {[list(leaf.shape) for leaf in leaves]}"
        )
    if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return layout.flatten(direction).detach()


def _product(problem: Problem, layout: Layout, at: Tensor, along: Tensor) -> Tensor:
    hvp = optional_method(problem, "hvp")
    if hvp is None:
        return _by_autograd(problem, layout, at, along)
    with torch.no_grad():
        # own tensors: products into views of a buffer are slow, and a problem may work in place
        params, direction = (layout.rebuild(layout.pieces(x)) for x in (at, along))
        return layout.flatten(hvp(params, direction))


def _by_autograd(problem: Problem, layout: Layout, at: Tensor, along: Tensor) -> Tensor:
    """The gradient of ⟨∇f, Δ⟩; the runs do not mix, so that one backward pass serves them all."""
    with torch.enable_grad():
        variable = at.clone().requires_grad_()
        value = problem.value(layout.params(variable)).sum()
        if not value.requires_grad:
            raise ValueError("problem must have an hvp, or a value that autograd can differentiate")
        (gradient,) = torch.autograd.grad(value, variable, create_graph=True, materialize_grads=True)
        if not gradient.requires_grad:  # an objective without curvature
            return torch.zeros_like(at)
        (product,) = torch.autograd.grad((gradient * along).sum(), variable, materialize_grads=True)
    return product.detach()
