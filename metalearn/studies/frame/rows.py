"""The file of a study's rows during the measurements; it is complete at every moment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.errors import UsageError
from metalearn.studies.frame.protocol import Cell, Row
from metalearn.system.files import replace_text


class RowFile:
    """The rows of each cell, in a file; a cell is in the file with all its rows, or not at all.

    Raises:
        UsageError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._measured: list[dict[str, Any]] = []
        self._published: list[dict[str, Any]] = []
        self.read()

    def read(self) -> None:
        """Read the file again, to which other processes may have added cells."""
        self._measured = [self._parse(line) for line in self._lines()]

    def _lines(self) -> list[bytes]:
        try:
            return [line for line in self.path.read_bytes().split(b"\n") if line.strip()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read ({error.strerror}); delete it") from error

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            cell, rows, seconds = (found.get(name) for name in ("cell", "rows", "seconds"))
            several = isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows)
            if isinstance(cell, dict) and several and isinstance(seconds, int | float):
                return found
        raise UsageError(
            f"{self.path} is damaged: {line[:40]!r} holds no rows of a measurement. Delete the "
            "line, or the file: what is missing is measured again."
        )

    def __contains__(self, cell: Cell) -> bool:
        return self._of(cell) is not None

    def _of(self, cell: Cell) -> dict[str, Any] | None:
        every = (*self._measured, *self._published)
        return next((m for m in every if m["cell"] == dict(cell)), None)

    def take(self, published: Iterable[tuple[Cell, Sequence[Row]]]) -> None:
        """Take the rows of cells that are published already; the file does not hold them."""
        self._published += [{"cell": dict(cell), "rows": rows} for cell, rows in published]

    def add(self, cell: Cell, rows: Sequence[Row], seconds: float) -> None:
        """Add the rows of a cell, and the time of their measurement, to the file.

        Raises:
            ValueError: there is no row, or a row and its cell have a common column.
        """
        if not rows:
            raise ValueError(f"the cell {dict(cell)} gave no row")
        for row in rows:
            if both := set(row) & set(cell):
                raise ValueError(f"a row and its cell {dict(cell)} both have {sorted(both)}")
        self._measured.append(
            {"cell": dict(cell), "rows": [dict(row) for row in rows], "seconds": seconds}
        )
        replace_text(self.path, "".join(json.dumps(m) + "\n" for m in self._measured))

    def frame(self, cells: Sequence[Cell]) -> pd.DataFrame:
        """Return the rows of `cells` in the order of the cells, with the cells' columns first."""
        flat = []
        columns = dict.fromkeys(name for cell in cells for name in cell)
        for cell in cells:
            measured = self._of(cell)
            assert measured is not None, cell
            flat += [{**cell, **row} for row in measured["rows"]]
            columns |= dict.fromkeys(name for row in measured["rows"] for name in row)
        return pd.DataFrame(flat, columns=list(columns))

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Return the total time in seconds of the file's measurements of `cells`."""
        return sum(m["seconds"] for m in self._measured if any(m["cell"] == dict(c) for c in cells))
