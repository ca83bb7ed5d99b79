"""`metalearn demo`: MAML and iMAML side by side, ending in one table and one figure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Shown

from metalearn import config
from metalearn.errors import TrainingInterrupted, UsageError
from metalearn.studies.demo.study import WORDS, Demo
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.frame.plot import png, style
from metalearn.studies.frame.publish import PAPER, make_files, write_files
from metalearn.studies.frame.table import Table
from metalearn.system.files import locked, read_json, replace_text
from metalearn.system.machine import use_threads
from metalearn.system.provenance import provenance
from metalearn.tasks import omniglot

MARKER = "demo.json"
"""The options of the demo in a folder, by which the same command resumes it."""
INTRODUCTION = {
    "omniglot": "Omniglot's handwritten characters",
    "glyphs": "the built-in glyphs, since Omniglot's drawings are not at hand",
}


def run(words: list[str]) -> int:
    """Measure, train, print the table and the paths; return the exit status.

    Raises:
        UsageError: a word is no option, or the folder holds something else.
        TrainingInterrupted: a signal asked for it; the same command resumes.
    """
    cfg = config.plain("demo", words)
    options: dict[str, Any] = {str(k): v for k, v in OmegaConf.to_container(cfg).items()}  # type: ignore[union-attr]
    out, threads = Path(options.pop("out")), options.pop("threads")
    chosen = "on the built-in glyphs"
    if options["tasks"] == "auto":
        options["tasks"] = "omniglot" if omniglot.at_hand() else "glyphs"
        chosen = f"on {INTRODUCTION[options['tasks']]}"
    elif options["tasks"] == "omniglot":
        chosen = f"on {INTRODUCTION['omniglot']}"
    demo = Demo(**options, folder=out)
    for method in WORDS:
        demo.config(method)  # a mistake is told before any work
    use_threads(threads)
    with _place(out, options):
        print(
            f"{demo.title} {chosen}: about {demo.seconds / 60:.1f} min on a quiet machine.\n"
            f"It writes {out}/. After Ctrl-C the same command resumes."
        )
        rows = _measure(demo)
        with style():
            (figure,) = demo.figures(rows).values()
        files = make_files(demo, rows, paper=True) | {"demo.png": png(figure)}
        origin = provenance(torch.device("cpu")) | {"title": demo.title, "options": options}
        write_files(files, out, origin)
    ((caption, table),) = demo.tables(rows).items()
    _show(caption, table)
    for finding in render_findings(demo, rows):
        print(fill(finding, 80))
    print(f"\nTable:  {out}/table.md, {out}/{PAPER}/table_1.csv and .tex")
    print(f"Figure: {out}/demo.svg, {out}/demo.png and {out}/{PAPER}/demo.pdf")
    return 0


@contextmanager
def _place(out: Path, options: dict[str, Any]) -> Iterator[None]:
    """Take the folder: an unfinished demo of the same options is resumed, any other starts anew.

    Raises:
        UsageError: the folder holds something else than a demo, or cannot be written.
    """
    marker = out / MARKER
    if out.exists() and not marker.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"out={out}: expected a new folder, or one of an earlier demo. Give another"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            finished = (out / "provenance.json").is_file()
            if finished or not marker.is_file() or read_json(marker) != options:
                for method in WORDS:
                    shutil.rmtree(out / method.lower(), ignore_errors=True)
                (out / "provenance.json").unlink(missing_ok=True)
                replace_text(marker, json.dumps(options) + "\n")
            yield
    except OSError as error:
        raise UsageError(
            f"out={out} cannot be written ({error.strerror}). Give another folder"
        ) from error


def _measure(demo: Demo) -> pd.DataFrame:
    """Return the rows of all cells, with a line for each part of the work."""
    found: list[dict[str, Any]] = []
    parts = [
        "Peak memory of a meta-gradient",
        *(f"{m}: {n} meta-steps" for m, n in demo.steps.items()),
    ]
    told = 0
    for cell in demo.cells():
        if cell["part"] == "training" or told == 0:
            told += 1
            print(f"\n{told} of {len(parts)}  {parts[told - 1]}", flush=True)
        try:
            rows = demo.measure(cell, torch.device("cpu"))
        except TrainingInterrupted as error:
            raise TrainingInterrupted(error.status - 128, "the same command resumes") from error
        found += [{**cell, **row} for row in rows]
    return pd.DataFrame(found)


def _show(caption: str, table: Table) -> None:
    """Print the table, as wide as it is."""
    shown = Shown(box=SIMPLE_HEAD, padding=(0, 1))
    for column, numeric, cells in zip(
        table.columns, table.numeric, zip(*table.rows, strict=True), strict=True
    ):
        width = max(len(cell.text) for cell in cells)  # the heads may break, the numbers not
        shown.add_column(column, justify="right" if numeric else "left", min_width=width)
    for row in table.rows:
        shown.add_row(*(cell.text for cell in row))
    print(f"\n{fill(caption, 80)}")
    Console().print(shown)
