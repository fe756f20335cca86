"""Label noise: three ways of making a given fraction of the labels wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NOISES", "Labels", "corrupt", "require_rate"]

NOISES = ("flip", "uniform", "permute")
_SLACK = 1e-9  # (K-1)/K typed as a decimal number must count as (K-1)/K

Labels = npt.NDArray[np.int64]


def corrupt(
    labels: Labels, num_classes: int, rate: float, noise: str, generator: np.random.Generator
) -> Labels:
    """Return labels of which the fraction ``rate`` is wrong, exactly (flip) or on average (the others).

    Args:
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        rate: η, the fraction of wrong labels.
        noise: one of ``NOISES``; see :func:`ncbook.datasets.load`.
        generator: the source of randomness.

    Raises:
        ValueError: the kind of noise is unknown, or it cannot make that many labels wrong.
    """
    chance = _touched_fraction(labels, num_classes, require_rate(rate, noise), noise)
    noisy = labels.copy()
    if chance == 0.0:
        return noisy
    touched = _choose_per_class(labels, num_classes, chance, generator)
    if noise == "flip":
        noisy[touched] += generator.integers(1, num_classes, size=len(touched))
        noisy %= num_classes
    elif noise == "uniform":
        noisy[touched] = generator.integers(0, num_classes, size=len(touched))
    else:
        noisy[touched] = generator.permutation(labels[touched])
    return noisy


def require_rate(rate: Any, noise: Any) -> float:
    """Check the two arguments that describe the noise."""
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.floating)) or not 0 <= rate <= 1:
        raise ValueError(f"label_noise must be a number between 0 and 1, got {rate!r}")
    return float(rate)


def _touched_fraction(labels: Labels, num_classes: int, rate: float, noise: str) -> float:
    """The fraction of labels to be drawn anew so that the fraction ``rate`` comes out wrong."""
    if rate == 0.0:
        return 0.0
    if num_classes == 1:
        raise ValueError(f"label_noise must be 0 with a single class (no label is wrong), got {rate}")
    if noise == "flip":
        return rate
    if noise == "uniform":
        largest = (num_classes - 1) / num_classes  # a uniform label is right with chance 1/K
    else:
        shares = np.bincount(labels, minlength=num_classes) / len(labels)
        largest = 1.0 - float(
            np.sum(shares**2)
        )  # a permuted label is right with chance sum of squared shares
    if rate > largest + _SLACK:
        raise ValueError(
            f"label_noise must be at most {largest:.6g} with noise={noise!r} (there every label is drawn "
            f"anew), got {rate}"
        )
    return min(1.0, rate / largest)


def _choose_per_class(
    labels: Labels, num_classes: int, fraction: float, generator: np.random.Generator
) -> npt.NDArray[np.intp]:
    """round(fraction n_k) positions of every class k, halves rounded up, without replacement."""
    chosen = []
    for k in range(num_classes):
        members = np.flatnonzero(labels == k)
        count = math.floor(fraction * len(members) + 0.5)
        chosen.append(generator.choice(members, size=count, replace=False))
    return np.concatenate(chosen)
