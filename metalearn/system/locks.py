"""Locks of files and folders that end with the process, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""The errors of a system, or of a file system, that has no locks."""


@contextmanager
def hold(path: Path, wait: bool = False) -> Iterator[bool]:
    """Lock a file or folder that exists, until the end of the block.

    On Windows, which locks no folder and lets nobody read a locked file, `.NAME.lock` beside it is
    locked in its place and stays.

    Yields:
        True; or False where the system has no locks, and another process may hold the same.

    Raises:
        BlockingIOError: another process, or another block of this one, holds it; not with `wait`.
        OSError: it cannot be opened.
    """
    if os.name == "nt":
        beside = path.absolute()
        beside = beside.with_name(f".{beside.name}.lock")
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            held = lock_descriptor(descriptor, blocking=wait)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield False
            return
        if not held:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
        yield True
    finally:
        os.close(descriptor)
