"""The minimum of the cross-entropy unconstrained features model in closed form."""

from __future__ import annotations

from math import log, nan
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ncbook.frames import orthogonal_frame, simplex_etf
from ncbook.protocol import NoClosedForm, UFMParams
from ncbook.runtime import DTYPE

if TYPE_CHECKING:
    from ncbook.ufm.cross_entropy import CrossEntropyUFM

_BISECTIONS = 100  # each halves a bracket that is at most some 800 wide: rounding is reached by 70


class CrossEntropyMinimum(NamedTuple):
    """The global minimum of ``CrossEntropyUFM``; with (B,) numbers every field has that axis.

    >>> from ncbook.ufm import CrossEntropyUFM
    >>> CrossEntropyUFM(4, 10, 6, 5e-3, 5e-3).minimum().p_correct.round(decimals=6)
    tensor(0.9526, dtype=torch.float64)
    """

    loss: Tensor
    """The least value of the objective."""
    margin: Tensor
    """The margin m, the logit of the own class less that of every other one; 0 where trivial."""
    p_correct: Tensor
    """The probability of the own class; NaN where it differs between classes."""
    norm_W2: Tensor
    """The squared Frobenius norm of the classifier."""
    norm_H2: Tensor
    """The squared Frobenius norm of the features, all N columns."""
    trivial: Tensor
    """Whether W = H = 0 is the minimiser."""
    q: Tensor
    """The effective decay K√(n λ_W λ_H); NaN where the classes are unequal or the classifier is held."""
    p_wrong: Tensor
    """The probability of each other class; NaN where it differs between classes, or for K = 1."""


def closed_form(model: CrossEntropyUFM) -> CrossEntropyMinimum:
    """Return the minimum, or say why there is no formula."""
    if model.classifier is not None:
        return _held_classifier(model)
    lambda_W, lambda_H, alpha = _numbers(model)
    if bool(((lambda_W == 0) | (lambda_H == 0)).any()):
        raise NoClosedForm("with a lambda of 0 the infimum is not attained, or leaves H undetermined")
    if len(set(model.sizes)) > 1:
        return _unequal(model, lambda_W, lambda_H, alpha)
    K, n = model.K, model.sizes[0]
    q = K * (n * lambda_W * lambda_H).sqrt()
    stretch = (K / (K - 1)) ** 0.5 if model.nonnegative and K > 1 else 1.0
    needed = K if model.nonnegative and K > 1 else K - 1
    trivial = (stretch * q >= 1 - alpha) | (K == 1)
    if model.d < needed and not bool((trivial | _bias_serves(model)).all()):
        raise NoClosedForm(
            f"the minimum needs d of at least {needed} for K = {K}"
            f"{' and features that are not negative' if model.nonnegative else ''}, got d = {model.d}"
        )
    p_wrong = torch.where(trivial, 1 / K, (alpha + stretch * q) / K)
    p = 1 - (K - 1) * p_wrong
    margin = torch.where(trivial, 0.0, (p / p_wrong).log())
    loss = (K - 1) * p_wrong * margin - p.log()
    norm_W2 = stretch * (K - 1) * margin * (n * lambda_H / lambda_W).sqrt()
    if K == 1:
        p_wrong = torch.full_like(p_wrong, torch.nan)
    return CrossEntropyMinimum(loss, margin, p, norm_W2, lambda_W / lambda_H * norm_W2, trivial, q, p_wrong)


def closed_minimiser(model: CrossEntropyUFM, seed: int | None) -> UFMParams:
    """Return parameters that attain the closed form."""
    minimum = model.minimum()
    B = 1 if minimum.loss.ndim == 0 else len(minimum.loss)
    norm_W2, norm_H2, margin = (
        x.expand(B)[:, None, None] for x in (minimum.norm_W2, minimum.norm_H2, minimum.margin)
    )
    b = None if model.lambda_b is None else norm_W2.new_zeros(B, model.K)
    N = model.N
    if bool(minimum.trivial.all()) and model.classifier is None:
        if b is not None and len(set(model.sizes)) > 1:
            b += _frequencies(model, _numbers(model)[2]).log()
        return UFMParams(norm_W2.new_zeros(B, model.K, model.d), norm_H2.new_zeros(B, model.d, N), b)
    if model.classifier is not None:
        W = model.classifier - model.classifier.mean(0)
        features = margin * (W / _spread(W)).mT
        W = model.classifier.expand(B, -1, -1).clone()
    elif model.nonnegative and model.d < model.K:
        W, features, b = _one_feature(norm_W2, 2 * norm_H2 / N, margin)
    elif model.nonnegative:
        frame = orthogonal_frame(model.K, model.d)
        rows = simplex_etf(model.K, model.d).mT
        W, features = (norm_W2 / model.K).sqrt() * rows, (norm_H2 / N).sqrt() * frame
    else:
        frame = simplex_etf(model.K, model.d, seed=seed)
        W, features = (norm_W2 / model.K).sqrt() * frame.mT, (norm_H2 / N).sqrt() * frame
    return UFMParams(W, features.repeat_interleave(torch.tensor(model.sizes), dim=2), b)


