"""Files that are whole or not there, whatever ends the process or the machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metalearn.errors import UsageError


def replace_text(path: Path, text: str) -> None:
    """Writes beside and renames, so that no reader meets a half of it."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, data: bytes) -> None:
    """`replace_text` for bytes; on the disk when this returns."""
    with written_beside(path, data) as part:
        part.replace(path)
    sync_folder(path.parent)


@contextmanager
def written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A whole file on the disk that is to be renamed to `path`; if it is not, it goes.

    Its name is its own, so that of several writers of one file none meets another's half.
    """
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        with suppress(OSError):  # the disk's own refusal is what is to be heard of
            part.unlink(missing_ok=True)


def with_home(path: str | Path) -> Path:
    """The path that a user gave, `~` and `~NAME` being homes.

    Raises:
        UsageError: there is no user of that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{path} begins with the home of a user who is not known here; give the whole path"
        ) from error


def sync_folder(folder: Path) -> None:
    """Brings the folder's own entries, such as a rename, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
