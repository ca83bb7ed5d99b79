"""Tables as a reader sees them: each cell a text, and what it is sorted by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# A cell that begins with a number, and what follows it: "1.2 MB", "< 1e-8", "96.4 ± 0.3", "12%".
_NUMBER = re.compile(
    r"[<>≤≥≈~]?\s*(?P<value>[-+−]?(?:\d[\d,]*(?:\.\d+)?(?:[eE][-+−]?\d+)?|inf(?![a-z])))(?P<rest>.*)",
    re.DOTALL,
)
_UNITS = {
    **{"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    **{"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
}
_BLANK = ("", "-", "–", "—")


@dataclass(frozen=True)
class Cell:
    """`key`: its number in the unit's base, by which it is sorted; None where it has none."""

    text: str
    key: float | None


@dataclass(frozen=True)
class Table:
    """
    Args:
        numeric: by column, whether it is sorted by its cells' keys; else by their texts.
        marked: the rows that are set off from the others, by number.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    marked: frozenset[int] = frozenset()


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], marked: Iterable[int] = ()
) -> Table:
    """Of plain values, None (or nan) for a cell that is empty.

    A column is numeric where at least half of what is in it begins with a number: "out of memory"
    among gigabytes does not make words of them.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = []
    for column in range(len(columns)):
        filled = [row[column] for row in cells if row[column].text not in _BLANK]
        numbers = [cell for cell in filled if cell.key is not None]
        numeric.append(bool(filled) and 2 * len(numbers) >= len(filled))
    return Table([str(c) for c in columns], cells, numeric, frozenset(marked))


def _cell(value: Any) -> Cell:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("", None)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", None)
    if isinstance(value, int):
        return Cell(str(value), float(value))
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e9
        return Cell(str(int(value)) if whole else f"{value:.4g}", value)
    text = str(value)
    return Cell(text, sort_key(text))


def sort_key(text: str) -> float | None:
    """The number that a text begins with, times its unit; None where it is a word, date or version.

    "900 kB" is 9e5 and "1.2 MB" 1.2e6; "5w1s", "2026-11-25" and "2.14.1" are no numbers.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    value = float(found["value"].replace(",", "").replace("−", "-"))
    rest = found["rest"]
    unit = re.match(r"\s*([A-Za-zµ]+)", rest)
    if unit and unit[1] in _UNITS:
        return value * _UNITS[unit[1]]
    return value if not rest or rest[0] in " %±(×;" else None
