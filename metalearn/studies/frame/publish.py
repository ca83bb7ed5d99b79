"""The files of a published study: everything that is made from its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.studies.frame.findings import render_conclusion, render_findings
from metalearn.studies.frame.paper import paper_files
from metalearn.studies.frame.plot import caption_of, style, svg
from metalearn.studies.frame.protocol import Study
from metalearn.system.files import replace_bytes

PAPER = "paper"
"""The folder, in that of the study, of the files for a paper."""


def make_files(study: Study, rows: pd.DataFrame, paper: bool = False) -> dict[str, str | bytes]:
    """Make everything from the rows: the contents of the files by name.

    Args:
        paper: make the files of `paper_files` too, in the folder `PAPER`.
    """
    with style():
        figures = study.figures(rows)
    tables, findings = study.tables(rows), render_findings(study, rows)
    captions = {name: caption_of(figure) for name, figure in figures.items()}
    text = [f"# {study.title}", "", *(f"- {f}" for f in findings), ""]
    for caption, table in tables.items():
        text += [f"**{' '.join(caption.split())}**", "", table.to_markdown(), ""]
    for name, caption in captions.items():
        text += [f"![{name}]({name}.svg)", "", caption, ""]
    lines = [f"{json.dumps(caption)}: {json.dumps(t.to_json())}" for caption, t in tables.items()]
    subject = getattr(study, "subject", None)
    page = {
        "subject": subject(rows) if subject else "",
        "conclusion": render_conclusion(study, rows),
        "figures": captions,
    }
    files: dict[str, str | bytes] = {
        "rows.csv": rows.convert_dtypes().to_csv(index=False),
        "table.md": "\n".join(text).rstrip() + "\n",
        "tables.json": "{\n" + ",\n".join(lines) + "\n}\n",
        "findings.json": json.dumps(findings, indent=1) + "\n",
        "page.json": json.dumps(page, indent=1) + "\n",
        **{f"{name}.svg": svg(figure) for name, figure in figures.items()},
    }
    if paper:
        made = paper_files(tables, figures)
        files |= {f"{PAPER}/{name}": content for name, content in made.items()}
    return files


def write_files(files: dict[str, str | bytes], folder: Path, origin: dict[str, Any]) -> list[str]:
    """Write the files and their provenance; return the names of the study's files.

    Figures of an earlier publication that are not made any more are removed.
    """
    origin_text = json.dumps(origin, indent=1) + "\n"
    for name, content in (files | {"provenance.json": origin_text}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        replace_bytes(folder / name, content.encode() if isinstance(content, str) else content)
    for old in folder.glob("*.svg"):
        if old.name not in files:
            old.unlink()
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
