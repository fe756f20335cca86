"""Augmentation of a whole batch at once, on its device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["augment_batch"]

_PADDING = 4  # pixels on every side, of the value 0: the mean of the standardised images


def augment_batch(images: Tensor, kind: str | None, generator: torch.Generator) -> Tensor:
    """Return the images (B, H, W, C) flipped and cropped at random, each by its own draw.

    Args:
        images: a batch, channels last.
        kind: None, ``flip``, ``crop`` or ``crop+flip``.
        generator: on the device of the images.
    """
    if kind is None:
        return images
    count, height, width, channels = images.shape
    columns = torch.arange(width, device=images.device).expand(count, width)
    rows = torch.arange(height, device=images.device).expand(count, height)
    if "flip" in kind:
        flipped = torch.rand(count, 1, device=images.device, generator=generator) < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    if "crop" in kind:
        span = 2 * _PADDING + 1
        shift = torch.randint(span, (2, count, 1), device=images.device, generator=generator)
        rows, columns = rows + shift[0], columns + shift[1]
        padded = images.new_zeros(count, height + 2 * _PADDING, width + 2 * _PADDING, channels)
        padded[:, _PADDING:-_PADDING, _PADDING:-_PADDING] = images
        images = padded
    each = torch.arange(count, device=images.device)[:, None, None]
    return images[each, rows[:, :, None], columns[:, None, :]]
