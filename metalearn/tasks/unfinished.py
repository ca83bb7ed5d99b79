"""Folders in the cache that are complete or absent: temporary folders, and their exchange.

A killed process cannot tidy up. Its temporary folder is no longer locked then, and the next process
that works in the same parent deletes it.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from metalearn.system.locks import hold


@contextlib.contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new hidden folder in `parent`; it is deleted at the end unless it was renamed.

    Temporary folders that killed processes left in `parent` are deleted first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    part = parent / f".{name[:60]}-{uuid.uuid4().hex}.part"
    with contextlib.ExitStack() as held:
        try:
            with hold(parent, wait=True):
                tidy(parent)
                part.mkdir()
                held.enter_context(hold(part))
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def put(part: Path, target: Path) -> None:
    """Rename a folder to `target` beside it; a folder at `target` is replaced at the last moment.

    A kill in between loses neither: `tidy` puts the former folder back.
    """
    old = target.with_name(f".{target.name}.old")
    with hold(target.parent, wait=True):
        tidy(target.parent)
        if target.exists():
            target.replace(old)
        try:
            part.replace(target)
        except BaseException:
            if old.exists():
                old.replace(target)
            raise
    shutil.rmtree(old, ignore_errors=True)


def restore(target: Path) -> Path:
    """Return `target`; put back the folder that a killed `put` took away."""
    if not target.exists() and target.with_name(f".{target.name}.old").exists():
        with (
            contextlib.suppress(OSError),
            hold(target.parent, wait=True),
        ):  # of a cache for reading only
            tidy(target.parent)
    return target


def tidy(parent: Path) -> None:
    """Delete what killed processes left in `parent`, whose lock the caller holds."""
    for old in parent.glob(".*.old"):
        target = parent / old.name.removeprefix(".").removesuffix(".old")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(target)
    for part in parent.glob(".*.part"):
        with contextlib.suppress(OSError), hold(part) as alone:  # else someone works in it
            if alone:
                shutil.rmtree(part, ignore_errors=True)
                part.unlink(missing_ok=True)  # a single file, as earlier releases had it
