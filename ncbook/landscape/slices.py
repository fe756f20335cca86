"""The objective on a plane through a point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncbook import runtime
from ncbook.landscape.hessian import flat_direction, require_params
from ncbook.protocol import Problem, optional_method

__all__ = ["plane_slice"]

_CHUNK_BYTES = 2**25  # of the parameters that are evaluated at once


def plane_slice(problem: Problem, params: Any, first: Any, second: Any, x: Any, y: Any) -> Tensor:
    r"""Return the objective on a grid of a plane through the parameters of every run.

    .. math:: F_{ij} = f(\theta + x_i \Delta_1 + y_j \Delta_2)

    Args:
        problem: a problem.
        params: the point θ, B runs.
        first: the direction Δ₁, a tuple of the same shapes; it is not normalised.
        second: the direction Δ₂, likewise.
        x: the steps along the first direction, (m,).
        y: the steps along the second direction, (n,).

    Returns:
        The values, shape (B, m, n).

    Raises:
        ValueError: the shapes differ, or an array is empty or not finite.

    >>> from ncbook.ufm import SquaredLossUFM, UFMParams
    >>> model = SquaredLossUFM(1, 1, 1, 0.0, 0.0)
    >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> plane_slice(model, UFMParams(zero, zero), UFMParams(one, zero), UFMParams(zero, one), [0, 1], [-1, 1])
    tensor([[[0.5000, 0.5000],
             [2.0000, 0.0000]]])
    """
    layout = require_params(params)
    at = layout.flatten(params).detach()
    along = [flat_direction(layout, first, "first"), flat_direction(layout, second, "second")]
    steps = [_vector(x, "x").to(at), _vector(y, "y").to(at)]
    grid = torch.cartesian_prod(*steps)
    take = optional_method(problem, "take")
    values = []
    with torch.no_grad():
        size = max(1, _CHUNK_BYTES // (at.numel() * at.element_size()))
        for part in grid.split(size if take is not None else 1):
            points = at + part[:, :1, None] * along[0] + part[:, 1:, None] * along[1]
            runs = torch.arange(len(at), device=at.device).repeat(len(part))
            here = problem if take is None else take(runs)
            values.append(here.value(layout.params(points.flatten(0, 1))).view(len(part), len(at)))
    return torch.cat(values).mT.reshape(len(at), len(steps[0]), len(steps[1]))


def _vector(x: Any, name: str) -> Tensor:
    steps = runtime.as_tensor(x, name, runtime.DTYPE)
    if steps.ndim != 1 or steps.numel() == 0:
        raise ValueError(f"{name} must be a vector of at least one step, got shape {list(steps.shape)}")
    return steps
