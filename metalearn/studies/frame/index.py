"""The index of the results, `results/README.md`, with the command of each result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.studies.frame.table import escape_markdown
from metalearn.system.files import damaged, read_json, replace_bytes
from metalearn.system.provenance import short

HEAD = """\
# Results

Each was written by the command beside it, from a clone of the commit that it names, and holds its
own provenance (versions, machine, threads, seeds, date). The commands make this page too.
"""


def write_index(results: Path) -> None:
    """Write the list of all studies in `results`, and of single JSON files with a provenance.

    Raises:
        UsageError: as `read_origins` does.
    """
    lines = [HEAD, "| what | command | commit | date |", "|---|---|---|---|"]
    origins = read_origins(results)
    titles = Counter(origin.get("title") for origin in origins.values())
    for where, origin in origins.items():
        link = where.parent / "table.md" if where.name == "provenance.json" else where
        title = origin.get("title") or where.with_suffix("").as_posix()
        if titles[title] > 1:
            title += f" ({where.parent.as_posix()})"
        command = f"`{origin['command']}`" if "command" in origin else "not recorded"
        commit = short(origin.get("commit")) or "none"
        cells = [f"[{title}]({link.as_posix()})", command, commit, str(origin["date"])[:10]]
        lines.append(f"| {' | '.join(map(escape_markdown, cells))} |")
    replace_bytes(results / "README.md", "\n".join([*lines, ""]).encode(errors="replace"))


def read_origins(results: Path, but_for: Path | None = None) -> dict[Path, dict[str, Any]]:
    """Read the provenance of each result that names its date, by its path in `results`.

    A JSON file that cannot be read has no provenance.

    Args:
        but_for: the folder of a study that is left out.

    Raises:
        UsageError: the `provenance.json` of a study is damaged.
    """
    found = {}
    for path in sorted(results.rglob("*.json")):
        where = path.relative_to(results)
        left_out = any(part.startswith(".") for part in where.parts) or path.parent == but_for
        if left_out or path.name in ("findings.json", "tables.json") or not path.is_file():
            continue
        try:
            origin = read_json(path)
        except UsageError:
            if path.name == "provenance.json":
                raise
            continue
        if isinstance(origin, dict) and "date" in origin:
            found[where] = origin
        elif path.name == "provenance.json":
            raise UsageError(damaged(path))
    return found
