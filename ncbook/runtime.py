"""Where and how the book runs: device, precision, profile, seeds, progress bars and input checks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

__all__ = [
    "DTYPE",
    "as_tensor",
    "device",
    "generator",
    "is_static",
    "profile",
    "progress",
    "seed",
]

DTYPE: torch.dtype = torch.float64
"""The precision of all theory in the book: equalities are checked to about 1e-10, too fine for float32."""

_BAR_DELAY_SECONDS = 1.0  # a bar for work shorter than this would only flicker

Item = TypeVar("Item")


def device() -> torch.device:
    """Return the best device for the book's float64 work: the first CUDA device, otherwise the CPU.

    The variable ``NCBOOK_DEVICE`` overrides the choice (for example ``cpu`` or ``cuda:1``). Apple's MPS is
    never chosen, because it has no float64.

    Raises:
        ValueError: ``NCBOOK_DEVICE`` names no device, or one that this machine does not have.

    >>> device().type in {"cpu", "cuda"}
    True
    """
    wanted = os.environ.get("NCBOOK_DEVICE", "").strip()
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(wanted)
    except RuntimeError:
        raise ValueError(
            f"NCBOOK_DEVICE must name a torch device such as cpu or cuda:0, got {wanted!r}"
        ) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"NCBOOK_DEVICE is {wanted!r}, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return chosen


def profile() -> Literal["quick", "full"]:
    """Return the profile of this run, ``NCBOOK_PROFILE``: small sizes (quick) or those of the papers (full).

    Raises:
        ValueError: ``NCBOOK_PROFILE`` is neither ``quick`` nor ``full``.

    >>> profile() in {"quick", "full"}
    True
    """
    value = os.environ.get("NCBOOK_PROFILE", "").strip() or "quick"
    if value == "quick":
        return "quick"
    if value == "full":
        return "full"
    raise ValueError(f"NCBOOK_PROFILE must be 'quick' or 'full', got {value!r}")


def is_static() -> bool:
    """Say whether the pages are being built for a site without a kernel (``NCBOOK_STATIC=1``).

    Raises:
        ValueError: ``NCBOOK_STATIC`` is set to something other than 0 or 1.

    >>> is_static() in {True, False}
    True
    """
    value = os.environ.get("NCBOOK_STATIC", "").strip() or "0"
    if value not in {"0", "1"}:
        raise ValueError(f"NCBOOK_STATIC must be 0 or 1, got {value!r}")
    return value == "1"


def seed(offset: int = 0) -> int:
    """Return the base seed of this run plus an offset; everything random in a chapter derives from it.

    The base seed is ``NCBOOK_SEED`` (0 when unset). Experiments that shall stay independent of one another
    when the base seed runs over 0, …, 19 take offsets that lie at least 100 apart.

    Args:
        offset: a non-negative integer, different for each random experiment of a chapter.

    Raises:
        ValueError: ``NCBOOK_SEED`` or the offset is not a non-negative integer.

    >>> seed(100) - seed()
    100
    """
    text = os.environ.get("NCBOOK_SEED", "").strip() or "0"
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"NCBOOK_SEED must be a non-negative integer, got {text!r}")
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise ValueError(f"offset must be a non-negative integer, got {offset!r}")
    return int(text) + offset


def generator(seed: int, device: torch.device | str | None = None) -> torch.Generator:
    """Return a torch generator that starts from the given seed.

    Args:
        seed: a non-negative integer.
        device: the device of the tensors that it will fill; the CPU when None.

    Raises:
        ValueError: the seed is not a non-negative integer.

    >>> torch.rand(2, generator=generator(7)).equal(torch.rand(2, generator=generator(7)))
    True
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    return torch.Generator(device="cpu" if device is None else device).manual_seed(int(seed))


def progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar on standard output, where someone can see it.

    The bar appears after a second, in a terminal or a live notebook only, and vanishes at the end. A page
    built for the site (``NCBOOK_STATIC=1``) and a redirected output stay without it.

    Args:
        iterable: what to iterate over.
        description: a few words shown before the bar.
        total: the number of items, where the iterable does not know its length.

    >>> list(progress(range(3), "counting"))
    [0, 1, 2]
    """
    if is_static() or not _is_interactive():
        yield from iterable
        return
    yield from tqdm(
        iterable, desc=description, total=total, file=sys.stdout, leave=False, delay=_BAR_DELAY_SECONDS
    )


def as_tensor(x: Any, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """Turn a tensor, a NumPy array or a (nested) sequence into a tensor, and refuse what is not finite.

    Args:
        x: the array. Tensors keep their device and their place in autograd; memory is shared where possible.
        name: the argument's name, for the error message.
        dtype: the wanted type. None keeps the type of tensors and arrays; sequences become float64, or int64
            where they hold integers only.

    Raises:
        ValueError: the input is no rectangular array of real numbers, holds NaN or infinity, or would lose
            its fractional part in an integer type.

    >>> as_tensor([[1.0, 2.0]], "features").dtype
    torch.float64
    """
    tensor = _to_tensor(x, name)
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}")
    _require_finite(tensor, name)
    if dtype is None or tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if (
        tensor.is_floating_point()
        and not dtype.is_floating_point
        and not torch.equal(converted.to(tensor.dtype), tensor)
    ):
        raise ValueError(f"{name} must hold integers, got fractional numbers")
    _require_finite(converted, name)  # a number may overflow the narrower type
    return converted


def _to_tensor(x: Any, name: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Sequence) and any(isinstance(entry, Tensor) for entry in x):
        entries = [_to_tensor(entry, name) for entry in x]
        if len({entry.shape for entry in entries}) > 1:
            raise ValueError(f"{name} must be a rectangular array, got entries of different shapes")
        return torch.stack(entries)
    try:
        array = np.asarray(x)
    except ValueError:  # NumPy's word for a ragged sequence does not name the argument
        raise ValueError(f"{name} must be a rectangular array of numbers, got a ragged sequence") from None
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} must be an array of numbers, got {type(x).__name__} of {array.dtype}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.size == 0 and not isinstance(x, np.ndarray):
        array = array.astype(np.float64)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch warns about read-only memory and refuses negative strides
    return torch.as_tensor(array)


def _require_finite(tensor: Tensor, name: str) -> None:
    # A sum is finite only if all terms are, and much cheaper; one that overflows is looked at again.
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return
    if bool(torch.isfinite(tensor).all()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise ValueError(f"{name} must be finite, got {bad} of {tensor.numel()} entries NaN or infinite")


def _is_interactive() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel") or bool(getattr(sys.stdout, "isatty", lambda: False)())
