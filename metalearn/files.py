"""Files that are whole or not there, whatever ends the process or the machine."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes beside and renames, so that no reader meets a half of it."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, data: bytes) -> None:
    """`replace_text` for bytes; on the disk when this returns."""
    write_beside(path, data).replace(path)
    sync_folder(path.parent)


def write_beside(path: Path, data: bytes) -> Path:
    """A whole file on the disk that waits to be renamed to `path`; none is left by a failure."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


def sync_folder(folder: Path) -> None:
    """Brings the folder's own entries, such as a rename, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
