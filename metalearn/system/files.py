"""Files that are complete or absent, even if the process is killed or the power fails."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.system.locks import hold


def replace_text(path: Path, text: str) -> None:
    """Write a temporary file and rename it to `path`, so that no reader sees a partial file."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, data: bytes) -> None:
    """Write bytes as `replace_text` does; the file is on the disk when this returns."""
    with written_beside(path, data) as part:
        part.replace(path)
    sync_folder(path.parent)


@contextmanager
def written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a complete temporary file on the disk, for the caller to rename to `path`.

    A file that is not renamed is deleted. Its name is unique, so that several writers of one file
    do not collide.
    """
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        yield part
    finally:
        with suppress(OSError):  # the disk's own error is the one to report
            part.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
        UsageError: the file is absent or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(damaged(path)) from error


def damaged(path: Path) -> str:
    """Return the sentence for a result that cannot be read."""
    return f"{path} is absent or damaged; run its command again, or take it out of the folder"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder until the end of the block; the lock ends with the process, however it ends.

    Raises:
        UsageError: another process has locked the folder, or it cannot be opened.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder))
        except BlockingIOError as error:
            raise UsageError(
                f"{folder} is in use by another process; wait for its end, or choose another folder"
            ) from error
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be opened ({error.strerror}); choose another folder"
            ) from error
        yield


def with_home(path: str | Path) -> Path:
    """Return a user's path with `~` and `~NAME` expanded to home folders.

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
    """Write the folder's own entries, such as a rename, to the disk; Windows has no way to."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Force a file or a folder to the disk, on the file systems that can do it.

    Network and user-space file systems may refuse it for folders, and some for all files.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
