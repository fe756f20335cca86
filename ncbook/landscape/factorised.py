"""Problems whose logits are a product WH (plus a bias): the certificate and the direction of escape."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.landscape.hessian import require_params
from ncbook.protocol import Problem, optional_method

__all__ = ["Escape", "certificate", "escape_direction"]


class Escape(NamedTuple):
    """A direction along which the objective is not convex, with what theory says of it.

    >>> Escape._fields
    ('direction', 'curvature', 'eigenvalue')
    """

    direction: Any
    """The direction Δ, parameters; its bias is zero."""
    curvature: Tensor
    """The predicted second derivative along Δ (not divided by ‖Δ‖²), shape (B,)."""
    eigenvalue: Tensor
    """The predicted eigenvalue of the Hessian in the plane of Δ, shape (B,)."""


def certificate(problem: Problem, params: Any) -> Tensor:
    r"""Return how large the gradient in the logits is, against what the penalties can balance.

    .. math:: \frac{\|\nabla g(Z)\|_2}{\sqrt{\lambda_W \lambda_H}}, \qquad
        f = g(WH + b 1^\top) + \frac{\lambda_W}{2} \|W\|_F^2 + \frac{\lambda_H}{2} \|H\|_F^2 + \dots

    with the largest singular value of the K × N matrix ∇g. If g is convex and the parameters are a
    *critical point* of f, a ratio of at most 1 proves that they are a global minimum, whatever the dimension
    d. With d ≥ K − 1 dimensions (for cross-entropy) a larger ratio proves that they are not. Elsewhere than
    at a critical point the ratio proves nothing.

    Args:
        problem: a problem with ``logit_gradient(params) -> (B, K, N)``, ``lambda_W`` and ``lambda_H``, and
            without constraint.
        params: its parameters, B runs.

    Returns:
        The ratio of each run, shape (B,).

    Raises:
        ValueError: the problem lacks one of these or has a constraint, a lambda is not positive, or the
            parameters are not finite.

    Source: the certificate of the convex counterpart in Zhu et al. (2021).

    >>> from ncbook.ufm import SquaredLossUFM
    >>> from ncbook.solvers import minimise
    >>> class Certified(SquaredLossUFM):
    ...     def logit_gradient(self, params):
    ...         return (params.W @ params.H - torch.eye(2).repeat_interleave(3, 1)) / 6
    >>> model = Certified(2, 3, 4, 0.1, 0.1)
    >>> certificate(model, minimise(model).params).round(decimals=6)
    tensor([1.], dtype=torch.float64)
    """
    require_params(params)
    decay_W, decay_H = _decays(problem, params.W)
    return _steepest(problem, params)[0] / (decay_W * decay_H).sqrt()


def escape_direction(problem: Problem, params: Any, *, rank_tol: float = 1e-6) -> Escape:
    r"""Return the direction that leads down from every critical point that is not certified.

    With the top singular pair :math:`\nabla g\, v = \sigma u` and a unit vector a, :math:`Wa = 0` and
    :math:`H^\top a = 0`,

    .. math:: \Delta W = (\lambda_H/\lambda_W)^{1/4}\, u a^\top, \qquad
        \Delta H = -(\lambda_W/\lambda_H)^{1/4}\, a v^\top, \qquad \Delta b = 0 .

    The logits do not change to first order, which leaves the curvature
    :math:`-2(\sigma - \sqrt{\lambda_W \lambda_H})`. The plane of :math:`u a^\top` and :math:`a v^\top` is
    invariant under the Hessian, where u ⊥ range W and v ⊥ range Hᵀ, as at a critical point with
    :math:`\sigma > \sqrt{\lambda_W\lambda_H}`; it then holds the eigenvalue

    .. math:: \frac{\lambda_W + \lambda_H}{2}
        - \sqrt{\Bigl(\frac{\lambda_W - \lambda_H}{2}\Bigr)^2 + \sigma^2} .

    Args:
        problem: as in :func:`certificate`.
        params: its parameters, (W (B, K, d), H (B, d, N), b), with b or without.
        rank_tol: how small ‖Wa‖ must be against the larger of ‖W‖₂ and ‖ΔW‖, and ‖Hᵀa‖ against that of
            ‖H‖₂ and ‖ΔH‖, so that matrices pass which are zero up to rounding.

    Raises:
        ValueError: as in :func:`certificate`, or there is no vector a: the features use all d dimensions.

    Source: the direction of Zhu et al. (2021); the exact eigenvalue, this book.

    >>> from ncbook.ufm import SquaredLossUFM, UFMParams
    >>> class Certified(SquaredLossUFM):
    ...     def logit_gradient(self, params):
    ...         return (params.W @ params.H - torch.eye(2).repeat_interleave(3, 1)) / 6
    >>> origin = UFMParams(torch.zeros(1, 2, 4), torch.zeros(1, 4, 6))
    >>> escape_direction(Certified(2, 3, 4, 0.1, 0.1), origin).eigenvalue  # 0.1 − 1/(K√n)
    tensor([-0.1887])
    """
    require_params(params)
    decay_W, decay_H = _decays(problem, params.W)
    sigma, u, v = _steepest(problem, params)
    balance = (decay_H / decay_W) ** 0.25 * torch.ones_like(sigma)
    a = _unused_direction(params.W, params.H, balance, rank_tol)
    changes = {
        "W": balance[:, None, None] * u[:, :, None] * a[:, None, :],
        "H": -a[:, :, None] * v[:, None, :] / balance[:, None, None],
    }
    if getattr(params, "b", None) is not None:
        changes["b"] = torch.zeros_like(params.b)
    eigenvalue = (decay_W + decay_H) / 2 - (((decay_W - decay_H) / 2) ** 2 + sigma**2).sqrt()
    return Escape(params._replace(**changes), -2 * (sigma - (decay_W * decay_H).sqrt()), eigenvalue)


def _decays(problem: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    if optional_method(problem, "project") is not None or getattr(problem, "classifier", None) is not None:
        raise ValueError("problem must be unconstrained, both W and H free: otherwise nothing is certified")
    numbers = []
    for name in ("lambda_W", "lambda_H"):
        if getattr(problem, name, None) is None:
            raise ValueError(f"problem must have {name}, {type(problem).__name__} has none")
        number = torch.as_tensor(getattr(problem, name), dtype=like.dtype, device=like.device)
        if not bool((number > 0).all()):
            raise ValueError(f"{name} must be positive for a certificate, got {number.min().item()}")
        numbers.append(number)
    return numbers[0], numbers[1]


def _steepest(problem: Any, params: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular value (B,) of ∇g and its singular vectors, (B, K) and (B, N)."""
    logit_gradient = optional_method(problem, "logit_gradient")
    if logit_gradient is None:
        raise ValueError(f"problem must have logit_gradient(params), {type(problem).__name__} has none")
    with torch.no_grad():
        U, s, Vh = torch.linalg.svd(logit_gradient(params), full_matrices=False)
    return s[:, 0], U[:, :, 0], Vh[:, 0]


def _unused_direction(W: Tensor, H: Tensor, balance: Tensor, rank_tol: float) -> Tensor:
    """A unit vector (B, d) that W and Hᵀ both send to zero: the last of their common singular vectors."""
    if not (math.isfinite(rank_tol) and rank_tol > 0):
        raise ValueError(f"rank_tol must be a positive number, got {rank_tol!r}")
    units = [
        torch.maximum(torch.linalg.matrix_norm(x, ord=2), step)[:, None, None]
        for x, step in ((W, balance), (H, 1 / balance))
    ]
    d = W.shape[2]
    stacked = torch.cat([W / units[0], H.mT / units[1], W.new_zeros(len(W), d, d)], 1)
    _, s, Vh = torch.linalg.svd(stacked, full_matrices=False)
    full = torch.nonzero(s[:, -1] > rank_tol).flatten().tolist()
    if full:
        raise ValueError(
            f"params must leave a direction of the {d} dimensions unused, runs {full} use all: the smallest "
            f"relative singular values are {s[full, -1].tolist()}"
        )
    return Vh[:, -1]
