"""Splits by name: drawn from a seed by a hash, or read from a CSV file of an earlier draw."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from metalearn.errors import UsageError
from metalearn.tasks.table import read_table

NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
"""The names of each split in folders and files."""
MODES = tuple(NAMES)
MODE_OF = {name: mode for mode, names in NAMES.items() for name in names}
"""The split of each of `NAMES`."""
COLUMNS = ("name", "split")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise UsageError unless there are three shares above 0 whose sum is 1."""
    sound = len(fractions) == len(MODES) and min(fractions) > 0
    if not sound or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise UsageError(
            f"fractions={list(fractions)}: expected three shares above 0 whose sum is 1. Give such "
            "as [0.6,0.2,0.2]"
        )


def draw(names: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Return the split of each name.

    The order is that of a hash of seed and name, so that it depends on no library. Each split has
    at least one of three or more names; fewer are all in "train".
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    if len(order) < len(MODES):
        return dict.fromkeys(order, "train")
    validation, test = (max(1, round(share * len(order))) for share in fractions[1:])
    train = max(1, len(order) - validation - test)
    validation = min(validation, len(order) - train - 1)
    modes = ["train"] * train + ["validation"] * validation
    modes += ["test"] * (len(order) - len(modes))
    return dict(zip(order, modes, strict=True))


def read(table: Path, names: Sequence[str]) -> dict[str, str]:
    """Read the split of each of `names` from a CSV file.

    Raises:
        UsageError: the file cannot be read, or lacks a name, has it twice or gives it no split.
    """
    try:
        rows = read_table(table, COLUMNS)
    except (OSError, ValueError) as fault:
        raise UsageError(f"splits={table} cannot be read: {fault}") from fault
    given = {row["name"]: MODE_OF.get(row["split"]) for row in rows}
    if len(given) != len(rows):
        raise UsageError(f"splits={table}: expected each name once. Keep one of its rows")
    split_of = {name: given.get(name) or "" for name in names}
    for name, mode in split_of.items():
        if not mode:
            raise UsageError(
                f"splits={table}: expected train, val or test for {name!r}, which the source has. "
                "Add it, or leave splits= out"
            )
    return split_of


def as_text(split_of: Mapping[str, str]) -> str:
    """Return the CSV file that `read` takes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *sorted(split_of.items())])
    return text.getvalue()
