"""Cells of a study that several processes measure together, each cell by one of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from metalearn.errors import UsageError
from metalearn.studies.frame.protocol import Cell
from metalearn.system.locks import hold


class Claims:
    """A folder with a file for each cell. The process that locks the file measures the cell.

    A lock ends with its process, so that the cell of a killed process is free again.

    Args:
        folder: the folder of the claims; it is made.
        share: other processes may hold claims; otherwise they must not.

    Raises:
        UsageError: `share`, and the file system has no locks.
    """

    def __init__(self, folder: Path, share: bool) -> None:
        self.folder, self._share = folder, share
        folder.mkdir(parents=True, exist_ok=True)
        if share:
            with self.alone() as held:
                if not held:
                    raise UsageError(
                        f"share=true: expected a file system with locks, and {folder} has none. "
                        "Leave share out."
                    )

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Wait until no other process is in such a block.

        Yields:
            True; or False where the file system has no locks.
        """
        with hold(self.folder, wait=True) as held:
            yield held

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Claim a cell until the end of the block.

        Yields:
            True; or False where another process has claimed it.

        Raises:
            UsageError: another process has claimed it, and the claims are not shared.
        """
        path = self.folder / hashlib.sha256(json.dumps(dict(cell)).encode()).hexdigest()[:16]
        path.touch()
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(path))
            except BlockingIOError as error:
                if not self._share:
                    raise UsageError(
                        f"{self.folder.parent} is in use by processes with share=true; wait for "
                        "their end, or give share=true to help them"
                    ) from error
                yield False
                return
            yield True

    def remove(self) -> None:
        """Remove the folder, at the end of all measurements."""
        shutil.rmtree(self.folder, ignore_errors=True)
