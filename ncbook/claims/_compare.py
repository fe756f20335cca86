"""The comparison behind a claim: numbers of any kind, slack, margin and worst element."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["MARGIN_FLOOR", "as_numbers", "as_numbers_like", "slack_of", "worst"]

MARGIN_FLOOR = -1e12
"""The smallest margin ever reported; it also stands for a miss that no slack can be compared with."""


def as_numbers(x: Any, name: str) -> np.ndarray:
    """Turn numbers into a float64 array, NaN and infinity included: a check shall fail on them, not crash."""
    array = _array(x, name)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got {type(x).__name__} of {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one number, got shape {array.shape}")
    return array.astype(np.float64)


def _array(x: Any, name: str) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        return (x.to(torch.float64) if x.is_floating_point() else x.resolve_conj()).numpy()
    try:
        if isinstance(x, (list, tuple)) and any(isinstance(entry, torch.Tensor) for entry in x):
            return np.stack([_array(entry, name) for entry in x])
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} must be a rectangular array, got entries of different shapes") from None


def as_numbers_like(x: Any, measured: np.ndarray, name: str) -> np.ndarray:
    array = as_numbers(x, name)
    if array.ndim > 0 and array.shape != measured.shape:
        raise ValueError(
            f"{name} must have the shape of measured, {measured.shape}, or be one number; got {array.shape}"
        )
    return np.broadcast_to(array, measured.shape)


def slack_of(predicted: np.ndarray, atol: float, rtol: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return atol + rtol * np.abs(predicted)


def worst(
    relation: str, predicted: np.ndarray, measured: np.ndarray, slack: np.ndarray
) -> tuple[tuple[int, ...], bool, float]:
    """Return the index of the worst element, whether all elements hold, and the worst element's margin."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if relation == "==":
            room, scale = slack - np.abs(measured - predicted), slack
        else:
            distance = predicted - measured if relation in ("<=", "<") else measured - predicted
            room = distance + slack
            scale = np.maximum(np.maximum(np.abs(predicted), np.abs(measured)), slack)
        margin = room / scale
    usable = np.isfinite(predicted) & np.isfinite(measured) & np.isfinite(slack)
    holds = usable & ((room > 0) if relation in ("<", ">") else (room >= 0))
    without_scale = np.where(room < 0, MARGIN_FLOOR, 1.0 if relation == "==" else 0.0)
    margin = np.where(scale == 0, without_scale, margin)
    margin = np.where(usable, np.clip(margin, MARGIN_FLOOR, 1.0), MARGIN_FLOOR)
    first = int(np.lexsort((margin.ravel(), holds.ravel()))[0])  # failures first, then by margin
    at = tuple(int(i) for i in np.unravel_index(first, margin.shape))
    return at, bool(holds.all()), float(margin[at])
