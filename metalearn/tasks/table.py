"""CSV files: rows of texts by the names of their columns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def read_table(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file in UTF-8, with or without a byte-order mark.

    Spaces around names and values do not count.

    Raises:
        OSError, ValueError: the file cannot be read, lacks one of `columns`, or a row lacks a value
            of one of them.
    """
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            names, *lines = [[value.strip() for value in line] for line in reader if line] or [[]]
        except UnicodeDecodeError as fault:
            raise ValueError(f"{table} is not in UTF-8; save it as CSV in UTF-8") from fault
        except csv.Error as fault:
            raise ValueError(f"{table} is no CSV file: {fault}") from fault
    if not lines or any(names.count(name) != 1 for name in columns):
        plural = "column" if len(columns) == 1 else "columns"
        raise ValueError(
            f"{table} lacks the {plural} {' and '.join(columns)}, each once, or rows below them, "
            f"with a comma between values; it begins with {','.join(names)[:80]!r}"
        )
    for line in lines:
        if len(line) != len(names) or not all(line[names.index(name)] for name in columns):
            raise ValueError(
                f"{table} has the row {','.join(line)[:80]!r}; expected {len(names)} values, and "
                f"{' and '.join(columns)} among them"
            )
    return [dict(zip(names, line, strict=True)) for line in lines]
