"""What both passes do with rows of features: check them, cut them into blocks, sum them by class, gather."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ncbook.runtime import as_tensor

_CPU_BLOCK = 2**19  # numbers in a block: 4 MB of float64 stay in the cache, measured best among 2**15 … 2**20
_DEVICE_BLOCK = 2**23  # a GPU wants large blocks, 64 MB each
_PROBE = 512  # rows that decide about centring


def deviations(features: Tensor, labels: Tensor, centres: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of rows less the centre of their class, in the centres' type (one buffer), and labels."""
    n, d = features.shape
    numbers = _CPU_BLOCK if features.device.type == "cpu" else _DEVICE_BLOCK
    size = min(n, max(1, numbers // max(d, len(centres))))
    buffer, centred = centres.new_empty(size, d), bool(centres.any())
    for start in range(0, n, size):
        part, own = features[start : start + size], labels[start : start + size]
        rows = buffer[: len(own)]
        if centred:
            torch.index_select(centres, 0, own, out=rows)
            torch.sub(part, rows, out=rows)
        else:
            rows.copy_(part)  # pays even without conversion: a product is faster from the cache
        yield rows, own


def about_origin(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Say of each class, from a sample of rows, whether sums about the origin serve it."""
    step = (len(labels) // _PROBE) | 1  # odd, to see all classes where labels go round in tens or hundreds
    part, own = features[::step].to(torch.float64), labels[::step]
    counts = torch.bincount(own, minlength=num_classes)
    sums, squares = part.new_zeros(num_classes, part.shape[1]), part.new_zeros(num_classes)
    add_by_class(sums, part, own)
    squares.index_add_(0, own, torch.linalg.vector_norm(part, dim=1).square())
    within = squares - sums.square().sum(1) / counts.clamp(min=1)
    return (counts >= 4) & spread_about_origin(squares, within)


def spread_about_origin(squares: Tensor, within: Tensor) -> Tensor:
    """Whether squared lengths are at most 25 times squared distances from the mean: no digit is lost."""
    return squares <= 25 * within


def add_by_class(sums: Tensor, rows: Tensor, labels: Tensor) -> None:
    """Add each row to the sum of its class, always in the same order."""
    if rows.device.type == "cpu":
        sums.index_add_(0, labels, rows)
    else:  # a GPU adds in an order of its own; a product does not
        sums += torch.nn.functional.one_hot(labels, len(sums)).to(rows.dtype).T @ rows


def product_dtype(features: Tensor) -> torch.dtype:
    """Float32 for narrow features on the CPU, where such products are not cut down to bf16; else float64."""
    narrow = features.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not narrow or features.device.type != "cpu":
        return torch.float64
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and later
    setting = getattr(matmul, "fp32_precision", None) or torch.get_float32_matmul_precision()
    return torch.float32 if setting in {"none", "ieee", "highest"} else torch.float64


def check_batch(features: Any, labels: Any, num_classes: int, dim: int) -> tuple[Tensor, Tensor]:
    features, labels = check_features(features), check_labels(labels)
    if features.shape[1] != dim:
        raise ValueError(f"features must have {dim} columns, got shape {list(features.shape)}")
    if len(features) != len(labels):
        raise ValueError(
            f"labels must have one entry for each of the {len(features)} rows of features, got {len(labels)}"
        )
    labels = labels.to(features.device)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        bad = labels.max() if labels.max() >= num_classes else labels.min()
        raise ValueError(
            f"labels must lie in 0 … {num_classes - 1} for {num_classes} classes, got {int(bad)}"
        )
    return features, labels


def check_features(features: Any) -> Tensor:
    """Return features as a detached matrix of rows; floats are checked for NaN on their sums, for free."""
    if not (isinstance(features, Tensor) and features.is_floating_point()):
        features = as_tensor(features, "features")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features must be a matrix (N, d) of rows, got shape {list(features.shape)}")
    return (
        features.detach().cpu() if features.device.type == "mps" else features.detach()
    )  # MPS has no float64


def check_labels(labels: Any) -> Tensor:
    """Return labels as a vector of int64."""
    labels = as_tensor(labels, "labels", torch.int64)
    if labels.ndim != 1:
        raise ValueError(f"labels must be a vector of class indices, got shape {list(labels.shape)}")
    return labels


def check_classifier(weight: Any, bias: Any, dim: int | None = None) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias in float64, or None where they are absent."""
    if weight is None:
        if bias is not None:
            raise ValueError("bias must come with a weight, got a bias alone")
        return None, None
    weight = as_tensor(
        weight.cpu() if isinstance(weight, Tensor) else weight, "weight", torch.float64
    ).detach()
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight must be a matrix (K, d), got shape {list(weight.shape)}")
    if dim is not None and weight.shape[1] != dim:
        raise ValueError(
            f"weight must have the {dim} columns of the features, got shape {list(weight.shape)}"
        )
    if bias is None:
        return weight, None
    bias = as_tensor(bias.cpu() if isinstance(bias, Tensor) else bias, "bias", torch.float64).detach()
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have one entry for each of {len(weight)} classes, got {list(bias.shape)}"
        )
    return weight, bias


def check_state(state: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if set(state) != set(mine):
        raise ValueError(f"state must hold {sorted(mine)}, got {sorted(state)}")
    for name, tensor in mine.items():
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"state must hold {name} of shape {list(tensor.shape)}, got {list(state[name].shape)}"
            )
    return {name: state[name].detach().to(tensor, copy=True) for name, tensor in mine.items()}


def require_finite(sums: Tensor, features: Tensor) -> None:
    if bool(torch.isfinite(sums).all()):
        return
    as_tensor(features, "features")  # names what is not finite
    raise ValueError(
        f"features must have squares that float64 can hold, got {float(features.abs().max()):.3g}"
    )


def positive_integer(value: Any, name: str) -> int:
    """Return a positive integer of any integer type as an int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def gather(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the states of all processes in the order of their ranks."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    gathered: list[dict[str, Tensor]] = [{} for _ in range(dist.get_world_size())]
    for name, tensor in state.items():
        received = [torch.empty_like(tensor, device=device) for _ in gathered]
        dist.all_gather(received, tensor.to(device).contiguous())
        for theirs, value in zip(gathered, received, strict=True):
            theirs[name] = value.to(tensor.device)
    return gathered
