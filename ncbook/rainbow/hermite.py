r"""The two numbers that a random layer keeps of its activation: the mean slope and the rest of the power.

Under a Gaussian N of variance r, a centred activation splits into its linear part and what is orthogonal:

.. math:: \varphi(N) - \mathbb E\varphi(N) = k_1 N + \text{rest}, \qquad
    k_1 = \frac{\mathbb E[N \varphi(N)]}{r} = \mathbb E\varphi'(N), \qquad
    \kappa_*^2 = \operatorname{Var} \varphi(N) - r k_1^2

An activation is a name (``erf``, ``sign``, ``tanh``, ``linear``, or ``relu``, which is always centred) or any
function from a tensor to a tensor of the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncbook.rainbow.kernels import CLOSED_FORMS, closed_moment, slope
from ncbook.runtime import DTYPE, as_tensor

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "HermiteCoefficients",
    "activation_function",
    "hermite_coefficients",
    "joint_coefficient",
    "joint_moment",
]

Activation = str | Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": torch.erf,
    "linear": lambda x: x,
    "relu": torch.relu,
    "sign": torch.sign,
    "tanh": torch.tanh,
}
"""The functions behind the names. ``relu`` is not centred here: that needs the variance of its input."""

# The trapezoidal rule converges exponentially for analytic functions under the normal weight. Unlike a
# Gauss-Hermite rule of some 200 nodes, which is off by 1e-4 for tanh at r = 16, it does not care how steep
# the function is, as long as the step resolves it.
_REACH = 9.0  # in standard deviations: beyond it lies less than 1e-18 of the mass
_STEP, _JOINT_STEP = 0.02, 0.1  # the latter for variances up to one, finer for larger ones
_PAIRS_AT_ONCE = 256
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


class HermiteCoefficients(NamedTuple):
    """What a linearised layer knows of its activation, at one variance r (floats) or many (tensors).

    Fields: ``k1`` the mean slope, ``second_moment`` the variance of the activation (its second moment, once
    centred), ``kappa_star2`` the part of it that is not linear.

    >>> HermiteCoefficients(1.0, 1.0, 0.0).kappa_star2
    0.0
    """

    k1: Any
    second_moment: Any
    kappa_star2: Any


def hermite_coefficients(activation: Activation, r: Any) -> HermiteCoefficients:
    r"""Return :math:`k_1`, :math:`\operatorname{Var}\varphi(N)` and :math:`\kappa_*^2` under N of variance r.

    Closed forms for ``erf``, ``sign``, ``relu`` and ``linear``; for ``tanh`` and functions the trapezoidal
    rule in the standard normal variable, exact to rounding for analytic functions that are not too steep
    (tanh up to r = 200; 3e-7 is lost at r = 1000) and good to about 1e-4 for functions with a kink.

    Args:
        activation: a name or a function.
        r: the variance, positive: a number, or an array of any shape.

    Returns:
        Floats when r is a number, float64 tensors of the shape of r otherwise.

    Raises:
        ValueError: r is not positive and finite, the activation is unknown or returns another shape.

    >>> k1, second, rest = hermite_coefficients("tanh", 1.0)
    >>> round(k1, 10), round(second, 10), round(rest, 10)
    (0.6057055096, 0.3942944904, 0.027415326)
    """
    variance = _variance(r, "r")
    if isinstance(activation, str) and activation in CLOSED_FORMS:
        k1 = slope(activation, variance)
        second = closed_moment(variance, variance, variance, activation, activation)
    else:
        k1, second = _by_quadrature(activation_function(activation), variance)
    rest = second - variance * k1.square()
    return HermiteCoefficients(*(_like(r, x) for x in (k1, second, rest)))


def joint_moment(activation: Activation, activation2: Activation, r: Any, r2: Any, rc: Any) -> Any:
    r"""Return the covariance of two activations of two jointly Gaussian variables.

    .. math:: \operatorname{Cov}(\varphi(N), \varphi_*(N_*)), \qquad
        \operatorname{Var} N = r, \quad \operatorname{Var} N_* = r_2, \quad \operatorname{Cov}(N, N_*) = r_c

    Args:
        activation: of the first Gaussian, a name or a function.
        activation2: of the second.
        r: variance of the first, positive; a number or an array.
        r2: variance of the second, positive, of the same shape.
        rc: their covariance, :math:`|rc| \le \sqrt{r\,r_2}`, of the same shape.

    Returns:
        A float when r, r2 and rc are numbers, otherwise a float64 tensor of their common shape.

    Raises:
        ValueError: a variance is not positive, the covariance too large, or an activation unknown.

    >>> round(joint_moment("tanh", "tanh", 1.0, 1.0, 0.5), 10)
    0.1863244132
    """
    u, v = _variance(r, "r"), _variance(r2, "r2")
    u, v, c = torch.broadcast_tensors(u, v, as_tensor(rc, "rc", DTYPE))
    if bool((c.square() > u * v * (1 + 1e-9)).any()):
        raise ValueError(f"rc must satisfy rc² <= r·r2, got {rc!r} for r = {r!r}, r2 = {r2!r}")
    names = tuple(a for a in (activation, activation2) if isinstance(a, str))
    if len(names) == 2 and set(names) <= set(CLOSED_FORMS):
        moment = closed_moment(c, u, v, names[0], names[1])
    elif set(names) & {"relu", "linear"} and set(names) <= set(ACTIVATIONS) and len(names) == 2:
        k1, k1_other = (hermite_coefficients(a, x).k1 for a, x in zip(names, (u, v), strict=True))
        moment = c * k1 * k1_other  # an odd partner sees the linear half of the ReLU only
    else:
        moment = _joint_quadrature(activation, activation2, u, v, c)
    return _like(None if any(_is_array(x) for x in (r, r2, rc)) else 0.0, moment)


def joint_coefficient(activation: Activation, activation2: Activation, r: Any, r2: Any, rc: Any) -> Any:
    r"""Return :math:`\check\kappa^2`, the part of a joint moment beyond the product of the two linear parts.

    .. math:: \check\kappa^2 = \operatorname{Cov}(\varphi(N), \varphi_*(N_*)) - r_c\, k_1(r)\, k_1^*(r_2)

    It may be negative; the square is part of the name only. With equal activations and :math:`r = r_2 = r_c`
    it is :math:`\kappa_*^2`.

    Args:
        activation: of the student, a name or a function.
        activation2: of the teacher.
        r: variance of the student's pre-activation, positive.
        r2: variance of the teacher's.
        rc: their covariance.

    Returns:
        A float when r, r2 and rc are numbers, otherwise a float64 tensor.

    Raises:
        ValueError: as in :func:`joint_moment`.

    >>> round(joint_coefficient("tanh", "tanh", 1.0, 1.0, 0.5), 10)
    0.002884831
    """
    moment = joint_moment(activation, activation2, r, r2, rc)
    u, v = _variance(r, "r"), _variance(r2, "r2")
    linear = (
        as_tensor(rc, "rc", DTYPE)
        * hermite_coefficients(activation, u).k1
        * hermite_coefficients(activation2, v).k1
    )
    return moment - (linear if isinstance(moment, Tensor) else float(linear))


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function behind a name, or the function itself.

    Raises:
        ValueError: the name is unknown, or the argument is neither a name nor a function.

    >>> activation_function("sign")(torch.tensor([-2.0, 3.0]))
    tensor([-1.,  1.])
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be a function or one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    return ACTIVATIONS[activation]


def _by_quadrature(function: Callable[[Tensor], Tensor], r: Tensor) -> tuple[Tensor, Tensor]:
    nodes, weights = _rule(_STEP)
    root = r.sqrt().unsqueeze(-1)
    values = _evaluate(function, root * nodes)
    values = values - (values * weights).sum(-1, keepdim=True)
    k1 = (values * nodes * weights).sum(-1) / root.squeeze(-1)
    return k1, (values.square() * weights).sum(-1)


def _joint_quadrature(first: Activation, second: Activation, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """Integrate out the first Gaussian given the second: in closed form where that one has a kink."""
    if isinstance(second, str) and second in CLOSED_FORMS:  # the activation with the closed form comes first
        first, second, u, v = second, first, v, u
    function = activation_function(second)
    steepest = max(1.0, float(torch.maximum(u, v).max())) if c.numel() else 1.0
    rule = _rule(max(_JOINT_STEP / math.sqrt(steepest), _STEP / 2))
    flat = torch.stack([x.reshape(-1, 1) for x in (u, v, c)], dim=1)
    blocks = flat.split(_PAIRS_AT_ONCE)
    return torch.cat([_joint_block(first, function, block, *rule) for block in blocks]).reshape(c.shape)


def _joint_block(
    first: Activation,
    function: Callable[[Tensor], Tensor],
    moments: Tensor,
    nodes: Tensor,
    weights: Tensor,
) -> Tensor:
    u, v, c = moments.unbind(1)
    outer = v.sqrt() * nodes
    values = _evaluate(function, outer)
    values = values - (values * weights).sum(-1, keepdim=True)
    mean, rest = c / v * outer, (u - c.square() / v).clamp(min=0).sqrt()  # of the first given the second
    return (values * _conditional_mean(first, mean, rest, nodes, weights) * weights).sum(-1)


def _conditional_mean(
    activation: Activation, mean: Tensor, deviation: Tensor, nodes: Tensor, weights: Tensor
) -> Tensor:
    """E φ(mean + deviation·g) for a standard normal g; φ need not be centred here."""
    if activation == "erf":
        return torch.erf(mean / torch.sqrt(1 + 2 * deviation.square()))
    ratio = mean / deviation.clamp(min=torch.finfo(DTYPE).tiny)  # ±∞ where no spread is left
    if activation == "sign":
        return torch.erf(ratio / math.sqrt(2))
    if activation == "relu":
        return mean * torch.special.ndtr(ratio) + deviation * torch.exp(-ratio.square() / 2) / _ROOT_TWO_PI
    function = activation_function(activation)
    total = torch.zeros_like(mean)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        total += weight * _evaluate(function, mean + deviation * node)
    return total


@lru_cache(maxsize=16)
def _rule(step: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the trapezoidal rule for the standard normal law."""
    count = round(_REACH / step)
    nodes = torch.arange(-count, count + 1, dtype=DTYPE) * step
    weights = torch.exp(-nodes.square() / 2)
    return nodes, weights / weights.sum()


def _evaluate(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    values = function(x)
    if not isinstance(values, Tensor) or values.shape != x.shape:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"activation must map a tensor to one of the same shape, got {found} from {tuple(x.shape)}"
        )
    return as_tensor(values, "activation's values", DTYPE)


def _variance(r: Any, name: str) -> Tensor:
    variance = as_tensor(r, name, DTYPE)
    if bool((variance <= 0).any()):
        raise ValueError(f"{name} must be positive, got {float(variance.min())}")
    return variance


def _is_array(x: Any) -> bool:
    return getattr(x, "ndim", 0) > 0 or isinstance(x, (Tensor, list, tuple))


def _like(r: Any, value: Tensor) -> Any:
    return value if r is None or _is_array(r) else float(value)
