"""Reading published data files: gzip, hash, idx format, and downloads that leave nothing half done."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ncbook.datasets._errors import (
    CorruptFile,
    DownloadFailed,
    MissingFile,
    NotGzip,
    TruncatedFile,
    WrongHash,
)

__all__ = ["download", "read_bytes", "read_gzip", "read_idx", "require_hash"]

_REPLACE = "remove it and fetch the original again"
_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        MissingFile: there is no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingFile(f"{path} cannot be read: {error.strerror or error}") from None


def read_gzip(path: Path) -> bytes:
    """Return the decompressed bytes of a gzipped file.

    Raises:
        MissingFile: there is no such file.
        NotGzip: the file does not begin as a gzip file does.
        TruncatedFile: the compressed stream stops early.
        CorruptFile: the compressed stream contradicts itself.
    """
    packed = read_bytes(path)
    if not _GZIP_MAGIC.startswith(packed[:2]):
        raise NotGzip(f"{path} is not a gzip file (it begins with {packed[:8]!r}): {_REPLACE}")
    try:
        if len(packed) < len(_GZIP_MAGIC):  # Python finds no fault with an empty file
            raise EOFError
        return gzip.decompress(packed)
    except EOFError:
        raise TruncatedFile(f"{path} ends too early, after {len(packed)} bytes: {_REPLACE}") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CorruptFile(f"{path} cannot be decompressed ({error}): {_REPLACE}") from None


def require_hash(content: bytes, expected: str, path: Path, what: str) -> None:
    """Compare a sha256.

    Args:
        content: the bytes to be hashed.
        expected: the sha256 in hexadecimal digits.
        path: the file, for the message.
        what: which bytes of the file these are, for the message.

    Raises:
        WrongHash: the bytes are others.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise WrongHash(
            f"{path}: its {what} have the sha256 {found}, expected {expected}. "
            f"It is another file or a damaged one: {_REPLACE}"
        )


def read_idx(path: Path, sha256: str) -> npt.NDArray[np.uint8]:
    """Return the array of a gzipped idx file of unsigned bytes whose decompressed bytes have this sha256.

    The format is: two zero bytes, the type (8 for unsigned bytes), the number of axes, one big-endian
    32-bit length per axis, then the entries.

    Raises:
        DataError: the file is missing, no gzip file, truncated, corrupt, or has another sha256.
    """
    content = read_gzip(path)
    require_hash(content, sha256, path, "decompressed bytes")
    axes = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4).astype(int)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(tuple(shape))


def download(url: str, target: Path, sha256: str, *, packed: bool = False) -> None:
    """Fetch a file with pooch, check it, and only then give it its name: no half file ever has it.

    Args:
        url: where the file lies.
        target: the file to be written; its folder is made if needed.
        sha256: of the decompressed bytes of a gzip file, or of the file itself.
        packed: whether ``sha256`` is that of the file itself.

    Raises:
        DownloadFailed: the file did not arrive.
        DataError: what arrived is no gzip file, truncated, corrupt, or has another sha256.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Within the target's folder, so that the last step is a rename on one file system, which is atomic.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".incoming-") as folder:
        arrived = _fetch(url, Path(folder), target.name)
        content = read_bytes(arrived) if packed else read_gzip(arrived)
        require_hash(content, sha256, arrived, "bytes" if packed else "decompressed bytes")
        os.replace(arrived, target)


def _fetch(url: str, folder: Path, name: str) -> Path:
    import pooch  # here, because it takes a while to import and most runs need no download

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # pooch announces every download on stderr
    try:
        return Path(pooch.retrieve(url, known_hash=None, fname=name, path=folder))
    except Exception as error:  # requests, urllib3 and ftplib raise families of errors without a common root
        raise DownloadFailed(
            f"{url} could not be downloaded ({type(error).__name__}: {error}). "
            "Nothing was kept; try again with a network, or put the file into the folder of $NCBOOK_DATA"
        ) from error
    finally:
        logger.setLevel(level)
