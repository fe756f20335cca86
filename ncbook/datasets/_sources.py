"""Where the images come from: the table of data sets and the search through their sources."""

from __future__ import annotations

import functools
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ncbook.datasets._errors import CorruptFile, DataError, MissingFile, TruncatedFile
from ncbook.datasets._files import download, read_bytes, read_gzip, read_idx, require_hash

__all__ = ["EMBEDDED_PER_CLASS", "SPECS", "Raw", "Spec", "find"]

Bytes = npt.NDArray[np.uint8]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
EMBEDDED_PER_CLASS = {"train": 1000, "test": 200}
DIGITS_TRAIN_PER_CLASS = 120  # 1200 training and 597 test images

_GOLDEN = (5**0.5 - 1) / 2

_EMBEDDED_SHA256 = "0eee3ce433229c59554b962378c403ea3da3eba687192e2f6a3a3015779e6d29"
_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_CIFAR_JPEG = "cifar10_jpeg.tar.xz"
_CIFAR_JPEG_SHA256 = "6bada4ac4b2cd8743b44bf07945826402e0e9170f557e1194b5f08aec622a389"
_CIFAR_PER_CLASS = {"train": 5000, "test": 1000}


@dataclass(frozen=True)
class Spec:
    """What is known of a data set before any of its files is opened.

    ``mean`` and ``std`` are those of all pixels of the original training split, on the scale 0 to 1, one
    number a channel; ``levels`` is the largest pixel value of the files.
    """

    title: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: int = 255
    folders: tuple[str, ...] = ()
    url: str = ""
    sha256: tuple[tuple[str, str], ...] = ()

    def hash_of(self, file: str) -> str:
        return dict(self.sha256)[file]


@dataclass(frozen=True)
class Raw:
    """One split as it lies in its source: pixels (N, C, H, W) and labels (N,), in the source's order."""

    pixels: Bytes
    labels: Bytes
    source: str


def _moments(total: int, squares: int, count: int) -> tuple[tuple[float], tuple[float]]:
    """Mean and standard deviation on the scale 0 to 1 from the exact sums over the 8-bit pixels."""
    mean = total / count
    return (mean / 255,), ((squares / count - mean**2) ** 0.5 / 255,)


_DIGIT_NAMES = tuple("0123456789")
_FASHION_MEAN, _FASHION_STD = _moments(3_431_114_169, 631_470_052_347, 47_040_000)
_MNIST_MEAN, _MNIST_STD = _moments(1_567_298_545, 342_590_800_147, 47_040_000)

