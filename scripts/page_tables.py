#!/usr/bin/env python3
"""Make the tables of docs/ that quote results/.

A page names a study's table, its columns and, if not all are wanted, its rows by their first
column:

    <!-- scripts/page_tables.py
    study: memory
    table: Conv4-64, 20-way 5-shot: seconds of one meta-gradient by inner steps
    columns: method | 16 = 16 steps | 64 = 64 steps
    rows: unrolled, batched | implicit, 5 CG
    -->
    <!-- end -->

Run this script after a study: .venv/bin/python scripts/page_tables.py
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

from metalearn.system.files import replace_text

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<head><!-- scripts/page_tables\.py\n(?P<fields>.*?)-->\n)(?P<table>.*?)(?=<!-- end -->)",
    re.DOTALL,
)


def made(page: str, results: Path) -> str:
    """Return a page with its tables made anew.

    Raises:
        SystemExit: a field is missing, or the study has no such table, column or row.
    """
    return BLOCK.sub(lambda block: block["head"] + table(block["fields"], results), page)


def table(fields: str, results: Path) -> str:
    """Return the table in Markdown that the fields describe; raises as `made` does."""
    wanted = dict(re.findall(r"^(\w+): (.+)$", fields, re.MULTILINE))
    if missing := {"study", "table", "columns"} - wanted.keys():
        raise SystemExit(f"a table without {', '.join(sorted(missing))}: expected\n{__doc__}")
    study = f"results/{wanted['study']}"
    tables = json.loads((results / wanted["study"] / "tables.json").read_text())
    found = tables[_one_of(wanted["table"], tables, f"a table of {study}")]
    titles, places = [], []
    for column in wanted["columns"].split(" | "):
        name, _, title = column.partition(" = ")
        places.append(found["columns"].index(_one_of(name, found["columns"], "a column")))
        titles.append(title or name)
    rows = found["rows"]
    if "rows" in wanted:
        names = [row[0] for row in rows]
        chosen = [_one_of(name, names, "a row") for name in wanted["rows"].split(" | ")]
        rows = [row for name in chosen for row in rows if row[0] == name]
    lines = [titles, ["---"] * len(titles), *([row[i] for i in places] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _one_of(name: str, known: Iterable[str], what: str) -> str:
    if name not in known:
        names = ", ".join(dict.fromkeys(map(repr, known)))
        raise SystemExit(f"{name!r} is not {what}: expected one of {names}")
    return name


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        if (new := made(text, ROOT / "results")) != text:
            replace_text(page, new)


if __name__ == "__main__":
    main()
