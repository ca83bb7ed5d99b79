"""metrics.jsonl: a row for each meta-step, and the lock of the run that writes it."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.system.files import sync
from metalearn.system.locks import hold


class MetricsFile:
    """One JSON object a line. `open` locks the file: no second process gets it until the first
    closes it or dies, when the system takes the lock away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._lock = ExitStack()

    def open(self, resume: bool) -> None:
        """Open the file: a new run creates it, a resumed run needs it.

        Raises:
            UsageError: another process trains into it, it is absent, or it is not a plain file.
            OSError: it cannot be written.
        """
        if resume and not self.path.is_file():
            raise UsageError(f"{self.path} is absent; put it back, or train anew")
        if os.path.lexists(self.path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise UsageError(
                f"{self.path}: expected a file of the run's own, not a link, a folder or a device. "
                "Put the file itself there, or choose another run_dir="
            )
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # of one system each
        descriptor = os.open(self.path, flags, 0o666)
        try:
            self._lock.enter_context(hold(self.path))
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(
                f"run_dir={self.path.parent} is being trained into by another process; wait for "
                "its end, or choose another folder"
            ) from error
        except OSError:
            pass  # a file system without locks is no reason not to train
        self._descriptor = descriptor

    def begun(self) -> bool:
        """Return True if the file exists and is not empty."""
        return self.path.is_file() and self.path.stat().st_size > 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the rows of all meta-steps in turn, without a last line that a crash cut short.

        Raises:
            UsageError: the file is not there, or another line is no row.
        """
        return (row for row, _ in self._parsed())

    def cut(self, step: int) -> None:
        """Drops the rows after `step`, which the resumed run makes again; raises as `rows` does,
        and where a row up to `step` is missing."""
        assert self._descriptor is not None
        end = have = 0
        rows = self._parsed()
        while have < step:  # what follows is dropped, so that it may be anything
            found = next(rows, None)
            if found is None:
                raise UsageError(
                    f"{self.path} ends at meta-step {have}, before the checkpoint's {step}; put it "
                    "back, or train anew"
                )
            if found[0]["step"] != have + 1:
                raise UsageError(
                    f"{self.path} has meta-step {found[0]['step']} after {have}: expected a row "
                    f"for each of the checkpoint's {step}. Put it back, or train anew"
                )
            have, end = found[0]["step"], found[1]
        os.ftruncate(self._descriptor, end)

    def append(self, row: dict[str, Any]) -> None:
        """Append a whole line, or nothing; raise OSError if it cannot be written."""
        assert self._descriptor is not None
        line = f"{to_json(row)}\n".encode()
        before = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise

    def sync(self) -> None:
        """Force the file to the disk."""
        assert self._descriptor is not None
        sync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._lock.close()

    def _parsed(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Return the rows, and where the line of each ends in the file."""
        end = number = 0
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                for line in file:
                    number, end = number + 1, end + len(line)
                    try:
                        row = json.loads(line)
                        step, seconds = row["step"], row["step_s"]
                        whole = type(step) is int and type(seconds) in (int, float)
                        if not whole or not line.endswith(b"\n"):
                            raise ValueError
                    except (ValueError, TypeError, KeyError) as error:
                        if end >= size:
                            return
                        raise UsageError(
                            f"line {number} of {self.path} is no row of a run; mend it, or train "
                            "anew"
                        ) from error
                    yield row, end
        except OSError as error:
            raise UsageError(
                f"{self.path} is absent or cannot be read; put it back, or train anew"
            ) from error


def to_json(values: dict[str, Any], indent: int | None = None) -> str:
    """Return JSON in which null stands for infinities and nan."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    return json.dumps(finite, indent=indent, allow_nan=False)
