"""The unconstrained features model with squared loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ncbook.protocol import (
    NoClosedForm,
    RunNumber,
    UFMParams,
    common_batch,
    gaussian,
    over_runs,
    require_count,
    run_number,
    take_runs,
)
from ncbook.runtime import DTYPE
from ncbook.ufm._algebra import add_multiple, add_product, decayed, labels, square_norm

__all__ = ["SquaredLossMinimum", "SquaredLossUFM"]


class SquaredLossMinimum(NamedTuple):
    """The global minimum of :class:`SquaredLossUFM`; with (B,) lambdas every field has that leading axis.

    >>> SquaredLossUFM(4, 5, 8, 5e-3, 5e-3).minimum().t.round(decimals=6)
    tensor(0.9553, dtype=torch.float64)
    """

    loss: Tensor
    """The least value of the objective."""
    singular_values_H: Tensor
    """The min(K, d) singular values of H that may differ from zero, last axis; all others are zero."""
    bias: None
    """This model has no bias."""
    trivial: Tensor
    """Whether zero is the only minimiser (q ≥ 1)."""
    t: Tensor
    """The output scale: the optimal logits are t times the labels, on min(K, d) directions."""
    q: Tensor
    """The effective decay K√(n λ_W λ_H), which decides everything."""


@dataclass(frozen=True, eq=False)
class SquaredLossUFM:
    r"""The unconstrained features model with squared loss, without bias, K balanced classes of n samples.

    .. math:: f(W, H) = \frac{1}{2N} \|WH - Y\|_F^2 + \frac{\lambda_W}{2} \|W\|_F^2
        + \frac{\lambda_H}{2} \|H\|_F^2, \qquad N = Kn, \quad Y = I_K \otimes 1_n^\top

    Column kn+i of H is sample i of class k (classes run from 0).

    Args:
        K: the number of classes, at least 1.
        n: the samples of each class, at least 1.
        d: the dimension of the features, at least 1; d < K leaves directions of the labels unfitted.
        lambda_W: the decay of the classifier, a number or a (B,) tensor, not negative.
        lambda_H: the decay of the features (the sum over all N columns), likewise.

    Raises:
        ValueError: a size is no positive integer, a decay is negative or not finite, or the B disagree.

    Source: Tirer and Bruna (2022).

    >>> from ncbook.solvers import minimise
    >>> model = SquaredLossUFM(K=4, n=5, d=8, lambda_W=5e-3, lambda_H=5e-3)
    >>> solution = minimise(model, batch=3)
    >>> bool((solution.loss - model.minimum().loss).abs().max() < 1e-12)
    True
    """

    K: int
    n: int
    d: int
    lambda_W: RunNumber
    lambda_H: RunNumber
    _batch: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("K", "n", "d"):
            object.__setattr__(self, name, require_count(getattr(self, name), name))
        for name in ("lambda_W", "lambda_H"):
            object.__setattr__(self, name, run_number(getattr(self, name), name))
        object.__setattr__(self, "_batch", common_batch(lambda_W=self.lambda_W, lambda_H=self.lambda_H))

    @property
    def N(self) -> int:
        """The number of all samples, Kn."""
        return self.K * self.n

    def init(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        scale: float = 1.0,
        dtype: torch.dtype = DTYPE,
        device: torch.device | str | None = None,
    ) -> UFMParams:
        """Draw W and H with independent entries N(0, scale²/d), so that a feature has norm about ``scale``.

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
        return UFMParams(W, gaussian((batch, self.d, self.N), deviation, generator, dtype, device))

    def value(self, params: UFMParams) -> Tensor:
        """Return the objective of each run, shape (B,)."""
        return self._value(params, self._residual(params))

    def grad(self, params: UFMParams) -> UFMParams:
        r"""Return the gradient, with the residual R = WH − Y.

        .. math:: \nabla_W f = \tfrac1N R H^\top + \lambda_W W, \qquad
            \nabla_H f = \tfrac1N W^\top R + \lambda_H H
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
        W, H, _ = params
        residual = self._residual(params)
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
        r"""Return the Hessian applied to the direction (V, U), with :math:`\dot R = VH + WU`.

        .. math:: \tfrac1N (\dot R H^\top + R U^\top) + \lambda_W V, \qquad
            \tfrac1N (W^\top \dot R + V^\top R) + \lambda_H U
        """
        W, H, _ = params
        V, U, _ = direction
        R = self._residual(params)
        R_dot = torch.baddbmm(torch.bmm(V, H), W, U)
        return UFMParams(
            decayed(V, self.lambda_W, R_dot, H.mT, 1 / self.N).baddbmm_(R, U.mT, alpha=1 / self.N),
            decayed(U, self.lambda_H, W.mT, R_dot, 1 / self.N).baddbmm_(V.mT, R, alpha=1 / self.N),
        )

    def take(self, index: Tensor) -> SquaredLossUFM:
        """Return the same problem for some runs of the batch, its (B,) lambdas on the device of ``index``."""
        if self._batch is None:
            return self
        return replace(
            self, lambda_W=take_runs(self.lambda_W, index), lambda_H=take_runs(self.lambda_H, index)
        )

    def lower_bound(self, params: UFMParams) -> Tensor:
        r"""Return a bound that no parameters go below, tight at the global minimum for every d; shape (B,).

        For Z = WH the penalties are at least :math:`c \|Z\|_*` with :math:`c = \sqrt{\lambda_W \lambda_H}`,
        and :math:`c \|Z\|_* \ge \langle A, Z \rangle` for every A of operator norm at most c. Hence, with Z
        of rank at most d, completing the square and the Eckart–Young theorem give

        .. math:: f \ge \min_{\mathrm{rank} Z \le d} \frac{\|Z - Y\|_F^2}{2N} + \langle A, Z \rangle
            = \langle A, Y \rangle - \frac N2 \|A\|_F^2 + \frac{1}{2N} \sum_{i > d} s_i(Y - NA)^2 .

        At an optimum A = (Y − Z)/N, its singular values cut at c. The bound is concave in A and indifferent
        to the order of the samples in a class, so A may be replaced by its class means:
        :math:`A = U \mathrm{diag}(a) V^\top \otimes 1_n^\top / \sqrt n` with the singular vectors of the
        class means of Y − Z, a K × K matrix, and with :math:`a_i = \sqrt n \langle u_i, v_i \rangle / N` cut
        to [0, c], the best choice where d ≥ K. Where the parameters are near the minimum, the bound is as
        near to it as the objective is: to second order in their distance.
        A run that is not finite has the bound NaN.
        """
        means = -self._residual(params).unflatten(-1, (self.K, self.n)).mean(-1)
        finite = means.isfinite().all(-1).all(-1)
        U, _, Vh = torch.linalg.svd(torch.where(finite[:, None, None], means, 0.0))
        limit = torch.ones_like(means[:, 0]) * over_runs(self.lambda_W, means[:, 0])
        limit = (limit * over_runs(self.lambda_H, limit)).sqrt()
        signal = self.n**0.5 * (U * Vh.mT).sum(-2)  # ⟨u_i, Y v_i⟩
        a = torch.minimum((signal / self.N).clamp(min=0), limit)
        bound = (a * signal - self.N / 2 * a.square()).sum(-1)
        if self.d < self.K:
            rest = self.n**0.5 * torch.eye(self.K).to(means) - self.N * (U * a[:, None, :]) @ Vh
            bound = bound + torch.linalg.svdvals(rest)[:, self.d :].square().sum(-1) / (2 * self.N)
        return torch.where(finite, bound, torch.nan)

    def minimum(self) -> SquaredLossMinimum:
        r"""Return the global minimum, decided by :math:`q = K\sqrt{n \lambda_W \lambda_H}`.

        With r = min(K, d) and t = max(1 − q, 0),

        .. math:: \min f = \frac rK \left(\frac{(1-t)^2}{2} + q t\right) + \left(1 - \frac rK\right) \frac12,
            \qquad s_i(H) = \sqrt{\sqrt{\lambda_W/\lambda_H}\, \sqrt n\, t} \quad (i \le r)

        For q < 1 this is q − q²/2 where d ≥ K; from q = 1 on zero is the only minimiser.

        Raises:
            NoClosedForm: a lambda is zero: then the infimum is not attained, or leaves H undetermined.

        Source: Tirer and Bruna (2022), Theorem 3.1; d < K by the same argument with a rank constraint.

        >>> SquaredLossUFM(6, 4, 4, 5e-3, 5e-3).minimum().loss
        tensor(0.2055, dtype=torch.float64)
        """
        lambda_W = torch.as_tensor(self.lambda_W, dtype=DTYPE)
        lambda_H = torch.as_tensor(self.lambda_H, dtype=DTYPE, device=lambda_W.device)
        if bool(((lambda_W == 0) | (lambda_H == 0)).any()):
            raise NoClosedForm("with a lambda of 0 the infimum is not attained, or leaves H undetermined")
        q = self.K * (self.n * lambda_W * lambda_H).sqrt()
        t = torch.where(q < 1, 1 - q, 0.0)
        fitted = min(self.K, self.d) / self.K
        loss = fitted * ((1 - t).square() / 2 + q * t) + (1 - fitted) / 2
        value = ((lambda_W / lambda_H).sqrt() * self.n**0.5 * t).sqrt()
        singular_values = value[..., None].expand(*value.shape, min(self.K, self.d)).clone()
        return SquaredLossMinimum(loss, singular_values, None, q >= 1, t, q)

    def _residual(self, params: UFMParams) -> Tensor:
        W, H, b = params
        if b is not None or W.shape[1:] != (self.K, self.d) or H.shape != (len(W), self.d, self.N):
            raise ValueError(
                f"params must be W (B, {self.K}, {self.d}), H (B, {self.d}, {self.N}) and no bias, "
                f"got {[None if x is None else list(x.shape) for x in params]}"
            )
        if self._batch not in (None, len(W)):
            raise ValueError(f"params must hold {self._batch} runs, one for each lambda, got {len(W)}")
        return torch.baddbmm(labels(self.K, self.n, W.dtype, W.device), W, H, beta=-1)

    def _value(self, params: UFMParams, residual: Tensor) -> Tensor:
        fit = square_norm(residual) / self.N
        decay_W = over_runs(self.lambda_W, fit) * square_norm(params.W)
        return (fit + decay_W + over_runs(self.lambda_H, fit) * square_norm(params.H)) / 2

    def _gradient(self, params: UFMParams, residual: Tensor) -> UFMParams:
        W, H, _ = params
        return UFMParams(
            decayed(W, self.lambda_W, residual, H.mT, 1 / self.N),
            decayed(H, self.lambda_H, W.mT, residual, 1 / self.N),
        )
