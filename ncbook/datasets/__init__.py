"""The data of the book: small real image sets and synthetic mixtures, whole, as tensors.

:func:`load` searches, in this order: the folder named by ``$NCBOOK_DATA``; the folder of the Debian package
dataset-fashion-mnist; the download cache (filled only with permission); the subset of Fashion-MNIST that the
package carries. A request that fits into the subset is served the very same images by every source.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ncbook.datasets._dataset import Dataset, from_arrays
from ncbook.datasets._errors import (
    CorruptFile,
    DataError,
    DownloadFailed,
    MissingFile,
    NotGzip,
    TruncatedFile,
    WrongHash,
)
from ncbook.datasets._labels import Labels, corrupt, require_rate
from ncbook.datasets._mixture import (
    NOISE_STREAM,
    class_sizes,
    gaussian_mixture,
    random_stream,
    require_seed,
    require_split,
)
from ncbook.datasets._sources import SPECS, Bytes, Raw, Spec, find
from ncbook.runtime import as_tensor

__all__ = [
    "NAMES",
    "CorruptFile",
    "DataError",
    "Dataset",
    "DownloadFailed",
    "MissingFile",
    "NotGzip",
    "TruncatedFile",
    "WrongHash",
    "from_arrays",
    "gaussian_mixture",
    "load",
]

NAMES = (*SPECS, "synthetic")
"""The data sets that :func:`load` knows."""

_NUM_CLASSES = 10  # of every data set here
_SYNTHETIC_SHAPE = (1, 8, 8)


def load(
    name: str,
    *,
    split: str = "train",
    classes: Sequence[int] | None = None,
    per_class: int | Sequence[int] | None = None,
    label_noise: float = 0.0,
    noise: str = "flip",
    seed: int = 0,
    allow_download: bool = False,
) -> Dataset:
    """Load a data set whole, as standardised float32 tensors, class by class.

    The images of a class are its first ``per_class`` ones in the original order (of the digits: in a fixed
    order that spreads their writers evenly): a smaller choice is always contained in a larger one, and the
    seed does not touch it. Images are standardised by the mean and the
    standard deviation of *all* pixels of the original training split, whatever is chosen of it.

    ``label_noise`` is η, the fraction of labels that *are wrong*; ``noise`` says how they are made:

    - ``flip``: exactly round(η n_k) images of every class k (halves rounded up) get another class's label,
      uniformly among the K - 1 others; η up to 1.
    - ``uniform``: round(ρ n_k) images of every class draw a label uniformly among all K, their own included,
      with ρ = η K/(K-1), so that the fraction η is wrong on average; η up to (K-1)/K.
    - ``permute``: round(ρ n_k) images of every class exchange their labels by one random permutation, which
      keeps the number of images of every label; ρ = η/(1 - Σ_k (n_k/N)²), so that η is wrong on average;
      with balanced classes η is at most (K-1)/K, where *all* labels are permuted (random labels).

    Args:
        name: ``digits`` (scikit-learn's, 8 x 8; 120 of each class train, the other 54 to 63 test),
            ``fashion-mnist``, ``mnist`` (28 x 28), ``cifar10`` (3 x 32 x 32), or ``synthetic`` (ten Gaussian
            blobs of 1 x 8 x 8, see :func:`gaussian_mixture`).
        split: ``train`` or ``test``.
        classes: the classes to keep; they become 0, 1, … in the order given. None keeps all.
        per_class: images of each kept class: one number, or one per kept class; None takes all there are.
        label_noise: η.
        noise: ``flip``, ``uniform`` or ``permute``.
        seed: of the label noise (and of the samples of ``synthetic``).
        allow_download: fetch missing files; the variable ``NCBOOK_DOWNLOAD=1`` allows it too.

    Raises:
        ValueError: an argument is not as above, or a class has fewer images than asked for.
        DataError: a file is missing (MissingFile), not a gzip file (NotGzip), truncated (TruncatedFile),
            damaged (CorruptFile), another one (WrongHash), or could not be fetched (DownloadFailed).

    >>> digits = load("digits", per_class=20, label_noise=0.1)
    >>> digits.images.shape, int(digits.noisy.sum())
    (torch.Size([200, 1, 8, 8]), 20)
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    require_split(split)
    require_seed(seed)
    require_rate(label_noise, noise)
    kept = _kept_classes(classes)
    sizes = None if per_class is None else class_sizes(per_class, len(kept))
    if name == "synthetic":
        return _load_synthetic(kept, sizes, split, label_noise, noise, seed)
    spec = SPECS[name]
    raw = find(name, split, None if sizes is None else max(sizes), _may_download(allow_download))
    chosen, true = _choose(raw, kept, sizes, f"{spec.title} ({split})")
    images, mean, std = _standardise(raw.pixels[chosen], name, spec)
    return Dataset(
        images=images,
        labels=_noisy(true, len(kept), label_noise, noise, split, seed),
        true_labels=torch.from_numpy(true),
        name=name,
        num_classes=len(kept),
        mean=mean,
        std=std,
        source=raw.source,
        split=split,
        class_names=tuple(spec.class_names[k] for k in kept),
    )


def _kept_classes(classes: Any) -> tuple[int, ...]:
    if classes is None:
        return tuple(range(_NUM_CLASSES))
    if isinstance(classes, (str, bytes, int)):
        raise ValueError(f"classes must be a sequence of class numbers, got {classes!r}")
    kept = tuple(as_tensor(classes, "classes", torch.int64).reshape(-1).tolist())
    if not kept or len(set(kept)) < len(kept) or not all(0 <= k < _NUM_CLASSES for k in kept):
        raise ValueError(f"classes must be distinct numbers from 0 to {_NUM_CLASSES - 1}, got {list(kept)}")
    return kept


def _may_download(allow_download: Any) -> bool:
    if not isinstance(allow_download, bool):
        raise ValueError(f"allow_download must be True or False, got {allow_download!r}")
    value = os.environ.get("NCBOOK_DOWNLOAD", "").strip() or "0"
    if value not in {"0", "1"}:
        raise ValueError(f"NCBOOK_DOWNLOAD must be 0 or 1, got {value!r}")
    return allow_download or value == "1"


def _choose(raw: Raw, kept: Sequence[int], sizes: list[int] | None, what: str) -> tuple[Labels, Labels]:
    """The positions of the first images of every kept class, class by class, and their labels 0, 1, …"""
    chosen = []
    for position, k in enumerate(kept):
        members = np.flatnonzero(raw.labels == k)
        wanted = len(members) if sizes is None else sizes[position]
        if wanted > len(members):
            raise ValueError(
                f"per_class must be at most {len(members)} for class {k} of {what}, got {wanted}"
            )
        chosen.append(members[:wanted])
    true = np.repeat(np.arange(len(kept)), [len(members) for members in chosen])
    return np.concatenate(chosen), true


def _noisy(true: Labels, num_classes: int, rate: float, noise: str, split: str, seed: int) -> Tensor:
    return torch.from_numpy(corrupt(true, num_classes, rate, noise, random_stream(seed, NOISE_STREAM, split)))


def _standardise(pixels: Bytes, name: str, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Look every pixel up in a table of standardised values: exact, and without a float64 copy."""
    mean, std = _digits_moments() if name == "digits" else (np.array(spec.mean), np.array(spec.std))
    levels = np.arange(spec.levels + 1) / spec.levels
    table = ((levels - mean[:, None]) / std[:, None]).astype(np.float32)
    channels = np.arange(len(mean))[None, :, None, None]
    return torch.from_numpy(table[channels, pixels]), torch.from_numpy(mean), torch.from_numpy(std)


@functools.cache
def _digits_moments() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    pixels = find("digits", "train", None, False).pixels / SPECS["digits"].levels
    return np.array([pixels.mean()]), np.array([pixels.std()])


def _load_synthetic(
    kept: Sequence[int], sizes: list[int] | None, split: str, rate: float, noise: str, seed: int
) -> Dataset:
    if sizes is None:
        raise ValueError(
            "per_class must be a number of images for 'synthetic', which has no last one, got None"
        )
    wanted = dict(zip(kept, sizes, strict=True))
    whole = gaussian_mixture(
        _NUM_CLASSES,
        _SYNTHETIC_SHAPE,
        per_class=[wanted.get(k, 1) for k in range(_NUM_CLASSES)],
        split=split,
        seed=seed,
    )
    chosen = torch.cat([torch.nonzero(whole.labels == k).reshape(-1) for k in kept])
    true = np.repeat(np.arange(len(kept)), sizes)
    return replace(
        whole,
        images=whole.images[chosen],
        labels=_noisy(true, len(kept), rate, noise, split, seed),
        true_labels=torch.from_numpy(true),
        num_classes=len(kept),
    )
