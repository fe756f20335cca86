"""The unconstrained features model with cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ncbook.protocol import (
    RunNumber,
    UFMParams,
    bias_decay,
    class_sizes,
    common_batch,
    gaussian,
    over_runs,
    require_count,
    run_number,
    take_runs,
)
from ncbook.runtime import DTYPE, as_tensor
from ncbook.ufm._algebra import add_multiple, add_product, decayed, square_norm
from ncbook.ufm._ce_bound import Dual, lower_bound
from ncbook.ufm._ce_minimum import CrossEntropyMinimum, closed_form, closed_minimiser

__all__ = ["CrossEntropyMinimum", "CrossEntropyUFM"]


@dataclass(frozen=True, eq=False)
class CrossEntropyUFM:
    r"""The unconstrained features model with cross-entropy: free classifier, free features, optional bias.

    .. math:: f(W, H, b) = g(WH + b 1^\top) + \frac{\lambda_W}{2} \|W\|_F^2
        + \frac{\lambda_H}{2} \|H\|_F^2 + \frac{\lambda_b}{2} \|b\|^2, \qquad
        g(Z) = -\frac1N \sum_i \langle y_i^{(\alpha)}, \log \mathrm{softmax}(z_i) \rangle

    with the targets :math:`y^{(\alpha)} = (1-\alpha) e_k + (\alpha/K) 1`. The loss is a mean over the N
    samples, the penalty of the features a sum over all N columns. Columns of H are in class order: with equal
    classes, column kn+i is sample i of class k (classes run from 0).

    Args:
        K: the number of classes, at least 1.
        n: the samples of each class, at least 1; None where ``counts`` are given.
        d: the dimension of the features, at least 1.
        lambda_W: the decay of the classifier, a number or a (B,) tensor, not negative.
        lambda_H: the decay of the features, likewise.
        bias: None for no bias, ``"free"`` for one that costs nothing, or λ_b, a number or a (B,) tensor; 0
            means the same as ``"free"``.
        smoothing: the label smoothing α between 0 and 1, a number or a (B,) tensor.
        nonnegative: whether the features are held at H ≥ 0; the model then has a method ``project``.
        counts: the samples of each class, K positive integers, or None where ``n`` is given.
        classifier: a matrix (K, d) at which W is held. W is still a field of the parameters, where it must
            equal this matrix; its gradient is zero. The constant (λ_W/2)‖W‖² remains in the objective: give
            λ_W = 0 to leave it out.

    Raises:
        ValueError: a size is no positive integer, a decay is negative or not finite, the smoothing is not in
            [0, 1], the classifier is not (K, d), or the B disagree.

    Source: Zhu et al. (2021).

    >>> from ncbook.solvers import minimise
    >>> model = CrossEntropyUFM(K=4, n=5, d=8, lambda_W=5e-3, lambda_H=5e-3)
    >>> solution = minimise(model, batch=3)
    >>> bool((solution.loss - model.minimum().loss).abs().max() < 1e-12)
    True
    """

    K: int
    n: int | None
    d: int
    lambda_W: RunNumber
    lambda_H: RunNumber
    bias: Any = "free"
    smoothing: RunNumber = 0.0
    nonnegative: bool = False
    counts: tuple[int, ...] | None = None
    classifier: Tensor | None = None
    lambda_b: RunNumber | None = field(init=False, repr=False)
    """The decay of the bias: None without a bias, 0 for a free one."""
    sizes: tuple[int, ...] = field(init=False, repr=False)
    """The samples of each class, also where ``n`` was given."""
    _batch: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = class_sizes(require_count(self.K, "K"), self.n, self.counts)
        decay = bias_decay(self.bias)
        checked: dict[str, Any] = {
            "K": int(self.K),
            "n": sizes[0] if self.counts is None else None,
            "d": require_count(self.d, "d"),
            "lambda_W": run_number(self.lambda_W, "lambda_W"),
            "lambda_H": run_number(self.lambda_H, "lambda_H"),
            "lambda_b": decay,
            "bias": decay if isinstance(decay, Tensor) or decay else None if decay is None else "free",
            "smoothing": _smoothing(self.smoothing),
            "counts": None if self.counts is None else sizes,
            "sizes": sizes,
        }
        if not isinstance(self.nonnegative, bool):
            raise ValueError(f"nonnegative must be True or False, got {self.nonnegative!r}")
        if self.classifier is not None:
            checked["classifier"] = _classifier(self.classifier, self.K, self.d)
        numbers = {name: checked[name] for name in ("lambda_W", "lambda_H", "smoothing")}
        checked["_batch"] = common_batch(**numbers, bias=0.0 if decay is None else decay)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def N(self) -> int:
        """The number of all samples."""
        return sum(self.sizes)

    @property
    def project(self) -> Callable[[UFMParams], UFMParams] | None:
        """The projection on H ≥ 0 of a model with ``nonnegative=True``, else None."""
        return _nonnegative if self.nonnegative else None

    def init(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        scale: float = 1.0,
        dtype: torch.dtype = DTYPE,
        device: torch.device | str | None = None,
    ) -> UFMParams:
        """Draw W and H with entries N(0, scale²/d) and b with entries N(0, scale²).

        With non-negative features the absolute values are taken; a given classifier stands in for W.

        Args:
            batch: the number of runs B.
            generator: the source of randomness.
            scale: the norm of a feature, about.
            dtype: the type of the parameters.
            device: where they shall live; the generator's device when None.

        Raises:
            ValueError: ``batch`` is not the B of the numbers given for each run.
        """
        if self._batch not in (None, batch):
            raise ValueError(f"batch must be {self._batch}, the number of lambdas, got {batch}")
        deviation = scale / self.d**0.5
        W = gaussian((batch, self.K, self.d), deviation, generator, dtype, device)
        H = gaussian((batch, self.d, self.N), deviation, generator, dtype, device)
        if self.nonnegative:
            H = H.abs()
        if self.classifier is not None:
            W = self.classifier.to(W).expand_as(W).clone()
        if self.lambda_b is None:
            return UFMParams(W, H)
        return UFMParams(W, H, gaussian((batch, self.K), scale, generator, dtype, device))

    def logits(self, params: UFMParams) -> Tensor:
        """Return the logits WH + b1ᵀ, shape (B, K, N)."""
        W, H, b = self._checked(params)
        Z = torch.bmm(W, H)
        return Z if b is None else Z.add_(b[:, :, None])

    def value(self, params: UFMParams) -> Tensor:
        """Return the objective of each run, shape (B,)."""
        return self._value(params, self.logits(params).log_softmax(-2))

    def grad(self, params: UFMParams) -> UFMParams:
        r"""Return the gradient, with the softmax P of the logits' columns and the targets Y.

        .. math:: \nabla_W f = \tfrac1N (P - Y) H^\top + \lambda_W W, \qquad
            \nabla_H f = \tfrac1N W^\top (P - Y) + \lambda_H H, \qquad
            \nabla_b f = \tfrac1N (P - Y) 1 + \lambda_b b
        """
        return self._gradient(params, self._residual(self.logits(params).softmax(-2)))

    def value_and_grad(self, params: UFMParams) -> tuple[Tensor, UFMParams]:
        """Return the objective of each run, shape (B,), and the gradient of :meth:`grad`."""
        log_P = self.logits(params).log_softmax(-2)
        value = self._value(params, log_P)
        return value, self._gradient(params, self._residual(log_P.exp_()))

    def accumulate_grad(self, into: UFMParams, params: UFMParams, keep: float, weight: float) -> None:
        """Overwrite ``into``, which may be ``params`` itself, by keep · into + weight · gradient.

        A step of gradient descent on H, the large tensor, is then a single matrix product in place.
        """
        W, H, b = params
        G = self._residual(self.logits(params).softmax(-2))
        share, held = weight / self.N, self.classifier is not None
        if into.b is not None and b is not None and self.lambda_b is not None:
            decay = weight * over_runs(self.lambda_b, b)
            if into.b is b:
                b.mul_(keep + decay)
            else:
                add_multiple(into.b.mul_(keep), b, decay)
            into.b.add_(G.sum(-1), alpha=share)
        if into.H is H:
            old = W if held else decayed(W, keep + weight * self.lambda_W, G, H.mT, share)
            add_product(H, keep + weight * over_runs(self.lambda_H, H), W.mT, G, share)
            W.mul_(keep) if held else W.copy_(old)
            return
        add_product(into.H, keep, W.mT, G, share)
        add_multiple(into.H, H, weight * over_runs(self.lambda_H, H))
        if held:
            into.W.mul_(keep)
            return
        add_product(into.W, keep, G, H.mT, share)
        add_multiple(into.W, W, weight * over_runs(self.lambda_W, W))

    def hvp(self, params: UFMParams, direction: UFMParams) -> UFMParams:
        r"""Return the Hessian applied to the direction (V, U, c).

        With G = (P − Y)/N, :math:`\dot Z = VH + WU + c 1^\top` and
        :math:`\dot G = (P \circ \dot Z - P \,\mathrm{diag}(1^\top (P \circ \dot Z)))/N`,

        .. math:: \dot G H^\top + G U^\top + \lambda_W V, \qquad
            W^\top \dot G + V^\top G + \lambda_H U, \qquad \dot G 1 + \lambda_b c

        Where the classifier is held, V counts as zero and so does its part of the result.
        """
        (W, H, _), (V, U, c) = params, direction
        P = self.logits(params).softmax(-2)
        Z_dot = torch.bmm(W, U)
        if self.classifier is None:
            Z_dot.baddbmm_(V, H)
        if self.lambda_b is not None and c is not None:
            Z_dot.add_(c[:, :, None])
        moved = P * Z_dot
        G_dot = moved.sub_(P * moved.sum(-2, keepdim=True)).div_(self.N)
        G = self._residual(P).div_(self.N)
        along_H = decayed(U, self.lambda_H, W.mT, G_dot, 1.0)
        along_b = None
        if self.lambda_b is not None and c is not None:
            along_b = G_dot.sum(-1) + over_runs(self.lambda_b, c) * c
        if self.classifier is not None:
            return UFMParams(torch.zeros_like(W), along_H, along_b)
        along_W = decayed(V, self.lambda_W, G_dot, H.mT, 1.0).baddbmm_(G, U.mT)
        return UFMParams(along_W, along_H.baddbmm_(V.mT, G), along_b)

    def logit_gradient(self, params: UFMParams) -> Tensor:
        """Return ∇g = (P − Y)/N, the gradient of the mean loss in the logits, shape (B, K, N)."""
        return self._residual(self.logits(params).softmax(-2)).div_(self.N)

    def take(self, index: Tensor) -> CrossEntropyUFM:
        """Return the same problem for some runs of the batch, its (B,) numbers on the device of ``index``."""
        if self._batch is None:
            return self
        return replace(
            self,
            lambda_W=take_runs(self.lambda_W, index),
            lambda_H=take_runs(self.lambda_H, index),
            smoothing=take_runs(self.smoothing, index),
            bias=take_runs(self.bias, index),
        )

    def lower_bound(self, params: UFMParams) -> Tensor:
        r"""Return a bound that no parameters go below, the value of a dual problem; shape (B,).

        For every P with columns in the probability simplex, and A = (P − Y)/N,

        .. math:: g(Z) \ge \frac1N \sum_i \mathrm{entropy}(p_i) + \langle A, Z \rangle ,

        and where :math:`\|A\|_2 \le \sqrt{\lambda_W \lambda_H}` the penalties of W and H outweigh
        :math:`\langle A, WH \rangle`. So the mean entropy, less :math:`\|A1\|^2/(2\lambda_b)`, is a lower
        bound (a free bias asks for A1 = 0; without a bias there is no such term). P is made from the class
        means of the softmax, with singular values of A moved to the limit.

        The bound knows nothing of the rank: it is reached at the global minimum where d ≥ K−1, of any class
        sizes, bias and smoothing, and stays below it where d < K−1. With H ≥ 0 the condition on A is another,
        a sufficient one, met with equality at the balanced minimum where d ≥ K. Where the classifier is held,
        the penalty of H takes :math:`\|W^\top A\|_F^2 / (2 \lambda_H)` away instead, and the bound is reached
        for every d. A run that is not finite has the bound NaN.
        """
        P = self.logits(params).softmax(-2).to(DTYPE)
        return lower_bound(P, self._dual(P.device)).to(params.H.dtype)

    def minimum(self) -> CrossEntropyMinimum:
        r"""Return the global minimum, decided by :math:`q = K\sqrt{n \lambda_W \lambda_H}`.

        With K balanced classes, d ≥ K−1 and q < 1−α, every wrong class has the probability (α+q)/K, and with
        p = 1 − (K−1)(α+q)/K

        .. math:: m = \log \frac{(K-1) p}{1 - p}, \qquad
            \min f = \log(1 + (K-1) e^{-m}) + (1-p) m, \qquad
            \|W\|_F^2 = (K-1) m \sqrt{n \lambda_H / \lambda_W} ;

        for q ≥ 1−α zero is the only minimiser (up to the bias), also where d < K−1. With H ≥ 0 and d ≥ K the
        same holds with :math:`q \sqrt{K/(K-1)}` in place of q; for K = 2 and a free bias d = 1 is enough.
        With a classifier whose centred rows form a simplex equiangular tight frame, m solves a convex scalar
        equation. For unequal classes the minimum is returned where it is trivial.

        Raises:
            NoClosedForm: no formula is known; the message says why.

        Source: this book, after Zhu et al. (2021).

        >>> model = CrossEntropyUFM(3, 10, 5, 5e-3, 5e-3)
        >>> model.minimum().margin.round(decimals=6)
        tensor(4.1149, dtype=torch.float64)
        """
        return closed_form(self)

    def minimiser(self, seed: int | None = None) -> UFMParams:
        """Return parameters that attain :meth:`minimum`, built from frames; B = 1 if no number has a batch.

        Args:
            seed: rotates the features at random (where they may be); None takes the canonical frame.

        Raises:
            NoClosedForm: as :meth:`minimum`, or where the frame does not fit into d dimensions.
        """
        return closed_minimiser(self, seed)

    def _checked(self, params: UFMParams) -> UFMParams:
        W = params.W
        shapes = [None if x is None else tuple(x.shape) for x in params]
        B = len(W)
        bias = None if self.lambda_b is None else (B, self.K)
        if shapes != [(B, self.K, self.d), (B, self.d, self.N), bias]:
            wanted = "no bias" if self.lambda_b is None else f"b (B, {self.K})"
            raise ValueError(
                f"params must be W (B, {self.K}, {self.d}), H (B, {self.d}, {self.N}) and {wanted}, "
                f"got {[None if shape is None else list(shape) for shape in shapes]}"
            )
        if self._batch not in (None, B):
            raise ValueError(f"params must hold {self._batch} runs, one for each lambda, got {B}")
        if self.classifier is not None and not bool((W == self.classifier.to(W)).all()):
            raise ValueError("params.W must be the classifier that the model holds W at, got another matrix")
        return params

    def _residual(self, P: Tensor) -> Tensor:
        """P − Y in the memory of P."""
        if not isinstance(self.smoothing, Tensor):
            return P.sub_(targets(self.sizes, self.smoothing, P.dtype, P.device))
        Y = targets(self.sizes, 0.0, P.dtype, P.device)
        return P.sub_(Y).addcmul_(over_runs(self.smoothing, P), Y - 1 / self.K)  # type: ignore[arg-type]

    def _value(self, params: UFMParams, log_P: Tensor) -> Tensor:
        flat = log_P.flatten(1)
        shared = 0.0 if isinstance(self.smoothing, Tensor) else self.smoothing
        fit = flat @ targets(self.sizes, shared, flat.dtype, flat.device).flatten() / -self.N
        if isinstance(self.smoothing, Tensor):
            fit = fit + self.smoothing.to(fit) * (flat.mean(1) * -1 - fit)
        penalty = over_runs(self.lambda_W, fit) * square_norm(params.W)
        penalty = penalty + over_runs(self.lambda_H, fit) * square_norm(params.H)
        if self.lambda_b is not None and params.b is not None:
            penalty = penalty + over_runs(self.lambda_b, fit) * params.b.square().sum(-1)
        return fit + penalty / 2

    def _gradient(self, params: UFMParams, G: Tensor) -> UFMParams:
        W, H, b = params
        along_H = decayed(H, self.lambda_H, W.mT, G, 1 / self.N)
        along_b = None
        if self.lambda_b is not None and b is not None:
            along_b = G.sum(-1).div_(self.N).add_(over_runs(self.lambda_b, b) * b)
        if self.classifier is not None:
            return UFMParams(torch.zeros_like(W), along_H, along_b)
        return UFMParams(decayed(W, self.lambda_W, G, H.mT, 1 / self.N), along_H, along_b)

    def _dual(self, device: torch.device) -> Dual:
        return Dual(
            sizes=torch.tensor(self.sizes, dtype=DTYPE, device=device),
            lambda_W=torch.as_tensor(self.lambda_W, dtype=DTYPE, device=device),
            lambda_H=torch.as_tensor(self.lambda_H, dtype=DTYPE, device=device),
            lambda_b=None
            if self.lambda_b is None
            else torch.as_tensor(self.lambda_b, dtype=DTYPE, device=device),
            smoothing=torch.as_tensor(self.smoothing, dtype=DTYPE, device=device),
            nonnegative=self.nonnegative,
            classifier=None if self.classifier is None else self.classifier.to(device),
        )


@lru_cache(maxsize=32)
def targets(sizes: tuple[int, ...], smoothing: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The smoothed one-hot labels of all samples, shape (K, N); kept, because every step needs them."""
    K = len(sizes)
    Y = torch.eye(K, dtype=DTYPE).repeat_interleave(torch.tensor(sizes), dim=1)
    return ((1 - smoothing) * Y + smoothing / K).to(dtype=dtype, device=device)


def _smoothing(x: Any) -> RunNumber:
    smoothing = run_number(x, "smoothing")
    largest = smoothing.max().item() if isinstance(smoothing, Tensor) else smoothing
    if largest > 1:
        raise ValueError(f"smoothing must lie between 0 and 1, got {largest}")
    return smoothing


def _classifier(x: Any, K: int, d: int) -> Tensor:
    classifier = as_tensor(x, "classifier", DTYPE).detach()
    if classifier.shape != (K, d):
        raise ValueError(f"classifier must be of shape (K, d) = ({K}, {d}), got {list(classifier.shape)}")
    return classifier


def _nonnegative(params: UFMParams) -> UFMParams:
    return params._replace(H=params.H.clamp(min=0))
