"""Checkpoints: written whole or not at all, recognised when damaged, refused for another run."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["BrokenCheckpoint", "CheckpointMismatch", "load_checkpoint", "require_same_run", "save_checkpoint"]

_MAGIC = b"ncbook checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size


class BrokenCheckpoint(ValueError):
    """A checkpoint file is damaged or no checkpoint."""


class CheckpointMismatch(ValueError):
    """A checkpoint belongs to another run than the one that asks for it."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: whoever reads the file at any moment finds the old one or the new one, whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(content).digest() + content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        BrokenCheckpoint: the file is damaged or no checkpoint.
    """
    whole = path.read_bytes()
    start = len(_MAGIC) + _DIGEST
    if not whole.startswith(_MAGIC):
        raise BrokenCheckpoint(f"{path} is not a checkpoint of this library: name another file or remove it")
    content = whole[start:]
    if hashlib.sha256(content).digest() != whole[len(_MAGIC) : start]:
        raise BrokenCheckpoint(f"{path} is damaged (its checksum is wrong): remove it to begin again")
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded


def require_same_run(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the descriptions of two runs.

    Raises:
        CheckpointMismatch: they differ; the message names the first difference.
    """
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise CheckpointMismatch(
                f"{path} belongs to another run: its {key} is {_brief(found.get(key))}, here it is "
                f"{_brief(expected.get(key))}. Name another checkpoint file or remove this one"
            )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
