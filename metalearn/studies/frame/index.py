"""The index of the results, `results/README.md`, with the command of each result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalearn.system.files import replace_text
from metalearn.system.provenance import short

HEAD = """\
# Results

Each was written by the command beside it, from a clone of the commit that it names, and holds its
own provenance (versions, machine, threads, seeds, date). The commands make this page too.
"""


def write_index(results: Path) -> None:
    """Write the list of all studies in `results`, and of single JSON files with a provenance."""
    lines = [HEAD, "| what | command | commit | date |", "|---|---|---|---|"]
    for path in sorted(results.rglob("*.json")):
        where = path.relative_to(results)
        if path.name in ("findings.json", "tables.json") or any(
            part.startswith(".") for part in where.parts
        ):
            continue
        origin: Any = json.loads(path.read_text())
        if not isinstance(origin, dict) or "date" not in origin:
            continue
        study = path.name == "provenance.json"
        link = where.parent / "table.md" if study else where
        title = origin.get("title") or where.with_suffix("").as_posix()
        command = f"`{origin['command']}`" if "command" in origin else "not recorded"
        commit = short(origin.get("commit")) or "none"
        lines.append(
            f"| [{title}]({link.as_posix()}) | {command} | {commit} | {origin['date'][:10]} |"
        )
    replace_text(results / "README.md", "\n".join(lines) + "\n")
