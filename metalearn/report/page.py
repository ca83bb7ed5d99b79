"""The report page: the collected results in one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import metalearn
from metalearn.errors import UsageError
from metalearn.report import collect
from metalearn.report.runs import find_runs
from metalearn.report.sections import Section, make_sections
from metalearn.studies.frame.markup import html, plain
from metalearn.studies.frame.table import Cell
from metalearn.system.files import replace_bytes

HERE = Path(__file__).parent
CONCLUSIONS = 5
"""The largest number of conclusions at the top of the page."""


def make_page(results: Path | None, runs: Sequence[Path], out: Path) -> dict[tuple[str, str], int]:
    """Write the page to `out`.

    Args:
        results: the folder of the studies and of the other results; None: only `runs` are shown.
        runs: folders of further runs.
        out: the HTML file.

    Returns:
        The numbers of studies, runs and other results, by the singular and plural of their nouns.

    Raises:
        UsageError: `results`, a folder of `runs` or a file in them is not valid, or `out` cannot be
            written. No file is written in these cases.
    """
    studies, lone, trained = collect.results(results) if results else ([], [], [])
    trained += find_runs(runs)
    _write(out, render(make_sections(studies, lone, trained)))
    return {
        ("study", "studies"): len(studies),
        ("run", "runs"): sum(not run.evaluated for run in trained),
        ("other result", "other results"): len(lone),
    }


def render(sections: Sequence[Section]) -> str:
    """Return the HTML of the page; equal sections give an equal page."""
    from metalearn.studies.frame.published.accuracy import MARKS

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": html, "plain": plain, "sort_key": sort_key}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        sections=sections,
        concluding=[s for s in sections if s.conclusion and not s.folded][:CONCLUSIONS],
        marks=MARKS,
        version=metalearn.__version__,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def sort_key(cell: Cell) -> str:
    """Return the number that sorts a cell, as JavaScript reads it; "" if its text is a number.

    Six digits tell apart what a reader sees apart.
    """
    if cell.key is None or re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell.text):
        return ""
    return f"{cell.key:.6g}".replace("inf", "Infinity")


def _write(out: Path, page: str) -> None:
    if out.is_dir():
        raise UsageError(
            f"out={out} is a folder; give the file to write, such as {out}/report.html"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(out, page.encode(errors="replace"))  # a lone surrogate has no UTF-8
    except OSError as error:
        raise UsageError(
            f"out={out} cannot be written ({error.strerror}); choose another file"
        ) from error
