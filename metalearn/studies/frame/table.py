"""Tables of typed values: formatted where they are shown, sorted by what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from metalearn.training.estimate import Estimate

Format = str | Callable[[Any], str]
"""A format specification such as ".2f", or a function from the value to its text."""


@dataclass(frozen=True)
class Cell:
    """A value as it is shown, and the number that sorts it: None for words and blanks."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Table:
    """Cells in rows.

    Args:
        marked: the rows that are set off from the others, by number.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: frozenset[int] = frozenset()

    @property
    def numeric(self) -> list[bool]:
        """The columns that are sorted by number: those where at least half of the cells have one.

        "out of memory" among gigabytes does not make words of them.
        """
        found = []
        for column in zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns):
            filled = [cell for cell in column if cell.text not in ("", "-", "–", "—")]
            numbers = sum(cell.key is not None for cell in filled)
            found.append(bool(filled) and 2 * numbers >= len(filled))
        return found

    def texts(self) -> pd.DataFrame:
        """Return the cells' texts."""
        cells = [[cell.text for cell in row] for row in self.rows]
        return pd.DataFrame(cells, columns=pd.Index(self.columns))

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        texts = self.texts().rename(columns=escape_markdown).map(escape_markdown)
        return texts.to_markdown(index=False, disable_numparse=True)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes an equal table."""
        return {
            "columns": list(self.columns),
            "rows": [[cell.text for cell in row] for row in self.rows],
            "keys": [[_plain(cell.key) for cell in row] for row in self.rows],
            "marked": sorted(self.marked),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Table:
        """Make the table that `to_json` wrote; one without "keys" is of an earlier release."""
        columns, rows = [str(c) for c in content["columns"]], content["rows"]
        if any(len(row) != len(columns) for row in rows):
            raise ValueError("a row has more or fewer cells than there are columns")
        if "keys" not in content:
            return make_table(columns, rows)
        cells = [
            [Cell(str(text), None if key is None else float(key)) for text, key in pairs]
            for pairs in (
                zip(texts, keys, strict=True)
                for texts, keys in zip(rows, content["keys"], strict=True)
            )
        ]
        return cls(columns, cells, frozenset(content.get("marked", ())))


def make_table(
    columns: Sequence[str] | Mapping[str, Format | None],
    rows: Iterable[Sequence[Any] | Mapping[str, Any]],
    marked: Iterable[int] = (),
) -> Table:
    """Make a table of plain values.

    Args:
        columns: the titles, or the format of each column by its title. None formats a float to four
            digits and anything else by `str`.
        rows: a value for each column, in order or by its title; an absent one leaves its cell
            blank.
        marked: the rows to set off, by number.
    """
    formats = columns if isinstance(columns, Mapping) else dict.fromkeys(columns)
    cells = []
    for row in rows:
        values = [row.get(title) for title in formats] if isinstance(row, Mapping) else row
        pairs = zip(values, formats.values(), strict=True)
        cells.append([make_cell(value, form) for value, form in pairs])
    return Table([str(title) for title in formats], cells, frozenset(marked))


def make_cell(value: Any, form: Format | None = None) -> Cell:
    """Make the cell of one value.

    A blank: None and nan. A number: formatted by `form`, sorted by itself. An `Estimate`: its mean
    and, where it has one, its interval, each formatted by `form`. A truth value: yes or no. A
    `Cell` stays as it is, and a text too.
    """
    if isinstance(value, Cell):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Estimate):
        mean = make_cell(value.mean, form)
        if not math.isfinite(value.interval):
            return mean
        width = make_cell(value.interval, form).text.removeprefix("+")
        return Cell(f"{mean.text} ± {width}", mean.key)
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return Cell("")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if not isinstance(value, int | float):
        return Cell(str(value))
    if callable(form):
        return Cell(form(value), to_float(value))
    if form is None and isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e9
        return Cell(str(int(value)) if whole else f"{value:.4g}", value)
    return Cell(format(value, form or ""), to_float(value))


def quartiles(row: Any, name: str, spec: str) -> Cell | None:
    """Make the cell of a median with its quartiles in brackets; None where the row has none."""
    values = [row.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high")]
    if any(math.isnan(value) for value in values):
        return None
    middle, low, high = (format(value, spec) for value in values)
    return Cell(f"{middle} [{low}, {high}]", values[0])


def to_float(value: float) -> float:
    """Return a number as a float; an integer beyond the floats is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def escape_markdown(text: Any) -> str:
    """Return a text that stays in its cell of a Markdown table: on one line, its | escaped."""
    return " ".join(str(text).splitlines()).replace("|", "\\|")


def _plain(key: float | None) -> float | str | None:
    """Return a sort key as JSON takes it: an infinite one as a text."""
    return str(key) if key is not None and math.isinf(key) else key
