"""Synthetic data: mixtures of Gaussian blobs, drawn afresh in any number and split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ncbook.datasets._dataset import Dataset
from ncbook.datasets._labels import corrupt, require_rate
from ncbook.runtime import as_tensor

__all__ = [
    "NOISE_STREAM",
    "class_sizes",
    "gaussian_mixture",
    "random_stream",
    "require_seed",
    "require_split",
]

Floats = npt.NDArray[np.float64]

# Independent streams of one seed: what is drawn for one purpose never shifts what is drawn for another.
_CENTRES, _SAMPLES, NOISE_STREAM = 0, 1, 2


def gaussian_mixture(
    num_classes: int,
    shape: int | Sequence[int],
    *,
    per_class: int | Sequence[int],
    separation: float = 3.0,
    blobs: int = 1,
    means: Any | None = None,
    split: str = "train",
    label_noise: float = 0.0,
    noise: str = "flip",
    seed: int = 0,
) -> Dataset:
    """Draw a mixture of Gaussians: class k is made of ``blobs`` blobs N(c, I) with centres c of one length.

    The centres are independent uniform directions times ``separation``, the same for both splits. Sample i of
    a class belongs to blob i mod ``blobs``, so that a smaller draw is the beginning of a larger one. The
    coordinates are served as drawn: mean 0 and std 1 in the returned data set.

    Args:
        num_classes: K.
        shape: of a sample, (C, H, W), or the dimension D of a vector, served as (1, 1, D).
        per_class: samples of every class, one number or K of them.
        separation: the length of the centres in units of the blobs' standard deviation.
        blobs: per class.
        means: (K * blobs, D) centres in place of the random ones, those of class 0 first.
        split: ``train`` or ``test``: independent samples of the same mixture.
        label_noise: the fraction of wrong labels.
        noise: its kind; see :func:`ncbook.datasets.load`.
        seed: of centres, samples and noise.

    Raises:
        ValueError: a number is not in its range or the means do not have the shape above.

    >>> data = gaussian_mixture(3, 8, per_class=5)
    >>> data.images.shape, data.counts.tolist()
    (torch.Size([15, 1, 1, 8]), [5, 5, 5])
    """
    _require_count(num_classes, "num_classes")
    _require_count(blobs, "blobs")
    require_split(split)
    require_seed(seed)
    require_rate(label_noise, noise)
    sizes = class_sizes(per_class, num_classes)
    dimensions = _sample_shape(shape)
    centres = _centres(num_classes * blobs, int(np.prod(dimensions)), separation, means, seed)
    samples = [_draw_class(k, size, centres, blobs, split, seed) for k, size in enumerate(sizes)]
    true = np.repeat(np.arange(num_classes), sizes)
    labels = corrupt(true, num_classes, label_noise, noise, random_stream(seed, NOISE_STREAM, split))
    channels = dimensions[0]
    return Dataset(
        images=torch.from_numpy(np.concatenate(samples).astype(np.float32).reshape(-1, *dimensions)),
        labels=torch.from_numpy(labels),
        true_labels=torch.from_numpy(true),
        name="synthetic",
        num_classes=num_classes,
        mean=torch.zeros(channels, dtype=torch.float64),
        std=torch.ones(channels, dtype=torch.float64),
        source=f"Gaussian mixture, seed {seed}",
        split=split,
    )


def _draw_class(k: int, size: int, centres: Floats, blobs: int, split: str, seed: int) -> Floats:
    generator = random_stream(seed, _SAMPLES, split, k)
    own = centres[k * blobs : (k + 1) * blobs]
    return own[np.arange(size) % blobs] + generator.standard_normal((size, centres.shape[1]))


def _centres(count: int, dimension: int, separation: float, means: Any | None, seed: int) -> Floats:
    if means is not None:
        given = as_tensor(means, "means", torch.float64).detach().cpu().numpy()
        if given.shape != (count, dimension):
            raise ValueError(f"means must have the shape {(count, dimension)}, got {given.shape}")
        return given
    if isinstance(separation, bool) or not isinstance(separation, (int, float)) or not 0 <= separation < 1e6:
        raise ValueError(f"separation must be a number between 0 and 1e6, got {separation!r}")
    directions = random_stream(seed, _CENTRES, "train").standard_normal((count, dimension))
    return separation * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _sample_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    dimensions = (1, 1, shape) if isinstance(shape, int) else tuple(shape)
    if len(dimensions) != 3 or any(
        isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in dimensions
    ):
        raise ValueError(f"shape must be a positive integer or three of them (C, H, W), got {shape!r}")
    return dimensions


def random_stream(seed: int, purpose: int, split: str, *more: int) -> np.random.Generator:
    """A random generator that is independent of those of other purposes, splits and numbers."""
    return np.random.default_rng([seed, purpose, int(split == "test"), *more])


def class_sizes(per_class: Any, num_classes: int) -> list[int]:
    """Check ``per_class`` and return one number per class."""
    if isinstance(per_class, (int, np.integer)) and not isinstance(per_class, bool):
        sizes = [int(per_class)] * num_classes
    elif isinstance(per_class, (Sequence, np.ndarray, torch.Tensor)) and not isinstance(per_class, str):
        sizes = as_tensor(per_class, "per_class", torch.int64).reshape(-1).tolist()
    else:
        raise ValueError(f"per_class must be a positive integer or one per class, got {per_class!r}")
    if len(sizes) != num_classes:
        raise ValueError(
            f"per_class must hold one number for each of {num_classes} classes, got {len(sizes)}"
        )
    if min(sizes) < 1:
        raise ValueError(f"per_class must be at least 1 for every class, got {min(sizes)}")
    return sizes


def require_split(split: Any) -> None:
    """Check the name of a split."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")


def require_seed(seed: Any) -> None:
    """Check a seed."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")


def _require_count(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
