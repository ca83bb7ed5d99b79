"""The protocol of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:  # slow imports that `metalearn bench --help` does not need
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from metalearn.studies.frame.table import Table

Value = bool | int | float | str | None
Cell = Mapping[str, Value]
"""The description of one measurement: the values that distinguish it in its study."""
Row = Mapping[str, Value]


class Study(Protocol):
    """The protocol of a study, a frozen dataclass whose fields are its options.

    A field that is added later has a default that means "as before". Rows that an interrupted study
    measured without the field are then kept.

    `growing` names the options that are lists whose further values, at the end, only add cells: the
    rows of the earlier cells stay right. A study may go without it; `extend=true` is then refused.

    A study that can tell what cells will take on this machine has a method `expected_seconds(cells,
    device)`, which returns None where it cannot.

    A study may have `subject(rows)`, a few words that tell it from others of the same title.

    The order of work is cells -> rows -> everything else. Everything that is published depends only
    on the rows, so that it can be made again without a measurement.
    """

    title: ClassVar[str]

    def cells(self) -> Sequence[Cell]:
        """Return the cells to measure, in order; no two cells are equal."""
        ...

    def measure(self, cell: Cell, device: torch.device) -> Sequence[Row]:
        """Measure a cell and return at least one row.

        `run_study` merges each row with its cell. A row and its cell have no common column.

        Raises:
            UsageError: the study does not support this device.
        """
        ...

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        """Return the tables of the rows, by caption; the main one is the first."""
        ...

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        """Return the figures by file name, without a suffix; the main one is the first.

        `canvas` takes the caption of a figure. `run_study` calls this within `plot.style()`.
        """
        ...

    def facts(self, rows: pd.DataFrame) -> Mapping[str, Any]:
        """Return the values for the template of the findings, `findings.md.j2`."""
        ...
