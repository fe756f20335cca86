"""Build the embedded subset of Fashion-MNIST from the original idx files.

The subset is the first 1,000 training and the first 200 test images of each class, kept in the original
order. The file is an .npz whose bytes depend on nothing but the images (no times, no platform) and on the
deflate implementation.

    python book/_tools/build_embedded_fashion.py FOLDER           write ncbook/data/fashion-mnist-subset.npz
    python book/_tools/build_embedded_fashion.py FOLDER --check   compare it with the original files

FOLDER holds the four original files, for example train-images-idx3-ubyte.gz; each is checked by its sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from ncbook.datasets import _sources
from ncbook.datasets._errors import DataError


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices, in ascending order, of the first ``count`` images of every class."""
    chosen = [np.flatnonzero(labels == k)[:count] for k in range(10)]
    if any(len(indices) < count for indices in chosen):
        raise SystemExit(f"a class has fewer than {count} images")
    return np.sort(np.concatenate(chosen))


def subset(folder: Path) -> dict[str, np.ndarray]:
    """The four arrays of the embedded file, as unsigned bytes."""
    arrays = {}
    for split, count in _sources.EMBEDDED_PER_CLASS.items():
        raw = _sources._read_idx_split("fashion-mnist", split, folder, str(folder))
        chosen = first_of_each_class(raw.labels, count)
        arrays[f"{split}_images"] = raw.pixels[chosen, 0]
        arrays[f"{split}_labels"] = raw.labels[chosen]
    return arrays


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz archive with fixed times and attributes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(entry, content.getvalue(), compresslevel=9)
    return buffer.getvalue()


def same_arrays(content: bytes, arrays: dict[str, np.ndarray]) -> bool:
    """Whether an .npz archive holds exactly these arrays."""
    with np.load(io.BytesIO(content)) as found:
        return set(found) == set(arrays) and all(np.array_equal(found[k], arrays[k]) for k in arrays)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the original idx files lie")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    target = _sources.embedded_path()
    try:
        arrays = subset(options.folder)
    except DataError as error:
        print(error)
        return 1
    if options.check:
        fine = same_arrays(target.read_bytes(), arrays)
        print(f"{target.name}: {'the same images as' if fine else 'NOT the images of'} {options.folder}")
        return 0 if fine else 1
    content = pack(arrays)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    print(f"{target.name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
