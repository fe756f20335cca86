"""The one type that carries images and labels through the book."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ncbook.runtime import as_tensor

__all__ = ["Dataset", "from_arrays"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels as tensors, with where they come from.

    Images chosen by :func:`load` stand class by class: all of class 0, then all of class 1, and so on.

    Args:
        images: (N, C, H, W) floating point, standardised: (pixel - mean) / std with pixels from 0 to 1.
        labels: (N,) int64 from 0 to num_classes - 1, the labels that a trainer sees.
        true_labels: (N,) int64, the labels before any noise.
        name: of the data set.
        num_classes: K.
        mean: (C,) float64, of the pixels of the original training split.
        std: (C,) float64, likewise.
        source: where the images were found.
        split: ``train`` or ``test``.
        class_names: the K names, or nothing.

    Raises:
        ValueError: an argument has the wrong shape or type, a label is out of range, an image is not finite.

    >>> data = from_arrays([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [0, 1, 1])
    >>> len(data), data.counts.tolist(), data.shape
    (3, [1, 2], (1, 1, 2))
    """

    images: Tensor
    labels: Tensor
    true_labels: Tensor
    name: str
    num_classes: int
    mean: Tensor
    std: Tensor
    source: str
    split: str = "train"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_images(self.images)
        if (
            isinstance(self.num_classes, bool)
            or not isinstance(self.num_classes, int)
            or self.num_classes < 1
        ):
            raise ValueError(f"num_classes must be a positive integer, got {self.num_classes!r}")
        for name in ("labels", "true_labels"):
            _require_labels(getattr(self, name), name, len(self.images), self.num_classes)
        for name in ("mean", "std"):
            moments = as_tensor(getattr(self, name), name)
            if moments.shape != (self.images.shape[1],):
                raise ValueError(
                    f"{name} must hold one number per channel ({self.images.shape[1]}), "
                    f"got the shape {tuple(moments.shape)}"
                )
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, got {self.std.tolist()}")
        if len(self.class_names) not in (0, self.num_classes):
            raise ValueError(
                f"class_names must hold {self.num_classes} names or none, got {len(self.class_names)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def counts(self) -> Tensor:
        """(K,) int64, the number of images that carry each label."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def noisy(self) -> Tensor:
        """(N,) bool, where the label is wrong."""
        return self.labels != self.true_labels

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the images and labels as they stand, to record which data a run has seen."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype}".encode())
        for tensor in (self.images, self.labels, self.true_labels):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def pixels(self) -> Tensor:
        """Return the images on the scale from 0 to 1, to be looked at."""
        mean, std = (
            moment.to(self.images)[:, None, None] for moment in (as_tensor(self.mean, "mean"), self.std)
        )
        return self.images * std + mean

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dataset:
        """Return the data set on another device, or with images of another floating-point type."""
        return replace(
            self,
            images=self.images.to(device=device, dtype=dtype),
            labels=self.labels.to(device=device),
            true_labels=self.true_labels.to(device=device),
        )


def from_arrays(
    images: Any,
    labels: Any,
    *,
    true_labels: Any | None = None,
    num_classes: int | None = None,
    name: str = "own data",
    split: str = "train",
    class_names: Sequence[str] = (),
) -> Dataset:
    """Make a :class:`Dataset` of one's own arrays, which are taken as they are (not standardised).

    Args:
        images: (N, C, H, W), (N, H, W), or (N, D) for vectors, which become images of one row.
        labels: (N,) integers from 0.
        true_labels: (N,), where the labels carry noise.
        num_classes: K; None takes the largest label plus one.
        name: of the data.
        split: ``train`` or ``test``.
        class_names: K names, or nothing.

    Raises:
        ValueError: shapes do not fit, a label is out of range, an entry is not finite.

    >>> from_arrays([[0.0, 1.0], [2.0, 3.0]], [1, 0]).images.shape
    torch.Size([2, 1, 1, 2])
    """
    pictures = as_tensor(images, "images")
    if pictures.ndim not in (2, 3, 4):
        raise ValueError(
            f"images must be (N, C, H, W), (N, H, W) or (N, D), got the shape {tuple(pictures.shape)}"
        )
    if not pictures.is_floating_point():
        pictures = pictures.to(torch.float32)
    if pictures.ndim == 2:
        pictures = pictures[:, None, None, :]
    elif pictures.ndim == 3:
        pictures = pictures[:, None]
    given = as_tensor(labels, "labels", torch.int64)
    true = given.clone() if true_labels is None else as_tensor(true_labels, "true_labels", torch.int64)
    if num_classes is None:
        num_classes = int(given.max()) + 1 if given.numel() else 1
    channels = pictures.shape[1]
    zeros, ones = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    return Dataset(
        pictures, given, true, name, num_classes, zeros, ones, "given arrays", split, tuple(class_names)
    )


def _require_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = (
            f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise ValueError(f"images must be a floating-point tensor (N, C, H, W), got {found}")
    if 0 in images.shape:
        raise ValueError(f"images must not be empty, got the shape {tuple(images.shape)}")
    as_tensor(images, "images")


def _require_labels(labels: Tensor, name: str, count: int, num_classes: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (count,):
        found = (
            f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        )
        raise ValueError(f"{name} must be an int64 tensor ({count},), one per image, got {found}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} must lie between 0 and {num_classes - 1}, got {low} to {high}")
