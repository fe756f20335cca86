"""The two special cases of the deep model that have names of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ncbook.dufm.deep import DeepUFM

__all__ = ["ExtendedUFM", "LinearUFM"]


class LinearUFM(DeepUFM):
    r"""The unconstrained features model with L linear layers and squared loss, L = len(widths).

    .. math:: f = \frac{1}{2N} \|W_L \cdots W_1 H_1 + b 1^\top - Y\|_F^2
        + \sum_\ell \frac{\lambda_\ell}{2} \|W_\ell\|_F^2 + \frac{\lambda_H}{2} \|H_1\|_F^2
        + \frac{\lambda_b}{2} \|b\|^2

    It is :class:`DeepUFM` without activations; ``minimum()`` knows its global minimum for every depth, every
    width and every lambda > 0: without bias for any class sizes, with a bias for equal ones. (A bias with a
    decay leaves a problem of its own in the mean direction. For L = 1 the solution is proved by convexity;
    for L ≥ 2 the chapter on linear layers proves it, and the tests measure it.)

    Args:
        K: the number of classes, at least 1.
        n: the samples of each class; None where ``counts`` are given.
        widths: (d_1 of H_1, d_2, …, d_L).
        lambdas: one number, or one for each of (W_1, …, W_L, H_1), as in :class:`DeepUFM`.
        bias: None, ``"free"`` or the decay λ_b.
        counts: the samples of each class, or None.

    Raises:
        ValueError: an argument is out of its range.

    Source: Tirer and Bruna (2022); Dang et al. (2023).

    >>> LinearUFM(K=4, n=5, widths=(8, 8, 8), lambdas=2e-3).minimum().loss
    tensor(0.0239, dtype=torch.float64)
    """

    def __init__(
        self, K: int, n: int | None, widths: Any, lambdas: Any, bias: Any = None, counts: Any = None
    ) -> None:
        widths = _sequence(widths)
        super().__init__(K, n, len(widths), widths, lambdas, relu=False, bias=bias, counts=counts)


class ExtendedUFM(DeepUFM):
    r"""The model of Tirer and Bruna: two weight matrices, ReLU between them, squared loss, no bias.

    .. math:: f = \frac{1}{2N} \|W_2\, \sigma(W_1 H_1) - Y\|_F^2 + \frac{\lambda_1}{2} \|W_1\|_F^2
        + \frac{\lambda_2}{2} \|W_2\|_F^2 + \frac{\lambda_H}{2} \|H_1\|_F^2

    With ReLU, ``minimum()`` returns the value of the linear model. It is attained by the collapse, hence an
    upper bound; that nothing lies below is Tirer and Bruna's theorem under its assumption (on the nuclear
    norms before and after the activation), not an unconditional fact. The ``singular_values`` are those of
    the collapse whose H_1 is an orthogonal frame; with ReLU other H_1 have the same loss.

    Args:
        K: the number of classes, at least 1.
        n: the samples of each class, at least 1.
        widths: (d_1 of H_1, d_2).
        lambdas: one number, or those of (W_1, W_2, H_1).
        relu: whether σ is ReLU; otherwise it is the identity.

    Raises:
        ValueError: an argument is out of its range.

    Source: Tirer and Bruna (2022).

    >>> ExtendedUFM(K=4, n=5, widths=(8, 20), lambdas=(2e-3, 5e-3, 3e-3)).minimum().loss
    tensor(0.0317, dtype=torch.float64)
    """

    def __init__(self, K: int, n: int, widths: Any, lambdas: Any, relu: bool = True) -> None:
        widths = _sequence(widths)
        if len(widths) != 2:
            raise ValueError(f"widths must be the two dimensions (d_1, d_2), got {widths!r}")
        super().__init__(K, n, 2, widths, lambdas, relu=relu)


def _sequence(widths: Any) -> tuple[int, ...]:
    if isinstance(widths, (Tensor, np.ndarray)):
        widths = widths.tolist()
    if not isinstance(widths, (tuple, list)) or not widths:
        raise ValueError(f"widths must be a sequence (d_1, d_2, …) of one or more integers, got {widths!r}")
    return tuple(widths)
