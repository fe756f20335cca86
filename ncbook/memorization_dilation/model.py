"""The memorization-dilation problem: its frozen clean configuration and its objective, K = 2."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.memorization_dilation.noise import nodes, require_noise, spread_loss
from ncbook.runtime import DTYPE, as_tensor

__all__ = ["CleanConfiguration", "clean_configuration", "objective"]


class CleanConfiguration(NamedTuple):
    """The two-class minimum with non-negative features, in closed form; the fields broadcast.

    The class means are μ_1 = (a, 0) and μ_2 = (0, a) in the plane that they span.

    >>> clean_configuration(0.1, 5e-3, 5e-3).margin
    tensor(2.8047, dtype=torch.float64)
    """

    p_correct: Tensor
    """p, the probability that a clean feature's own class receives."""
    margin: Tensor
    """m = log(p/(1−p)), the logit of the own class less that of the other; 0 where the minimum is trivial."""
    length: Tensor
    """a = ‖μ_1‖ = ‖μ_2‖."""
    distance: Tensor
    """D = ‖μ_1 − μ_2‖ = √2 a."""
    weight_distance: Tensor
    """‖w_1 − w_2‖ = 2m/D."""
    curvature: Tensor
    """F_2, the coefficient of r² in the loss of clean features with noise of mean square r²."""
    loss: Tensor
    """The minimum of the objective."""
    trivial: Tensor
    """Whether the minimum is zero features and zero weights (bool)."""


def clean_configuration(smoothing: Any, lambda_W: Any, lambda_H: Any) -> CleanConfiguration:
    r"""Return the minimum of the layer-peeled model with features H ≥ 0, K = 2 and n = 1.

    .. math::
        1 - p = \tfrac{\alpha}{2} + \sqrt{2\lambda_W\lambda_H}, \quad m = \log\frac{p}{1-p}, \quad
        \|\mu_k\|^2 = m\sqrt{\frac{\lambda_W}{2\lambda_H}}, \quad \|w_1 - w_2\|\,D = 2m .

    For n samples a class replace λ_H by nλ_H in the first formula and keep the second in terms of nλ_H too.

    Args:
        smoothing: α in [0, 1); cross-entropy is 0.
        lambda_W: positive decay of the classifier, any shape that broadcasts with the others.
        lambda_H: positive decay of the features.

    Raises:
        ValueError: an argument is out of its range, or the shapes do not broadcast.

    Source: derived in the chapter on the memorization-dilation model of this book.

    >>> clean = clean_configuration([0.0, 0.1], 1e-2, 1e-3)
    >>> [round(float(value), 12) for value in clean.loss]
    [0.02865588076, 0.211478341589]
    """
    alpha, lam_W, lam_H = broadcast(smoothing=smoothing, lambda_W=lambda_W, lambda_H=lambda_H)
    beta = torch.sqrt(2 * lam_W) * torch.sqrt(lam_H)
    wrong = alpha / 2 + beta  # 1 − p where there is a minimum other than zero
    trivial = wrong >= 0.5
    wrong = torch.where(trivial, 0.5, wrong)
    # the quotient overflows for the smallest decays, the difference cancels near the trivial regime
    margin = torch.where(
        wrong < 0.25, torch.log1p(-wrong) - torch.log(wrong), torch.log1p((1 - 2 * wrong) / wrong)
    )
    length = torch.sqrt(margin * torch.sqrt(lam_W / (2 * lam_H)))
    distance = math.sqrt(2) * length
    weight = torch.sqrt(2 * math.sqrt(2) * margin * torch.sqrt(lam_H / lam_W))
    curvature = wrong * (1 - wrong) * weight.square() / 4 + lam_H
    loss = torch.log1p(torch.exp(-margin)) + (alpha / 2 + beta) * margin
    return CleanConfiguration(1 - wrong, margin, length, distance, weight, curvature, loss, trivial)


