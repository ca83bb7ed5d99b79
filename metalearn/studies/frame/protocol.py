"""What a study is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:  # slow, and `metalearn bench --help` needs none of it
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from metalearn.studies.frame.table import Table

Value = bool | int | float | str | None
Cell = Mapping[str, Value]
"""One measurement to make: what distinguishes it from the study's others."""
Row = Mapping[str, Value]


class Study(Protocol):
    """A frozen dataclass whose fields are its options.

    A field that is added later has a default that means "as before". Rows that an interrupted study
    measured without the field are then kept.

    The order of work is cells -> rows -> everything else; what is published comes from the rows
    alone, so that it can be made again without measuring.
    """

    title: ClassVar[str]

    def cells(self) -> Sequence[Cell]:
        """What to measure, in order; no two are equal."""
        ...

    def measure(self, cell: Cell, device: torch.device) -> Sequence[Row]:
        """At least one row, which `run_study` joins to the cell; its columns are not the cell's.

        Raises:
            UsageError: the study is not made for this device.
        """
        ...

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        """Return what a reader wants to see of the rows, by caption."""
        ...

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        """By file name, without a suffix."""
        ...

    def facts(self, rows: pd.DataFrame) -> Mapping[str, Any]:
        """Return the figures that the template of the findings names, `findings.md.j2`."""
        ...
