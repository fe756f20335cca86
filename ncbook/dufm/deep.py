"""The deep unconstrained features model: objective and hand-derived derivatives for every depth and loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ncbook import losses
from ncbook.dufm.closed_forms import Collapse, LinearMinimum, collapse, minimum
from ncbook.dufm.graphs import graph_solution
from ncbook.dufm.pairs import pair_solution
from ncbook.dufm.params import DeepUFMParams
from ncbook.protocol import (
    RunNumber,
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
from ncbook.ufm._algebra import add_multiple, add_product, decayed, square_norm

__all__ = ["DeepUFM"]


@dataclass(frozen=True, eq=False)
class DeepUFM:
    r"""The deep unconstrained features model: L weight matrices, L − 1 activations, free features below.

    .. math:: f = g(W_L\, \sigma(\cdots \sigma(W_2\, \sigma(W_1 H_1)) \cdots) + b 1^\top)
        + \sum_\ell \frac{\lambda_\ell}{2} \|W_\ell\|_F^2 + \frac{\lambda_H}{2} \|H_1\|_F^2
        + \frac{\lambda_b}{2} \|b\|^2

    There is no activation on H_1, and none on the logits. The loss g is a mean over the N columns:
    :math:`\|Z - Y\|_F^2 / (2N)`, or cross-entropy with label smoothing α.

    Args:
        K: the number of classes, at least 1.
        n: the samples of each class, at least 1; None where ``counts`` are given.
        L: the number of weight matrices, at least 1.
        width: the dimension of every hidden level, or the L dimensions (d_1 of H_1, d_2, …, d_L).
        lambdas: the decays, not negative. A tuple or list holds one for each factor, (W_1, …, W_L, H_1), each
            a number or a (B,) tensor; a number, or a (B,) tensor or array, is shared by all factors.
        relu: whether σ is ReLU; otherwise it is the identity.
        loss: ``mse`` or ``ce``.
        bias: None, ``"free"`` or the decay λ_b, a number or a (B,) tensor.
        smoothing: the label smoothing α of cross-entropy, a number in [0, 1] or a (B,) tensor.
        counts: the samples of each class, K integers; None where ``n`` is given.

    Raises:
        ValueError: an argument is out of its range, or the B disagree.

    Source: Tirer and Bruna (2022) for L = 2, Dang et al. (2023) for linear layers, Súkeník et al. (2023,
    2024) for ReLU at every depth.

    >>> from ncbook.solvers import minimise
    >>> model = DeepUFM(K=3, n=4, L=3, width=6, lambdas=2e-3, relu=False)
    >>> solution = minimise(model, batch=4)
    >>> bool((solution.loss - model.minimum().loss).abs().min() < 1e-12)
    True
    """

    K: int
    n: int | None
    L: int
    width: Any
    lambdas: Any
    relu: bool = True
    loss: Literal["mse", "ce"] = "mse"
    bias: Any = None
    smoothing: Any = 0.0
    counts: Any = None
    widths: tuple[int, ...] = field(init=False, repr=False)
    """The dimensions (d_1, …, d_L)."""
    sizes: tuple[int, ...] = field(init=False, repr=False)
    """The number of samples of each class."""
    decays: tuple[RunNumber, ...] = field(init=False, repr=False)
    """The decays (λ_1, …, λ_L, λ_H)."""
    decay_b: RunNumber | None = field(init=False, repr=False)
    """The decay of the bias, None without one."""
    _batch: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        K, L = require_count(self.K, "K"), require_count(self.L, "L")
        if self.loss not in ("mse", "ce"):
            raise ValueError(f"loss must be 'mse' or 'ce', got {self.loss!r}")
        decays = _decays(self.lambdas, L)
        numbers = {f"lambdas[{i}]": decay for i, decay in enumerate(decays)}
        decay_b, smoothing = bias_decay(self.bias), _smoothing(self.smoothing, self.loss)
        if decay_b is not None:
            numbers["bias"] = decay_b
        values = {
            "K": K,
            "L": L,
            "widths": _widths(self.width, L),
            "sizes": class_sizes(K, self.n, self.counts),
            "decays": decays,
            "decay_b": decay_b,
            "smoothing": smoothing,
            "_batch": common_batch(**numbers, smoothing=smoothing),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def N(self) -> int:
        """The number of all samples."""
        return sum(self.sizes)

    def init(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        scale: float = 1.0,
        dtype: torch.dtype = DTYPE,
        device: torch.device | str | None = None,
    ) -> DeepUFMParams:
        """Draw all entries N(0, scale²/fan_in): W_ℓ with fan-in d_ℓ, H_1 with d_1, b with d_L.

        Args:
            batch: the number of runs B.
            generator: the source of randomness.
            scale: the standard deviation times the root of the fan-in.
            dtype: the type of the parameters.
            device: where they shall live; the generator's device when None.

        Raises:
            ValueError: ``batch`` is not the B of the lambdas.
        """
        if self._batch not in (None, batch):
            raise ValueError(f"batch must be {self._batch}, the number of lambdas, got {batch}")

        def draw(*shape: int, fan_in: int) -> Tensor:
            return gaussian((batch, *shape), scale / fan_in**0.5, generator, dtype, device)

        weights = tuple(draw(rows, columns, fan_in=columns) for rows, columns in self._shapes())
        H = draw(self.widths[0], self.N, fan_in=self.widths[0])
        b = None if self.decay_b is None else draw(self.K, fan_in=self.widths[-1])
        return DeepUFMParams(weights, H, b)

    def value(self, params: DeepUFMParams) -> Tensor:
        """Return the objective of each run, shape (B,)."""
        return self._loss(self._forward(params)[1])[0] + self._penalty(params)

    def grad(self, params: DeepUFMParams) -> DeepUFMParams:
        r"""Return the gradient, by the chain rule from the logits down.

        With :math:`X_1 = H_1`, :math:`X_\ell = \sigma(H_\ell)` and the errors
        :math:`\Delta_{L+1} = \nabla g(Z)`,
        :math:`\Delta_\ell = (W_\ell^\top \Delta_{\ell+1}) \circ \sigma'(H_\ell)`,

        .. math:: \nabla_{W_\ell} f = \Delta_{\ell+1} X_\ell^\top + \lambda_\ell W_\ell, \qquad
            \nabla_{H_1} f = W_1^\top \Delta_2 + \lambda_H H_1, \qquad
            \nabla_b f = \Delta_{L+1} 1 + \lambda_b b

        The derivative of ReLU at 0 is taken as 0.
        """
        return self.value_and_grad(params)[1]

    def value_and_grad(self, params: DeepUFMParams) -> tuple[Tensor, DeepUFMParams]:
        """Return the objective of each run, shape (B,), and the gradient of :meth:`grad`."""
        levels, logits = self._forward(params)
        value, error = self._loss(logits)
        errors = self._backward(params, levels, error)
        weights = tuple(
            decayed(W, decay, delta, X.mT, 1.0)
            for W, decay, delta, X in zip(params.weights, self.decays, errors, levels, strict=False)
        )
        H = decayed(params.H, self.decays[-1], params.weights[0].mT, errors[0], 1.0)
        b = params.b
        if b is not None and self.decay_b is not None:
            b = errors[-1].sum(-1) + over_runs(self.decay_b, b) * b
        return value + self._penalty(params), DeepUFMParams(weights, H, b)

    def accumulate_grad(self, into: DeepUFMParams, params: DeepUFMParams, keep: float, weight: float) -> None:
        """Overwrite ``into``, which may be ``params`` itself, by keep · into + weight · gradient."""
        levels, logits = self._forward(params)
        errors = self._backward(params, levels, self._loss(logits)[1])
        products = [(delta, X.mT) for delta, X in zip(errors, levels, strict=True)]
        products.append((params.weights[0].mT.clone(), errors[0]))  # kept: W_1 changes before H_1 does
        if into.H is params.H:
            products[0] = (errors[0], params.H.mT.clone())
        targets, sources = (*into.weights, into.H), (*params.weights, params.H)
        for x, at, decay, (left, right) in zip(targets, sources, self.decays, products, strict=True):
            if x is at:
                add_product(x, keep + weight * over_runs(decay, x), left, right, weight)
            else:
                add_product(x, keep, left, right, weight)
                add_multiple(x, at, weight * over_runs(decay, at))
        if into.b is not None and params.b is not None and self.decay_b is not None:
            slope = errors[-1].sum(-1) + over_runs(self.decay_b, params.b) * params.b
            into.b.mul_(keep).add_(slope, alpha=weight)

    def logit_gradient(self, params: DeepUFMParams) -> Tensor:
        """Return ∇g, the gradient of the mean loss in the logits, shape (B, K, N)."""
        return self._loss(self._forward(params)[1])[1]

    def hvp(self, params: DeepUFMParams, direction: DeepUFMParams) -> DeepUFMParams:
        """Return the Hessian applied to a direction: every step of :meth:`grad`, differentiated along it.

        With ReLU it is the Hessian of the smooth piece on which the parameters lie; at a kink there is none.
        """
        levels, logits = self._forward(params)
        turned = self._turn_forward(params, direction, levels)
        logits_turned = torch.baddbmm(
            torch.bmm(direction.weights[-1], levels[-1]), params.weights[-1], turned[-1]
        )
        if direction.b is not None:
            logits_turned += direction.b[..., None]
        delta = self._loss(logits)[1]
        delta_turned = self._turn_loss(logits, logits_turned)
        b = None
        if direction.b is not None and self.decay_b is not None:
            b = delta_turned.sum(-1) + over_runs(self.decay_b, direction.b) * direction.b
        weights: list[Tensor] = []
        for i in reversed(range(self.L)):
            W, V, X, X_turned = params.weights[i], direction.weights[i], levels[i], turned[i]
            product = decayed(V, self.decays[i], delta_turned, X.mT, 1.0)
            weights.append(product.baddbmm_(delta, X_turned.mT))
            delta_turned = torch.bmm(V.mT, delta).baddbmm_(W.mT, delta_turned)
            delta = torch.bmm(W.mT, delta)
            if i and self.relu:
                open_units = X > 0
                delta, delta_turned = delta * open_units, delta_turned * open_units
        H = delta_turned + over_runs(self.decays[-1], direction.H) * direction.H
        return DeepUFMParams(tuple(reversed(weights)), H, b)

    def take(self, index: Tensor) -> DeepUFM:
        """Return the same problem for some runs of the batch, its (B,) numbers on the device of ``index``."""
        if self._batch is None:
            return self
        decays = tuple(take_runs(decay, index) for decay in self.decays)
        smoothing = take_runs(self.smoothing, index)
        decay_b = None if self.decay_b is None else take_runs(self.decay_b, index)
        values = {"decays": decays, "smoothing": smoothing, "decay_b": decay_b, "_batch": len(index)}
        some = copy.copy(self)
        for name, value in (values | {"lambdas": decays, "bias": decay_b}).items():
            object.__setattr__(some, name, value)
        return some

    def minimum(self) -> LinearMinimum:
        """Return the global minimum where it is known: see :func:`ncbook.dufm.closed_forms.minimum`.

        Raises:
            NoClosedForm: it is not known; the message says why.
        """
        return minimum(self)

    def collapse(self) -> Collapse:
        """Return deep neural collapse with the best scale: see :func:`ncbook.dufm.closed_forms.collapse`.

        Raises:
            NoClosedForm: the model has none, or none that is known; the message says why.
        """
        return collapse(self)

    def graph_solution(self, r: int | None = None) -> Collapse:
        """Return the graph solution with the best scale: see :func:`ncbook.dufm.graphs.graph_solution`.

        Raises:
            NoClosedForm: the model has none; the message says why.
            ValueError: r is no integer of at least 4 with r(r−1)/2 ≤ K.
        """
        return graph_solution(self, r)

    def pair_solution(self) -> Collapse:
        """Return the pair solution with the best scale: see :func:`ncbook.dufm.pairs.pair_solution`.

        Raises:
            NoClosedForm: the model has none; the message says why.
        """
        return pair_solution(self)

    def _shapes(self) -> Iterator[tuple[int, int]]:
        return ((rows, columns) for columns, rows in pairwise((*self.widths, self.K)))

    def _forward(self, params: DeepUFMParams) -> tuple[list[Tensor], Tensor]:
        """The inputs X_1, …, X_L of the weight matrices, and the logits."""
        weights, H, b = params
        expected = [list(shape) for shape in self._shapes()]
        if (
            [list(W.shape[1:]) for W in weights] != expected
            or H.shape[1:] != (self.widths[0], self.N)
            or (b is None) != (self.decay_b is None)
            or (b is not None and b.shape[1:] != (self.K,))
            or {len(x) for x in weights} != {len(H)}
        ):
            raise ValueError(
                f"params must be weights of shapes (B, …) {expected}, H of {[self.widths[0], self.N]} and "
                f"{'no bias' if self.decay_b is None else f'b of {[self.K]}'}, got "
                f"{[list(W.shape) for W in weights]}, {list(H.shape)}, {None if b is None else list(b.shape)}"
            )
        if self._batch not in (None, len(H)):
            raise ValueError(f"params must hold {self._batch} runs, one for each lambda, got {len(H)}")
        levels = [H]
        for W in weights[:-1]:
            level = torch.bmm(W, levels[-1])
            levels.append(level.relu_() if self.relu else level)
        logits = torch.bmm(weights[-1], levels[-1])
        return levels, logits if b is None else logits + b[..., None]

    def _loss(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss == "mse":
            error = (logits - _targets(self.sizes, logits.dtype, logits.device)).div_(self.N)
            return square_norm(error) * (self.N / 2), error
        labels = _labels(self.sizes, logits.device)
        alpha = self.smoothing.to(logits) if isinstance(self.smoothing, Tensor) else self.smoothing
        return losses.cross_entropy_unchecked(logits, labels, alpha)

    def _turn_loss(self, logits: Tensor, turned: Tensor) -> Tensor:
        """The derivative of ∇g along a change of the logits; the targets play no part in it."""
        if self.loss == "mse":
            return turned / self.N
        p = logits.softmax(-2)
        return (p * turned - p * (p * turned).sum(-2, keepdim=True)) / self.N

    def _backward(self, params: DeepUFMParams, levels: list[Tensor], error: Tensor) -> list[Tensor]:
        """The errors Δ_2, …, Δ_{L+1}."""
        errors = [error]
        for W, X in zip(reversed(params.weights[1:]), reversed(levels[1:]), strict=True):
            error = torch.bmm(W.mT, error)
            errors.append(error.mul_(X > 0) if self.relu else error)
        return errors[::-1]

    def _turn_forward(
        self, params: DeepUFMParams, direction: DeepUFMParams, levels: list[Tensor]
    ) -> list[Tensor]:
        turned = [direction.H]
        for W, V, X, above in zip(
            params.weights[:-1], direction.weights[:-1], levels[:-1], levels[1:], strict=True
        ):
            level = torch.bmm(V, X).baddbmm_(W, turned[-1])
            turned.append(level.mul_(above > 0) if self.relu else level)
        return turned

    def _penalty(self, params: DeepUFMParams) -> Tensor:
        total = torch.zeros_like(params.H[:, 0, 0])
        for x, decay in zip((*params.weights, params.H), self.decays, strict=True):
            total += over_runs(decay, total) * square_norm(x) / 2
        if params.b is not None and self.decay_b is not None:
            total += over_runs(self.decay_b, total) * params.b.square().sum(-1) / 2
        return total


def _decays(lambdas: Any, L: int) -> tuple[RunNumber, ...]:
    if not isinstance(lambdas, (tuple, list)):
        return (run_number(lambdas, "lambdas"),) * (L + 1)
    if len(lambdas) != L + 1:
        raise ValueError(
            f"lambdas must be one number or {L + 1} of them, (W_1, …, W_{L}, H_1), got {len(lambdas)}"
        )
    return tuple(run_number(x, f"lambdas[{i}]") for i, x in enumerate(lambdas))


def _widths(width: Any, L: int) -> tuple[int, ...]:
    if isinstance(width, (Tensor, np.ndarray)):
        width = width.tolist()
    if not isinstance(width, (tuple, list)):
        return (require_count(width, "width"),) * L
    if len(width) != L:
        raise ValueError(f"width must be one integer or the {L} of (d_1, …, d_{L}), got {len(width)}")
    return tuple(require_count(x, f"width[{i}]") for i, x in enumerate(width))


def _smoothing(smoothing: Any, loss: str) -> RunNumber:
    alpha = run_number(smoothing, "smoothing")
    largest = float(alpha.max()) if isinstance(alpha, Tensor) else alpha
    if largest > 1:
        raise ValueError(f"smoothing must lie between 0 and 1, got {largest}")
    if largest > 0 and loss == "mse":
        raise ValueError(f"smoothing belongs to loss 'ce' and must be 0 for 'mse', got {largest}")
    return alpha


@lru_cache(maxsize=32)
def _labels(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))


@lru_cache(maxsize=32)
def _targets(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(len(sizes), dtype=dtype, device=device)[:, _labels(sizes, device)]
