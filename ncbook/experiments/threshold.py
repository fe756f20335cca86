"""The threshold of the squared loss: the singular values of the features, where q crosses one."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ncbook.experiments._registry import Pieces, experiment
from ncbook.solvers import minimise
from ncbook.ufm import SquaredLossUFM

__all__ = ["squared_loss_threshold"]

_SMALL = {"K": 4, "n": 5, "d": 8, "q_max": 1.5, "points": 12, "ratio": 4.0, "seeds": 3}
_LARGE = {"K": 10, "n": 20, "d": 32, "q_max": 1.5, "points": 30, "ratio": 4.0, "seeds": 10}


@experiment(
    "squared-loss-threshold",
    "Singular values of the features at the minimum of the squared loss, as q passes its threshold 1.",
    quick=_SMALL,
    full=_LARGE,
)
def squared_loss_threshold(
    seeds: list[int], K: int, n: int, d: int, q_max: float, points: int, ratio: float
) -> Pieces:
    r"""Minimise the squared loss for a sweep of q and compare the features with the closed form.

    At :math:`q_j = q_\mathrm{max} (j + \tfrac12) / m`, j < m, with :math:`\lambda_W / \lambda_H` fixed,

    .. math:: \lambda_W \lambda_H = \frac{q_j^2}{K^2 n}, \qquad
        s_i(H) = \sqrt{\sqrt{\lambda_W / \lambda_H}\, \sqrt n\, \max(1 - q_j, 0)} .

    Args:
        seeds: one sweep, a single batch of m runs, is solved from each.
        K: classes.
        n: samples of a class.
        d: dimension of the features.
        q_max: the end of the sweep.
        points: the number m of values of q.
        ratio: λ_W/λ_H.

    Returns:
        ``q``, ``predicted`` and ``predicted_loss`` (m); ``largest``, ``smallest`` (of the min(K, d) leading
        singular values of H) and ``loss`` of each seed (seeds, m); ``converged``, the share of runs that met
        the tolerance.

    Raises:
        ValueError: a size is not positive.

    >>> from ncbook.experiments import run
    >>> results = run("squared-loss-threshold", "quick", points=4, seeds=1).results
    >>> max(abs(s - p) for s, p in zip(results["largest"][0], results["predicted"])) < 1e-4
    True
    """
    if not (points >= 1 and q_max > 0 and ratio > 0):
        raise ValueError(f"points, q_max and ratio must be positive, got {points}, {q_max}, {ratio}")
    q = q_max * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    product = q.square() / (K**2 * n)
    model = SquaredLossUFM(K, n, d, (product * ratio).sqrt(), (product / ratio).sqrt())
    sweeps = []
    for seed in seeds:
        sweep = yield f"seed {seed}", partial(_sweep, model, points, seed)
        sweeps.append(sweep)
    theory = model.minimum()
    return {
        "q": q,
        "predicted": theory.singular_values_H[:, 0],
        "predicted_loss": theory.loss,
        **{key: [sweep[key] for sweep in sweeps] for key in ("largest", "smallest", "loss")},
        "converged": sum(sum(sweep["converged"]) for sweep in sweeps) / (len(seeds) * points),
    }


def _sweep(model: SquaredLossUFM, points: int, seed: int) -> dict[str, Tensor]:
    solution = minimise(model, batch=points, seed=seed)
    leading = torch.linalg.svdvals(solution.params.H)[:, : min(model.K, model.d)]
    largest, smallest = leading[:, 0], leading[:, -1]
    return {"largest": largest, "smallest": smallest, "loss": solution.loss, "converged": solution.converged}
