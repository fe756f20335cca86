"""The unconstrained features model with squared loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ncbook.frames import haar_orthogonal
from ncbook.protocol import (
    NoClosedForm,
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
from ncbook.runtime import DTYPE
from ncbook.ufm._algebra import add_multiple, add_product, class_labels, decayed, square_norm
from ncbook.ufm._squared_theory import (
    SquaredLossMinimum,
    attain,
    attain_nonnegative,
    closed_form,
    dual_bound,
    nonnegative_form,
)

__all__ = ["SquaredLossMinimum", "SquaredLossUFM"]


@dataclass(frozen=True, eq=False)
class SquaredLossUFM:
    r"""The unconstrained features model with squared loss, K classes of any sizes, with or without a bias.

    .. math:: f(W, H, b) = \frac{1}{2N} \|WH + b1^\top - Y\|_F^2 + \frac{\lambda_W}{2} \|W\|_F^2
        + \frac{\lambda_H}{2} \|H\|_F^2 + \frac{\lambda_b}{2} \|b\|^2

    Y holds the one-hot labels of the N samples, all of class 0, then those of class 1, and so on.

    Args:
        K: the number of classes, at least 1.
        n: the samples of each class, at least 1; None where ``counts`` are given.
        d: the dimension of the features, at least 1; too few leave directions of the labels unfitted.
        lambda_W: the decay of the classifier, a number or a (B,) tensor, not negative.
        lambda_H: the decay of the features (the sum over all N columns), likewise.
        bias: None for no bias, ``"free"`` for one that costs nothing, or its decay λ_b, a number or a (B,)
            tensor; 0 means the same as ``"free"``.
        counts: the samples of each class, K positive integers, or None.
        nonnegative: whether H is constrained to non-negative entries; the problem then has ``project``.

    Raises:
        ValueError: a size is no positive integer, both or neither of n and counts are given, a decay is
            negative or not finite, or the B disagree.

    Source: Tirer and Bruna (2022) without bias and with a free one; Dang et al. (2023) for unequal classes.

    >>> from ncbook.solvers import minimise
    >>> model = SquaredLossUFM(K=4, n=5, d=8, lambda_W=5e-3, lambda_H=5e-3)
    >>> solution = minimise(model, batch=3)
    >>> bool((solution.loss - model.minimum().loss).abs().max() < 1e-12)
    True
    """

    K: int
    n: int | None
    d: int
    lambda_W: RunNumber
    lambda_H: RunNumber
    bias: Any = None
    counts: Any = None
    nonnegative: bool = False
    lambda_b: RunNumber | None = field(init=False, repr=False)
    """The decay of the bias, 0 where it is free, None where there is none."""
    sizes: tuple[int, ...] = field(init=False, repr=False)
    """The samples of each class."""
    N: int = field(init=False, repr=False)
    """The number of all samples."""
    _batch: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("K", "d"):
            put(name, require_count(getattr(self, name), name))
        put("sizes", class_sizes(self.K, self.n, self.counts))
        put("N", sum(self.sizes))
        if self.counts is None:
            put("n", self.sizes[0])
        else:
            put("counts", self.sizes)
        for name in ("lambda_W", "lambda_H"):
            put(name, run_number(getattr(self, name), name))
        put("lambda_b", bias_decay(self.bias))
        if not isinstance(self.nonnegative, bool):
            raise ValueError(f"nonnegative must be True or False, got {self.nonnegative!r}")
        bias = 0.0 if self.lambda_b is None else self.lambda_b
        put("_batch", common_batch(lambda_W=self.lambda_W, lambda_H=self.lambda_H, bias=bias))

    def init(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        scale: float = 1.0,
        dtype: torch.dtype = DTYPE,
        device: torch.device | str | None = None,
    ) -> UFMParams:
        """Draw W, H and b with independent entries N(0, scale²/d): a feature has norm about ``scale``.

        Under a constraint the absolute values of H are kept. The draws of W and H are those without a bias.

        Args:
            batch: the number of runs B.
            generator: the source of randomness.
            scale: the standard deviation times √d.
            dtype: the type of the parameters.
            device: where they shall live; the generator's device when None.

        Raises:
            ValueError: ``batch`` is not the B of the lambdas.
        """
        if self._batch not in (None, batch):
            raise ValueError(f"batch must be {self._batch}, the number of lambdas, got {batch}")
        deviation = scale / self.d**0.5
        W = gaussian((batch, self.K, self.d), deviation, generator, dtype, device)
        H = gaussian((batch, self.d, self.N), deviation, generator, dtype, device)
        if self.nonnegative:
            H.abs_()
        if self.lambda_b is None:
            return UFMParams(W, H)
        return UFMParams(W, H, gaussian((batch, self.K), deviation, generator, dtype, device))

    def value(self, params: UFMParams) -> Tensor:
        """Return the objective of each run, shape (B,)."""
        return self._value(params, self._residual(params))

    def grad(self, params: UFMParams) -> UFMParams:
        r"""Return the gradient, with the residual R = WH + b1ᵀ − Y.

        .. math:: \nabla_W f = \tfrac1N R H^\top + \lambda_W W, \qquad
            \nabla_H f = \tfrac1N W^\top R + \lambda_H H, \qquad \nabla_b f = \tfrac1N R 1 + \lambda_b b
        """
        return self._gradient(params, self._residual(params))

    def value_and_grad(self, params: UFMParams) -> tuple[Tensor, UFMParams]:
        """Return the objective of each run, shape (B,), and the gradient of :meth:`grad`."""
        residual = self._residual(params)
        return self._value(params, residual), self._gradient(params, residual)

    def accumulate_grad(self, into: UFMParams, params: UFMParams, keep: float, weight: float) -> None:
        """Overwrite ``into``, which may be ``params`` itself, by keep · into + weight · gradient.

        A step of gradient descent on H, the large tensor, is then a single matrix product in place.
        """
        W, H, b = params
        residual = self._residual(params)
        if b is not None and into.b is not None:
            gradient = self._bias_gradient(b, residual)  # from the old b
            into.b.mul_(keep).add_(gradient, alpha=weight)
        if into.H is H:
            new_W = decayed(
                W, keep + weight * self.lambda_W, residual, H.mT, weight / self.N
            )  # from the old H
            add_product(H, keep + weight * over_runs(self.lambda_H, H), W.mT, residual, weight / self.N)
            W.copy_(new_W)
            return
        for x, at, decay, left, right in (
            (into.W, W, self.lambda_W, residual, H.mT),
            (into.H, H, self.lambda_H, W.mT, residual),
        ):
            add_product(x, keep, left, right, weight / self.N)
            add_multiple(x, at, weight * over_runs(decay, at))

    def hvp(self, params: UFMParams, direction: UFMParams) -> UFMParams:
        r"""Return the Hessian applied to the direction (V, U, β).

        .. math:: \dot R = VH + WU + \beta 1^\top, \qquad
            \tfrac1N (\dot R H^\top + R U^\top) + \lambda_W V, \qquad
            \tfrac1N (W^\top \dot R + V^\top R) + \lambda_H U, \qquad
            \tfrac1N \dot R 1 + \lambda_b \beta
        """
        W, H, _ = params
        V, U, beta = direction
        R = self._residual(params)
        R_dot = torch.baddbmm(torch.bmm(V, H), W, U)
        if beta is not None:
            R_dot.add_(beta[..., None])
        return UFMParams(
            decayed(V, self.lambda_W, R_dot, H.mT, 1 / self.N).baddbmm_(R, U.mT, alpha=1 / self.N),
            decayed(U, self.lambda_H, W.mT, R_dot, 1 / self.N).baddbmm_(V.mT, R, alpha=1 / self.N),
            None if beta is None else self._bias_gradient(beta, R_dot),
        )

    def logit_gradient(self, params: UFMParams) -> Tensor:
        """Return the gradient of the mean loss in the logits, (WH + b1ᵀ − Y)/N, shape (B, K, N)."""
        return self._residual(params) / self.N

    @property
    def project(self) -> Callable[[UFMParams], UFMParams] | None:
        """The projection onto H ≥ 0, entry by entry; None where there is no constraint."""
        return _nonnegative if self.nonnegative else None

    def take(self, index: Tensor) -> SquaredLossUFM:
        """Return the same problem for some runs of the batch, its (B,) lambdas on the device of ``index``."""
        if self._batch is None:
            return self
        bias = self.bias if self.lambda_b is None else take_runs(self.lambda_b, index)
        lambda_W, lambda_H = (take_runs(x, index) for x in (self.lambda_W, self.lambda_H))
        return replace(self, lambda_W=lambda_W, lambda_H=lambda_H, bias=bias)

    def lower_bound(self, params: UFMParams) -> Tensor:
        r"""Return a bound that no parameters go below, shape (B,).

        Without a bias, for Z = WH: the penalties are at least :math:`c \|Z\|_*` with
        :math:`c = \sqrt{\lambda_W \lambda_H}`, and :math:`c \|Z\|_* \ge \langle A, Z \rangle` for every A
        of operator norm at most c. Hence, with Z of rank at most d, completing the square and the
        Eckart–Young theorem give

        .. math:: f \ge \min_{\mathrm{rank} Z \le d} \frac{\|Z - Y\|_F^2}{2N} + \langle A, Z \rangle
            = \langle A, Y \rangle - \frac N2 \|A\|_F^2 + \frac{1}{2N} \sum_{i > d} s_i(Y - NA)^2 .

        With a bias its best value is inserted first. The fit is then that of (Z − Y)T, where T shrinks the
        mean over all samples by the root of :math:`\gamma = \lambda_b / (1 + \lambda_b)`, and the bound is

        .. math:: \langle A, Y \rangle - \frac N2 \|A T^{-1}\|_F^2
            + \frac{1}{2N} \sum_{i > d} s_i(Y T - N A T^{-1})^2 ;

        where the bias is free, T is a projector, A1 = 0, and T itself stands for its inverse. At an optimum
        A is minus the gradient in the logits, its singular values cut at c. The bound is concave in A and
        indifferent to the order of the samples in a class, so that A may be replaced by its class means, a
        K × K matrix, and its singular values by the best ones in [0, c].

        It is tight at the global minimum wherever that is known, that is for every d without bias, or with
        equal classes and any bias; with unequal classes and a bias for d ≥ K (with a free bias, d ≥ K − 1).
        It does not know of ``nonnegative``: with a bias a gap then remains. Near a minimum where it is tight
        it is as near to it as the objective: to second order in the distance.
        A run whose W or H is not finite has the bound NaN.
        """
        self._check(params)
        Y = self._labels(params.W)
        residual = torch.baddbmm(Y, params.W, params.H, beta=-1)
        return dual_bound(residual, Y, self.d, self.lambda_W, self.lambda_H, self.lambda_b)

    def minimum(self) -> SquaredLossMinimum:
        r"""Return the global minimum, for equal classes decided by :math:`q = K\sqrt{n \lambda_W \lambda_H}`.

        With :math:`\varphi(t; q) = (1-t)^2/2 + q t`, least at :math:`t = (1 - q)_+`, and for every d:

        - equal classes, no bias: :math:`\frac rK \varphi(t; q) + \frac{K-r}{2K}` with r = min(K, d);
        - equal classes, a bias with :math:`\gamma = \lambda_b/(1+\lambda_b)`, 0 where it is free:
          :math:`\frac{r}{K} \varphi(t; q) + \frac{K-1-r}{2K} + \frac{\gamma}{K} \varphi(t_0; q/\gamma)` with
          r = min(K−1, d) and :math:`t_0 = (1 - q/\gamma)_+` if d ≥ K, else 0;
          :math:`b = (1-t_0) / (K(1+\lambda_b))`;
        - counts, no bias: :math:`\sum_k \frac{n_k}{N} \varphi(t_k; q_k)`, :math:`q_k = N\sqrt{\lambda_W
          \lambda_H / n_k}`, with t = 0 for all but the d largest classes;
        - counts, a free bias: the same with the K − 1 singular values of the centred labels,
          :math:`\mathrm{diag}(\sqrt{n_k})(I - uu^\top)` where :math:`u_k = \sqrt{n_k/N}`, in place of
          :math:`\sqrt{n_k}`; :math:`b_k = n_k / N`;
        - equal classes, a free bias, ``nonnegative`` and d ≥ K: :math:`\frac{K-1}{K} \varphi(t; \hat q)` with
          :math:`\hat q = q \sqrt{K/(K-1)}` and :math:`t = (1 - \hat q)_+`: orthogonal features again.

        A scale t of a direction in which the labels have the singular value s gives H the singular value
        :math:`(\sqrt{\lambda_W/\lambda_H}\, s t)^{1/2}` (in the last case with a factor
        :math:`\sqrt{(K-1)/K}` under the root, and for K = 2 only the sum of the squares is determined).
        Without a bias ``nonnegative`` changes nothing, for one of the minimisers is an orthogonal frame along
        the axes.

        Raises:
            NoClosedForm: a decay of W or H is zero: then the infimum is not attained, or leaves H
                undetermined; unequal classes have a bias that is penalised; or H is non-negative and the bias
                is penalised, the classes are unequal, or d < K.

        Source: Tirer and Bruna (2022), Theorem 3.1, without bias and d ≥ K; Dang et al. (2023) for counts;
        the bias and small d by the same argument, with duality.

        >>> SquaredLossUFM(6, 4, 4, 5e-3, 5e-3).minimum().loss
        tensor(0.2055, dtype=torch.float64)
        >>> SquaredLossUFM(4, 5, 8, 0.01, 0.005, bias=0.02).minimum().bias.round(decimals=4)
        tensor([0.2451, 0.2451, 0.2451, 0.2451], dtype=torch.float64)
        """
        decays = (self.lambda_W, self.lambda_H, self.lambda_b)
        if self.nonnegative and self.lambda_b is not None:
            free = not bool(torch.as_tensor(self.lambda_b).any())
            if not (free and self._equal and self.d >= self.K):
                raise NoClosedForm(
                    "with a bias and non-negative features a formula is known for a free bias, equal classes "
                    f"and d ≥ K only, got bias = {self.bias!r}, sizes = {self.sizes}, d = {self.d}"
                )
            return nonnegative_form(self.K, self.sizes[0], self.lambda_W, self.lambda_H)
        return closed_form(self.sizes, self.d, *decays, equal=self._equal)

    def minimiser(self, seed: int | None = None) -> UFMParams:
        """Return parameters that attain :meth:`minimum`; B = 1 where no decay has a batch.

        Args:
            seed: turns the features at random (where they are constrained, it permutes their entries); None
                puts the directions of the labels along the first axes.

        Raises:
            NoClosedForm: as :meth:`minimum`.

        >>> model = SquaredLossUFM(4, 5, 3, 5e-3, 5e-3, bias="free")
        >>> bool(abs(model.value(model.minimiser()) - model.minimum().loss) < 1e-14)
        True
        """
        minimum = self.minimum()
        axes = torch.eye(self.d, dtype=DTYPE)
        if seed is not None and self.nonnegative:
            axes = axes[torch.randperm(self.d, generator=torch.Generator().manual_seed(seed))]
        elif seed is not None:
            axes = haar_orthogonal(self.d, seed)
        arguments = (minimum, axes, self.sizes, self.lambda_W, self.lambda_H)
        if self.nonnegative and self.lambda_b is not None:
            return attain_nonnegative(*arguments)
        return attain(*arguments, equal=self._equal)

    @property
    def _equal(self) -> bool:
        """Whether the formulas of equal classes apply; without bias, counts have scales of their own."""
        return self.counts is None or (self.lambda_b is not None and len(set(self.sizes)) == 1)

    def _labels(self, like: Tensor) -> Tensor:
        return class_labels(self.sizes, like.dtype, like.device)

    def _check(self, params: UFMParams) -> None:
        W, H, b = params
        fits = W.shape[1:] == (self.K, self.d) and H.shape == (len(W), self.d, self.N)
        if not fits or (b is None) != (self.lambda_b is None) or (b is not None and b.shape != W.shape[:2]):
            raise ValueError(
                f"params must be W (B, {self.K}, {self.d}), H (B, {self.d}, {self.N}) and "
                f"{'no bias' if self.lambda_b is None else f'b (B, {self.K})'}, "
                f"got {[None if x is None else list(x.shape) for x in params]}"
            )
        if self._batch not in (None, len(W)):
            raise ValueError(f"params must hold {self._batch} runs, one for each lambda, got {len(W)}")

    def _residual(self, params: UFMParams) -> Tensor:
        self._check(params)
        W, H, b = params
        residual = torch.baddbmm(self._labels(W), W, H, beta=-1)
        return residual if b is None else residual.add_(b[..., None])

    def _value(self, params: UFMParams, residual: Tensor) -> Tensor:
        value = square_norm(residual) / self.N
        value = value + over_runs(self.lambda_W, value) * square_norm(params.W)
        value = value + over_runs(self.lambda_H, value) * square_norm(params.H)
        if params.b is not None and self.lambda_b is not None:
            value = value + over_runs(self.lambda_b, value) * params.b.square().sum(-1)
        return value / 2

    def _gradient(self, params: UFMParams, residual: Tensor) -> UFMParams:
        W, H, b = params
        return UFMParams(
            decayed(W, self.lambda_W, residual, H.mT, 1 / self.N),
            decayed(H, self.lambda_H, W.mT, residual, 1 / self.N),
            None if b is None else self._bias_gradient(b, residual),
        )

    def _bias_gradient(self, b: Tensor, residual: Tensor) -> Tensor:
        decay = 0.0 if self.lambda_b is None else over_runs(self.lambda_b, b)
        return residual.mean(-1) + decay * b


def _nonnegative(params: UFMParams) -> UFMParams:
    return params._replace(H=params.H.clamp(min=0))