def _one_feature(norm_W2: Tensor, square: Tensor, margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two classes in one dimension, (B, 1, 1) each: the second has no features, a free bias speaks for it."""
    signs = margin.new_tensor([1.0, -1.0])
    features = square.sqrt() * margin.new_tensor([1.0, 0.0])
    return (norm_W2 / 2).sqrt() * signs[:, None], features, -margin[:, 0] / 2 * signs


def _numbers(model: CrossEntropyUFM) -> list[Tensor]:
    """λ_W, λ_H and α, broadcast over all numbers given for each run."""
    bias = 0.0 if model.lambda_b is None else model.lambda_b
    numbers = [
        torch.as_tensor(x, dtype=DTYPE, device="cpu")
        for x in (model.lambda_W, model.lambda_H, model.smoothing, bias)
    ]
    return list(torch.broadcast_tensors(*numbers)[:3])


def _bias_serves(model: CrossEntropyUFM) -> Tensor:
    """Whether a free bias stands in for one of two orthogonal features, so that d = 1 is enough."""
    free = torch.as_tensor(nan if model.lambda_b is None else model.lambda_b, device="cpu") == 0
    return free & (model.nonnegative and model.K == 2)


def _frequencies(model: CrossEntropyUFM, alpha: Tensor) -> Tensor:
    """The mean target, shape (…, K)."""
    sizes = torch.tensor(model.sizes, dtype=DTYPE)
    return (1 - alpha)[..., None] * sizes / sizes.sum() + alpha[..., None] / model.K


def _unequal(
    model: CrossEntropyUFM, lambda_W: Tensor, lambda_H: Tensor, alpha: Tensor
) -> CrossEntropyMinimum:
    """Unequal classes, where W = H = 0 is certified: ‖∇g‖₂ ≤ √(λ_W λ_H) at the best bias."""
    reason = "for unequal classes a formula is known only where the minimum is trivial"
    if model.lambda_b is not None and (isinstance(model.lambda_b, Tensor) or model.lambda_b > 0):
        raise NoClosedForm(f"{reason}, without bias or with a free one")
    K, sizes = model.K, torch.tensor(model.sizes, dtype=DTYPE)
    P = alpha[..., None] * 0 + 1 / K if model.lambda_b is None else _frequencies(model, alpha)
    Y = (1 - alpha)[..., None, None] * torch.eye(K, dtype=DTYPE) + alpha[..., None, None] / K
    A = (P[..., None] - Y) * sizes.sqrt() / model.N
    if not bool((torch.linalg.matrix_norm(A, 2) <= (lambda_W * lambda_H).sqrt()).all()):
        raise NoClosedForm(f"{reason}, and here it is not")
    zero, unknown = torch.zeros_like(alpha), torch.full_like(alpha, torch.nan)
    loss = -(P * P.log()).sum(-1) if model.lambda_b is not None else zero + log(K)
    p = unknown if model.lambda_b is not None else zero + 1 / K
    return CrossEntropyMinimum(loss, zero, p, zero, zero, zero == 0, unknown, p)


def _held_classifier(model: CrossEntropyUFM) -> CrossEntropyMinimum:
    """A classifier whose centred rows are a simplex frame: a convex problem in the margin alone."""
    assert model.classifier is not None
    lambda_W, lambda_H, alpha = _numbers(model)
    K, N, W = model.K, model.N, model.classifier.cpu()
    centred = W - W.mean(0)
    spread = _spread(centred)  # the squared norm of a row, times K/(K−1)
    frame = spread * (torch.eye(K, dtype=DTYPE) - 1 / K)
    if K == 1 or spread == 0 or float((centred @ centred.mT - frame).abs().max() / spread) > 1e-6:
        raise NoClosedForm("the centred rows of the classifier are no simplex equiangular tight frame")
    if model.nonnegative:
        raise NoClosedForm("no formula is known for a held classifier and features that are not negative")
    if model.lambda_b is not None and len(set(model.sizes)) > 1:
        raise NoClosedForm("no formula is known for a held classifier with a bias and unequal classes")
    if bool((lambda_H == 0).any()):
        raise NoClosedForm("with lambda_H = 0 the infimum is not attained, or leaves H undetermined")
    decay = lambda_H * N * (K - 1) / (K * spread)  # of m²/2
    margin = _scalar_margin(K, decay, alpha)
    p = 1 / (1 + (K - 1) * (-margin).exp())
    loss = ((K - 1) * (-margin).exp()).log1p() + alpha * (K - 1) / K * margin + decay * margin.square() / 2
    norm_W2 = W.square().sum().expand_as(loss)
    norm_H2 = decay * margin.square() / lambda_H
    unknown = torch.full_like(loss, torch.nan)
    trivial = margin == 0
    loss = loss + lambda_W / 2 * norm_W2
    return CrossEntropyMinimum(loss, margin, p, norm_W2, norm_H2, trivial, unknown, (1 - p) / (K - 1))


def _spread(centred: Tensor) -> Tensor:
    """s where the Gram matrix of K centred rows is s (I − J/K)."""
    return centred.square().sum() / max(len(centred) - 1, 1)


def _scalar_margin(K: int, decay: Tensor, alpha: Tensor) -> Tensor:
    """Solve decay · m + (K−1) α/K = (K−1)/(e^m + K−1), whose two sides cross once, by bisection.

    The left side rises and the right side falls, from (K−1)/K at 0: the root is at most (K−1)/(K decay). And
    a root above 1 has decay ≤ decay · m ≤ (K−1) e^{−m}, hence m ≤ log((K−1)/decay).
    """
    low = torch.zeros_like(decay)
    high = torch.minimum(((K - 1) / decay).log().clamp(min=1), (K - 1) / K / decay)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # (K−1)/(e^m + K−1), without overflow
        falls = (K - 1) * (-middle).exp() / (1 + (K - 1) * (-middle).exp())
        below = decay * middle + (K - 1) * alpha / K < falls
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(alpha < 1, (low + high) / 2, 0.0)
