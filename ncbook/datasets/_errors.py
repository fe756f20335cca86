"""What can be wrong with a data file, each fault with its own name."""

from __future__ import annotations

__all__ = [
    "CorruptFile",
    "DataError",
    "DownloadFailed",
    "MissingFile",
    "NotGzip",
    "TruncatedFile",
    "WrongHash",
]


class DataError(RuntimeError):
    """A data set cannot be read; the message names the file and what to do about it."""


class MissingFile(DataError):
    """A file, or every source of a data set, is absent."""


class NotGzip(DataError):
    """A file that should be gzipped does not begin like one (often an error page saved under its name)."""


class TruncatedFile(DataError):
    """A compressed file ends before its end (often an interrupted download)."""


class CorruptFile(DataError):
    """A compressed file cannot be decompressed, although its beginning looks right."""


class WrongHash(DataError):
    """A file decompresses, but to other bytes than those of the published data set."""


class DownloadFailed(DataError):
    """A download did not arrive: no network, a server's refusal, or a broken connection."""
