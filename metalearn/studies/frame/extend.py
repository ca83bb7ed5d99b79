"""The published rows that a study with further cells extends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.config import read_defaults
from metalearn.config.build import signature_defaults
from metalearn.errors import UsageError
from metalearn.studies.frame.protocol import Cell, Row, Study, Value
from metalearn.system.files import read_json

NOT_COMPARED = ("_target_", "preset", "import")
"""The options that have no effect on a row beside the others; a class is compared by its name."""


def read_provenance(study: Study, folder: Path, word: str) -> dict[str, Any]:
    """Read the provenance of published rows of the same study class.

    Args:
        word: the override that needs the rows, such as "measure=false".

    Raises:
        UsageError: the rows are absent, or the rows are of another class.
    """
    try:
        origin = read_json(folder / "provenance.json")
        if not isinstance(origin, dict) or not (folder / "rows.csv").is_file():
            raise ValueError("no rows and provenance")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{word}, and {folder} holds no rows and provenance to go by; leave it out"
        ) from error
    # The name of the class, wherever its module lay when the rows were measured.
    options = origin.get("options")
    target = options.get("_target_") if isinstance(options, dict) else None
    made_by = str(target).rpartition(".")[2]
    if made_by != type(study).__name__:
        raise UsageError(
            f"{word}, and the rows in {folder} are of another study ({made_by}); name the folder "
            "of this one"
        )
    return origin


def read_extended(
    study: Study, options: Mapping[str, Any], folder: Path
) -> tuple[list[tuple[Cell, list[Row]]], dict[str, Any]]:
    """Return the published cells with their rows, and their provenance.

    Raises:
        UsageError: no such rows are published, the options differ in more than lists that have
            grown at their end, a grown list is none of `study.growing`, or there is no further
            cell.
    """
    origin = read_provenance(study, folder, "extend=true")
    older = replace(study, **_grown(study, options, origin["options"], folder))  # type: ignore[type-var]
    cells, wanted = list(older.cells()), list(study.cells())
    if lost := [cell for cell in cells if cell not in wanted]:
        raise UsageError(
            f"extend=true: expected every cell of {folder}/rows.csv among those of the study, and "
            f"{_text(lost[0])} is not. Leave extend=true out."
        )
    if len(wanted) == len(cells):
        raise UsageError(
            f"extend=true: expected further cells than those of {folder}/rows.csv. Add values to "
            f"{_choice(study)}, or use measure=false."
        )
    return _rows_of(cells, folder / "rows.csv"), origin


def _grown(
    study: Study, options: Mapping[str, Any], older: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Return the older values of the lists that have grown."""
    defaults = read_defaults("study") | signature_defaults(type(study))
    found = {}
    for name in dict.fromkeys([*options, *older]):
        if name in NOT_COMPARED:
            continue
        if name not in options:
            raise UsageError(
                f"extend=true: expected the options of {folder}, and {name} is no option any more. "
                "Leave extend=true out."
            )
        now, then = options[name], older.get(name, defaults.get(name, ...))
        if now == then:
            continue
        before = "nothing" if then is ... else then
        if not isinstance(now, list) or not isinstance(then, list) or now[: len(then)] != then:
            raise UsageError(
                f"{name}={now}: expected {before}, as in {folder}, or a list with further values "
                "at its end. Give that value, or leave extend=true out."
            )
        if name not in growing(study):
            raise UsageError(
                f"{name}={now}: expected {before}, as in {folder}, since further values change "
                f"its cells. Extend {_choice(study)}, or leave extend=true out."
            )
        found[name] = then
    return found


def growing(study: Study) -> Sequence[str]:
    """Return the lists whose further values only add cells to the study; () if it names none."""
    return tuple(getattr(study, "growing", ()))


def _choice(study: Study) -> str:
    return " or ".join(growing(study)) or "another study (this one has no list that may grow)"


def _rows_of(cells: Sequence[Cell], path: Path) -> list[tuple[Cell, list[Row]]]:
    """Return each cell's rows in a file; a row belongs to the cell with the most columns it has.

    Raises:
        UsageError: the file cannot be read, or a row or cell has no counterpart.
    """
    how: dict[str, Any] = {"keep_default_na": False, "low_memory": False}
    try:
        texts = pd.read_csv(path, dtype=str, **how)
        values = pd.read_csv(path, na_values=[""], **how)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as rows; leave extend=true out") from error
    for name in values.select_dtypes("float"):  # whose reader may round the last digit
        values[name] = [float(text or "nan") for text in texts[name]]
    found: list[list[Row]] = [[] for _ in cells]
    known = [cell.keys() <= set(texts.columns) for cell in cells]
    plain = values.astype(object).where(values.notna(), None).to_dict("records")
    for number, (text, row) in enumerate(zip(texts.to_dict("records"), plain, strict=True)):
        fitting = [
            i
            for i, cell in enumerate(cells)
            if known[i] and all(_equal(value, text[name]) for name, value in cell.items())
        ]
        most = max((len(cells[i]) for i in fitting), default=0)
        best = [i for i in fitting if len(cells[i]) == most]
        if len(best) != 1:
            raise UsageError(
                f"{path} has a row, number {number + 1}, that is of {len(best)} cells: expected "
                "one. Leave extend=true out, or put the file back."
            )
        own = cells[best[0]]
        found[best[0]].append({name: x for name, x in row.items() if name not in own})
    for cell, rows in zip(cells, found, strict=True):
        if not rows:
            raise UsageError(
                f"{path} has no row of {_text(cell)}: expected one for each cell. Leave "
                "extend=true out, or put the file back."
            )
    return list(zip(cells, found, strict=True))


def _equal(value: Value, text: str) -> bool:
    """Return True if a field of a CSV file holds a value; None and an empty text are blank."""
    if value is None or isinstance(value, bool | str):
        return text == ("" if value is None else str(value))
    try:
        return float(text) == value
    except ValueError:
        return False


def _text(cell: Cell) -> str:
    return ", ".join(f"{name}={value}" for name, value in cell.items())
