"""The published results, and a test that a page quotes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


def rows(study: str, table: str) -> list[dict[str, str]]:
    found = json.loads((RESULTS / study / "tables.json").read_text())
    (name,) = [name for name in found if name.startswith(table)]
    return [dict(zip(found[name]["columns"], row, strict=False)) for row in found[name]["rows"]]


def findings(study: str) -> str:
    return " ".join(json.loads((RESULTS / study / "findings.json").read_text()))


def first(text: str) -> float:
    """Return the first number of a cell."""
    return float(re.findall(r"[-+]?[\d.]+", text)[0])


def train(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(name: str, mode: str = "transductive") -> float:
    """Return the accuracy of an evaluation in %."""
    (found,) = (row["accuracy"] for row in train(name)["rows"] if row["mode"] == mode)
    return 100 * found


def check_quotes(quotes: Iterable[tuple[str, str]]) -> None:
    """Assert that each page has its sentence. README is a page too."""
    for page, quote in quotes:
        path = ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"
        assert quote in " ".join(path.read_text().split()), f"{path.name} lacks {quote!r}"