def objective(
    U: Any, r: Any, eta: Any, smoothing: Any, lambda_W: Any, lambda_H: Any, noise: str = "circle"
) -> Tensor:
    r"""Return the memorization-dilation objective, a convex function of the five variables U and r.

    .. math::
        \tfrac12\sum_k \mathbb E_v\bigl[\ell_\alpha(W(\mu_k+v),k) + \lambda_H\|\mu_k+v\|^2\bigr]
        + \tfrac{\eta}{2}\sum_k\bigl[\ell_\alpha(Wu_k,k) + \lambda_H\|u_k\|^2\bigr],
        \qquad \mathbb E\|v\|^2 = r^2 .

    W and the μ_k are those of :func:`clean_configuration`. The constraints are
    η‖u_1 − μ_2‖ ≤ C_MD r/D, the same for u_2 and μ_1, and U ≥ 0; this function does not look at them.

    Args:
        U: the noisy features, shape (…, 2, 2); row k is u_k in the coordinates of the plane of the means.
        r: the radius of dilation, at least 0, shape (…).
        eta: the fraction of wrong labels, in [0, 1].
        smoothing: α in [0, 1).
        lambda_W: positive decay of the classifier.
        lambda_H: positive decay of the features.
        noise: one of :data:`~ncbook.memorization_dilation.NOISES`.

    Raises:
        ValueError: an argument is out of its range, the shapes do not broadcast, or the clean minimum is
            trivial.

    Source: the model of Nguyen et al. (2023) in the recalled form of the chapter, halved.

    >>> a = float(clean_configuration(0.1, 1e-2, 1e-3).length)
    >>> value = objective([[a, 0.0], [0.0, a]], 0.0, 0.2, 0.1, 1e-2, 1e-3)
    >>> round(float(value), 6)
    0.246116
    """
    require_noise(noise)
    points = as_tensor(U, "U", DTYPE)
    if points.shape[-2:] != (2, 2):
        raise ValueError(f"U must have shape (…, 2, 2), two features in the plane, got {tuple(points.shape)}")
    named = {"r": r, "eta": eta, "smoothing": smoothing, "lambda_W": lambda_W, "lambda_H": lambda_H}
    radius, rate, alpha, lam_W, lam_H = broadcast(**named)
    clean = nontrivial(alpha, lam_W, lam_H)
    m, a, D = clean.margin, clean.length, clean.distance
    fit = spread_loss(radius / D, m, nodes(noise, float((2 * m * radius / D).max()) if m.numel() else 0.0))
    clean_part = fit + alpha * m / 2 + lam_H * (a.square() + radius.square())
    margins = m[..., None] * (points @ torch.tensor([1.0, -1.0], dtype=DTYPE)) / a[..., None]
    margins = margins * torch.tensor([1.0, -1.0], dtype=DTYPE)  # u_2 is labelled 2
    fits = torch.nn.functional.softplus(-margins) + alpha[..., None] * margins / 2
    noisy_part = (fits + lam_H[..., None] * points.square().sum(-1)).mean(-1)
    return clean_part + rate * noisy_part


_RANGES = {
    "eta": ("a fraction in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    "smoothing": ("in [0, 1)", lambda x: (x >= 0) & (x < 1)),
    "r": ("at least 0", lambda x: x >= 0),
}


def broadcast(**arguments: Any) -> list[Tensor]:
    """Turn named arguments into float64 tensors of one shape, each inside its range (positive by default)."""
    tensors = []
    for name, value in arguments.items():
        tensor = as_tensor(value, name, DTYPE)
        words, inside = _RANGES.get(name, ("positive", lambda x: x > 0))
        good = inside(tensor)
        if not bool(good.all()):
            raise ValueError(f"{name} must be {words}, got {float(tensor[~good].flatten()[0])}")
        tensors.append(tensor)
    try:
        return list(torch.broadcast_tensors(*tensors))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(arguments, tensors, strict=True))
        raise ValueError(f"the arguments must broadcast to one shape, got {shapes}") from None


def nontrivial(alpha: Tensor, lam_W: Tensor, lam_H: Tensor) -> CleanConfiguration:
    """The clean configuration, after a look that its means are apart."""
    clean = clean_configuration(alpha, lam_W, lam_H)
    if bool(clean.trivial.any()):
        at = clean.trivial.flatten().nonzero()[0, 0]
        found = ", ".join(f"{float(x.flatten()[at]):g}" for x in (alpha, lam_W, lam_H))
        raise ValueError(
            "smoothing, lambda_W and lambda_H must satisfy smoothing/2 + sqrt(2 lambda_W lambda_H) < 1/2, "
            f"otherwise the clean features are zero; got {found}"
        )
    return clean