SPECS: dict[str, Spec] = {
    "digits": Spec("scikit-learn's digits", _DIGIT_NAMES, (0.0,), (1.0,), levels=16),
    "fashion-mnist": Spec(
        title="Fashion-MNIST",
        class_names=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        mean=_FASHION_MEAN,
        std=_FASHION_STD,
        folders=("FashionMNIST", "fashion-mnist"),
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        sha256=(
            ("train-images", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
            ("train-labels", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
            ("t10k-images", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
            ("t10k-labels", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
        ),
    ),
    "mnist": Spec(
        title="MNIST",
        class_names=_DIGIT_NAMES,
        mean=_MNIST_MEAN,
        std=_MNIST_STD,
        folders=("MNIST", "mnist"),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        sha256=(
            ("train-images", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
            ("train-labels", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
            ("t10k-images", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
            ("t10k-labels", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        ),
    ),
    "cifar10": Spec(
        title="CIFAR-10",
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        mean=(0.49139968, 0.48215841, 0.44653091),
        std=(0.24703223, 0.24348513, 0.26158784),
        folders=("CIFAR10", "cifar10", "."),
        url="https://www.cs.toronto.edu/~kriz/",
        sha256=((_CIFAR_ARCHIVE, _CIFAR_SHA256), (_CIFAR_JPEG, _CIFAR_JPEG_SHA256)),
    ),
}


def find(name: str, split: str, largest_class: int | None, may_download: bool) -> Raw:
    """Return one split from the first source that has it.

    Args:
        name: a key of ``SPECS``.
        split: ``train`` or ``test``.
        largest_class: images wanted of the most wanted class; None for all there are.
        may_download: whether missing files may be fetched.

    Raises:
        MissingFile: no source has the images that are asked for.
        DataError: the first source that has the files holds a wrong one.
    """
    if name == "digits":
        return _digits(split)
    if name == "cifar10":
        return _find_cifar(split, may_download)
    return _find_idx(name, split, largest_class, may_download)


def _find_idx(name: str, split: str, largest_class: int | None, may_download: bool) -> Raw:
    for folder, source in _idx_folders(name):
        if folder.is_dir():
            return _read_idx_split(name, split, folder, source)
    cache = _cache_folder() / name
    fits = largest_class is not None and largest_class <= EMBEDDED_PER_CLASS[split]
    if may_download and not (name == "fashion-mnist" and fits):
        _fetch_idx(name, split, cache)
    if all((cache / _idx_name(split, kind)).is_file() for kind in ("images", "labels")):
        return _read_idx_split(name, split, cache, "download cache")
    if name == "fashion-mnist" and fits:
        return _embedded(split)
    raise MissingFile(_missing_message(name, split))


def _idx_folders(name: str) -> Iterator[tuple[Path, str]]:
    root = _data_root()
    if root is not None:
        for folder in SPECS[name].folders:
            yield root / folder / "raw", "$NCBOOK_DATA"
            yield root / folder, "$NCBOOK_DATA"
    if name == "fashion-mnist":
        yield DEBIAN_FOLDER, "the Debian package dataset-fashion-mnist"


def _idx_name(split: str, kind: str) -> str:
    prefix = "train" if split == "train" else "t10k"
    return f"{prefix}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"


def _idx_key(split: str, kind: str) -> str:
    return f"{'train' if split == 'train' else 't10k'}-{kind}"


def _read_idx_split(name: str, split: str, folder: Path, source: str) -> Raw:
    stamps = []
    for kind in ("images", "labels"):
        path = folder / _idx_name(split, kind)
        if not path.is_file():
            raise MissingFile(
                f"{path} is missing although its folder is there: complete it or remove the folder"
            )
        stamps.append((path.stat().st_mtime_ns, path.stat().st_size))
    pixels, labels = _read_idx_pair(name, split, folder, tuple(stamps))
    return Raw(pixels, labels, source)


@functools.lru_cache(maxsize=2)  # a chapter loads the same files several times, at half a second each
def _read_idx_pair(
    name: str, split: str, folder: Path, stamps: tuple[tuple[int, int], ...]
) -> tuple[Bytes, Bytes]:
    spec = SPECS[name]
    images, labels = (
        read_idx(folder / _idx_name(split, kind), spec.hash_of(_idx_key(split, kind)))
        for kind in ("images", "labels")
    )
    return images[:, None], labels


def _fetch_idx(name: str, split: str, cache: Path) -> None:
    spec = SPECS[name]
    for kind in ("images", "labels"):
        target = cache / _idx_name(split, kind)
        if not target.is_file():
            download(spec.url + target.name, target, spec.hash_of(_idx_key(split, kind)))


def _missing_message(name: str, split: str) -> str:
    spec = SPECS[name]
    embedded = (
        f", or ask for at most {EMBEDDED_PER_CLASS[split]} {split} images a class (per_class), "
        "which the package carries"
        if name == "fashion-mnist"
        else ""
    )
    return (
        f"{spec.title} ({split}) was found in no source. Put its original files into the folder "
        f"{spec.folders[0]}/ of $NCBOOK_DATA, or allow a download with allow_download=True or "
        f"NCBOOK_DOWNLOAD=1{embedded}"
    )


def _data_root() -> Path | None:
    text = os.environ.get("NCBOOK_DATA", "").strip()
    if not text:
        return None
    root = Path(text).expanduser()
    if not root.is_dir():
        raise MissingFile(f"$NCBOOK_DATA names {text}, which is not a folder: correct or unset it")
    return root


def _cache_folder() -> Path:
    import pooch  # here, because it takes a while to import

    return Path(pooch.os_cache("ncbook"))


def embedded_path() -> Path:
    """Return the file of the embedded subset of Fashion-MNIST."""
    return Path(str(resources.files("ncbook"))) / "data" / "fashion-mnist-subset.npz"


def _embedded(split: str) -> Raw:
    pixels, labels = _read_embedded(split)
    return Raw(pixels, labels, "embedded subset")


@functools.lru_cache(maxsize=2)
def _read_embedded(split: str) -> tuple[Bytes, Bytes]:
    path = embedded_path()
    content = read_bytes(path)
    require_hash(content, _EMBEDDED_SHA256, path, "bytes")
    with np.load(io.BytesIO(content)) as arrays:
        return arrays[f"{split}_images"][:, None], arrays[f"{split}_labels"]


@functools.lru_cache(maxsize=2)
def _digits(split: str) -> Raw:
    """Split each class in two, both of which hold all writers evenly.

    The images come in the order in which some dozen people wrote them, so that a class cut in two in that
    order would be tested on other people. Taking them by the fractional parts of their position times the
    golden ratio spreads every beginning of the new order over the whole old one.
    """
    from sklearn.datasets import load_digits  # here: scikit-learn takes a second to import

    bunch = load_digits()
    chosen = []
    for k in range(10):
        members = np.flatnonzero(bunch.target == k)
        members = members[np.argsort(np.arange(len(members)) * _GOLDEN % 1.0)]
        train, test = members[:DIGITS_TRAIN_PER_CLASS], members[DIGITS_TRAIN_PER_CLASS:]
        chosen.append(train if split == "train" else test)
    rows = np.concatenate(chosen)
    return Raw(
        bunch.images[rows].astype(np.uint8)[:, None], bunch.target[rows].astype(np.uint8), "scikit-learn"
    )


def _find_cifar(split: str, may_download: bool) -> Raw:
    root = _data_root()
    folders = [] if root is None else [root / folder for folder in SPECS["cifar10"].folders]
    for folder in folders:
        if (folder / _CIFAR_ARCHIVE).is_file():
            return Raw(*_read_cifar(folder / _CIFAR_ARCHIVE, split), "$NCBOOK_DATA")
    for folder in folders:
        if (folder / _CIFAR_JPEG).is_file():
            return Raw(*_read_cifar_jpeg(folder / _CIFAR_JPEG, split), "$NCBOOK_DATA (JPEG-recompressed)")
    archive = _cache_folder() / "cifar10" / _CIFAR_ARCHIVE
    if may_download and not archive.is_file():
        download(SPECS["cifar10"].url + _CIFAR_ARCHIVE, archive, _CIFAR_SHA256, packed=True)
    if archive.is_file():
        return Raw(*_read_cifar(archive, split), "download cache")
    raise MissingFile(
        f"CIFAR-10 ({split}) was found in no source. Put {_CIFAR_ARCHIVE} (or the re-compressed copy "
        f"{_CIFAR_JPEG}) into $NCBOOK_DATA, or allow a download of 170 MB with allow_download=True or "
        "NCBOOK_DOWNLOAD=1"
    )


@functools.lru_cache(maxsize=2)
def _read_cifar(path: Path, split: str) -> tuple[Bytes, Bytes]:
    """Read the binary version: records of one label byte and 3072 pixel bytes, channel by channel."""
    content = read_gzip(path)
    require_hash(read_bytes(path), _CIFAR_SHA256, path, "bytes")
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}
        streams = [archive.extractfile(members[name]) for name in names]
        records = np.frombuffer(b"".join(s.read() for s in streams if s), np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


@functools.lru_cache(maxsize=2)
def _read_cifar_jpeg(path: Path, split: str) -> tuple[Bytes, Bytes]:
    """Read the copy in class folders, every image a JPEG: close to the original, not the same pixels."""
    packed = read_bytes(path)
    try:
        content = lzma.decompress(packed)
    except (EOFError, lzma.LZMAError) as error:
        fault: type[DataError] = TruncatedFile if "ended before" in str(error) else CorruptFile
        raise fault(f"{path} cannot be decompressed ({error}): remove it and fetch it again") from None
    require_hash(packed, _CIFAR_JPEG_SHA256, path, "bytes")
    return _decode_jpegs(content, split)


def _decode_jpegs(content: bytes, split: str) -> tuple[Bytes, Bytes]:
    from PIL import Image  # here: only this copy needs pillow

    names, count = SPECS["cifar10"].class_names, _CIFAR_PER_CLASS[split]
    pixels = np.empty((10 * count, 3, 32, 32), dtype=np.uint8)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = {member.name: member for member in archive.getmembers() if member.isfile()}
    for k, name in enumerate(names):
        for i in range(count):
            member = members[f"{split}/{name}/{i:04d}.jpg"]
            packed = io.BytesIO(content[member.offset_data : member.offset_data + member.size])
            pixels[k * count + i] = np.asarray(Image.open(packed)).transpose(2, 0, 1)
    return pixels, np.repeat(np.arange(10, dtype=np.uint8), count)
