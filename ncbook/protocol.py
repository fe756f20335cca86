"""The one protocol that carries all models: what a *problem* is, what its parameters are.

It stands at the foot of the library: it imports ``runtime`` alone, and every model and solver may import it.
A problem is a frozen dataclass of numbers that knows its objective, its gradient and, where theory has one,
its minimum. Parameters are a named tuple of tensors whose first axis is the batch of B independent runs (a
field may also be a tuple of such tensors, or None). A regularisation number is shared by all runs, or is a
(B,) tensor with one value for each run, so that a phase diagram is a single batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ncbook.runtime import DTYPE, as_tensor

__all__ = [
    "NoClosedForm",
    "Problem",
    "RunNumber",
    "UFMParams",
    "bias_decay",
    "class_sizes",
    "common_batch",
    "gaussian",
    "optional_method",
    "over_runs",
    "require_count",
    "run_number",
    "take_runs",
]

Params = TypeVar("Params", bound=tuple[Any, ...])
RunNumber = float | Tensor
"""A number shared by all runs of a batch, or a (B,) tensor with one number for each run."""


class NoClosedForm(ValueError):
    """Raised by ``minimum()`` where no formula is known; the message says why.

    >>> issubclass(NoClosedForm, ValueError)
    True
    """


class UFMParams(NamedTuple):
    """The parameters of an unconstrained features model, B runs at once.

    >>> UFMParams(torch.zeros(7, 4, 8), torch.zeros(7, 8, 20)).b is None
    True
    """

    W: Tensor
    """The classifiers, shape (B, K, d)."""
    H: Tensor
    """The features as columns, shape (B, d, N); column k·n+i is sample i of class k."""
    b: Tensor | None = None
    """The biases, shape (B, K), or None in a model without bias."""


@runtime_checkable
class Problem(Protocol[Params]):
    """What ``solvers.minimise`` and the landscape tools need to know of a model.

    Beyond the four methods below, a problem may have any of these; one that is None counts as absent:

    - ``grad(params) -> params``: the gradient alone, where leaving the value out is cheaper;
    - ``accumulate_grad(into, params, keep, weight)``: overwrite the tensors of ``into`` by keep · into +
      weight · gradient, in fewer passes than one by one; ``into`` may be ``params`` itself;
    - ``hvp(params, direction) -> params``: the Hessian applied to a direction;
    - ``project(params) -> params``: the nearest feasible parameters (the feasible set is convex);
    - ``lower_bound(params) -> (B,)``: a number that no parameters of the same problem can go below;
    - ``take(index) -> problem``: the same problem for the runs ``index`` only (an integer tensor, to whose
      device the numbers of the runs move), so that a solver can drop the runs that have finished.

    >>> from ncbook.ufm import SquaredLossUFM
    >>> isinstance(SquaredLossUFM(4, 5, 8, 5e-3, 5e-3), Problem)
    True
    """

    def init(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        scale: float = 1.0,
        dtype: torch.dtype = DTYPE,
        device: torch.device | str | None = None,
    ) -> Params:
        """Draw the parameters of a batch of runs, entries N(0, scale²/fan_in)."""
        ...

    def value(self, params: Params) -> Tensor:
        """Return the objective of each run, shape (B,)."""
        ...

    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        """Return the objective of each run, shape (B,), and its gradient, derived by hand."""
        ...

    def minimum(self) -> Any:
        """Return what theory predicts of the global minimum, or raise :class:`NoClosedForm`."""
        ...


def optional_method(problem: Any, name: str) -> Callable[..., Any] | None:
    """Return an optional method of a problem, None where the problem does not have it.

    >>> optional_method(object(), "hvp") is None
    True
    """
    return getattr(problem, name, None)


def run_number(x: Any, name: str) -> RunNumber:
    """Check a regularisation number: one for all runs, or a vector with one for each run; none negative.

    Args:
        x: a number, or B numbers as a tensor, an array or a sequence.
        name: the argument's name, for the error message.

    Returns:
        A float, or a float64 tensor of shape (B,).

    Raises:
        ValueError: a number is negative or not finite, or the shape is neither () nor (B,).

    >>> run_number(5e-3, "lambda_W"), run_number([0.1, 0.2], "lambda_W")
    (0.005, tensor([0.1000, 0.2000], dtype=torch.float64))
    """
    tensor = as_tensor(x, name, DTYPE)
    if tensor.ndim > 1 or tensor.numel() == 0:
        raise ValueError(f"{name} must be a number or a (B,) vector of them, got shape {list(tensor.shape)}")
    if bool((tensor < 0).any()):
        raise ValueError(f"{name} must not be negative, got {tensor.min().item()}")
    return tensor.detach() if tensor.ndim else tensor.item()


def bias_decay(bias: Any) -> RunNumber | None:
    """Translate a model's argument ``bias`` into the decay λ_b of its bias.

    Args:
        bias: None for a model without bias, ``"free"`` for one that costs nothing, or λ_b, a number or a (B,)
            tensor; 0 means the same as ``"free"``.

    Returns:
        None where there is no bias, else λ_b.

    Raises:
        ValueError: it is none of these.

    >>> bias_decay(None) is None, bias_decay("free"), bias_decay(0.01)
    (True, 0.0, 0.01)
    """
    if bias is None:
        return None
    if isinstance(bias, str):
        if bias != "free":
            raise ValueError(f"bias must be None, 'free' or a number, got {bias!r}")
        return 0.0
    if isinstance(bias, bool):
        raise ValueError(f"bias must be None, 'free' or a number, got {bias!r}")
    return run_number(bias, "bias")


def class_sizes(K: int, n: Any, counts: Any) -> tuple[int, ...]:
    """Return how many samples each class has, from ``n`` for equal classes or from ``counts``.

    Args:
        K: the number of classes.
        n: the samples of each class; None where ``counts`` are given.
        counts: K positive integers, or None where ``n`` is given.

    Raises:
        ValueError: both are given, or neither, or they are no K positive integers.

    >>> class_sizes(3, 2, None), class_sizes(3, None, (8, 4, 1))
    ((2, 2, 2), (8, 4, 1))
    """
    if (n is None) == (counts is None):
        raise ValueError(
            f"give either n or counts, the other must be None, got n = {n!r}, counts = {counts!r}"
        )
    if counts is None:
        return (require_count(n, "n"),) * K
    sizes = tuple(counts.tolist() if isinstance(counts, (Tensor, np.ndarray)) else counts)
    if len(sizes) != K:
        raise ValueError(f"counts must hold one number for each of the {K} classes, got {len(sizes)}")
    return tuple(require_count(size, f"counts[{k}]") for k, size in enumerate(sizes))


def common_batch(**numbers: RunNumber) -> int | None:
    """Return the B on which all (B,) numbers agree, None where every number is shared by all runs.

    Raises:
        ValueError: two numbers differ in B.

    >>> common_batch(lambda_W=torch.ones(3), lambda_H=0.1)
    3
    """
    sizes = {name: x.shape[0] for name, x in numbers.items() if isinstance(x, Tensor)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all numbers given for each run must agree in B, got {sizes}")
    return next(iter(sizes.values()), None)


def over_runs(x: RunNumber, like: Tensor) -> RunNumber:
    """Shape a number so that it multiplies a (B, …) tensor run by run.

    >>> over_runs(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return x.to(like).reshape(-1, *[1] * (like.ndim - 1)) if isinstance(x, Tensor) else x


def take_runs(x: RunNumber, index: Tensor) -> RunNumber:
    """Keep the numbers of some runs, on the device of the index; a shared number stays.

    >>> take_runs(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0]))
    tensor([3., 1.])
    """
    return x.to(index.device)[index] if isinstance(x, Tensor) else x


def require_count(x: Any, name: str, least: int = 1) -> int:
    """Check that an argument is an integer of at least ``least``.

    Raises:
        ValueError: it is not.

    >>> require_count(4, "K")
    4
    """
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {x!r}")
    return int(x)


def gaussian(
    shape: tuple[int, ...],
    deviation: float,
    generator: torch.Generator,
    dtype: torch.dtype = DTYPE,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw independent N(0, deviation²) entries, the same on every device for a generator on the CPU.

    Args:
        shape: the shape of the tensor.
        deviation: the standard deviation.
        generator: the source of randomness; the numbers are drawn on its device.
        dtype: the type of the result; the numbers are drawn in float64.
        device: where the result shall live; the generator's device when None.

    >>> gaussian((2, 3), 0.1, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    draws = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return (draws * deviation).to(dtype=dtype, device=device)
