"""Runs a study and publishes what it found."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from metalearn.config import read_defaults
from metalearn.config.build import signature_defaults
from metalearn.config.canonical import select_changed
from metalearn.errors import UsageError
from metalearn.studies.frame.code import digest_code
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.frame.index import write_index
from metalearn.studies.frame.plot import save
from metalearn.studies.frame.protocol import Study
from metalearn.studies.frame.rows import RowFile
from metalearn.system.files import replace_text
from metalearn.system.provenance import provenance
from metalearn.training.progress import RunProgress
from metalearn.training.tracking import Tracker


@dataclass(frozen=True)
class Publication:
    """The place and the name of a published study.

    Args:
        name: of its folder in `results` and in `scratch`.
        options: all of them, by which an interrupted study knows itself again.
        results: the parent folder; its README.md is the index, made anew.
        scratch: the parent folder of what is not published: rows on the way, and the W&B run.
        minutes: what it took when it was last run whole on 2 cores; None: not known.
        wandb: offline, online or disabled.
        measure: False takes the rows that are published already.
    """

    name: str
    options: dict[str, Any]
    results: Path
    scratch: Path
    minutes: float | None = None
    wandb: Any = "offline"
    measure: bool = True


def run_study(study: Study, publication: Publication, device: torch.device) -> Path:
    """Measures the cells that are not yet measured, then publishes; returns the folder.

    `results/NAME/` gets rows.csv, table.md, the same tables in tables.json, a vector figure each,
    findings.json and provenance.json. Until all is measured the rows lie in `scratch`, under a
    name made of the options and of the code that measures: the same command goes on from them,
    another starts its own.

    Without `measure` all but rows.csv is made anew from it; the provenance stays that of the rows,
    and names the code that made the rest.

    Raises:
        UsageError: a folder cannot be written, the options ask for one measurement twice, or there
            are no published rows to go by.
        ArithmeticError: a measurement met what is not finite, or has no derivative; those before it
            are kept.
    """
    if not publication.measure:
        return _republish(study, publication, device)
    cells = list(study.cells())
    for i, cell in enumerate(cells):
        if cell in cells[:i]:
            asked = ", ".join(f"{k}={v}" for k, v in cell.items())
            raise UsageError(f"{asked} is asked for twice; leave one of the equal values out")
    origin = provenance(device)
    folder, scratch = publication.results / publication.name, publication.scratch / publication.name
    for path in (folder, scratch):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written ({error.strerror}); choose another folder"
            ) from error

    file = RowFile(scratch / f"rows-{_key(study, publication.options, origin)}.jsonl")
    left = [cell for cell in cells if cell not in file]
    done = len(cells) - len(left)
    with RunProgress(len(cells), start=done, unit="measurement", every_s=5) as progress:
        about = f", about {publication.minutes:g} min on 2 cores" if publication.minutes else ""
        progress.say(f"{study.title}: {len(cells)} measurements{about}")
        if done:
            progress.say(f"going on from {done} of them, in {file.path}")
        for i, cell in enumerate(left, start=done + 1):
            began = time.perf_counter()
            rows = study.measure(cell, device)
            file.add(cell, rows, time.perf_counter() - began)
            progress.update(i, ", ".join(str(v) for v in cell.values() if v is not None))
        table = file.frame(cells)
        origin |= {
            "title": study.title,
            "options": publication.options,
            "measure_s": round(file.seconds(cells), 1),
            "threads": torch.get_num_threads(),
        }
        written = _publish(study, table, folder, origin)
        write_index(publication.results)
        _track(publication, study, table, scratch, progress.say)
        for finding in render_findings(study, table):
            progress.say(f"- {finding}")
        progress.say(f"wrote {folder}/: {', '.join(written)}")
    file.path.unlink()
    return folder


def _republish(study: Study, publication: Publication, device: torch.device) -> Path:
    folder = publication.results / publication.name
    try:
        rows = pd.read_csv(folder / "rows.csv")
        origin = json.loads((folder / "provenance.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"measure=false, and {folder} holds no rows and provenance to go by; leave it out"
        ) from error
    # The name of the class, wherever its module lay when the rows were measured.
    made_by = str(origin.get("options", {}).get("_target_")).rpartition(".")[2]
    if made_by != type(study).__name__:
        raise UsageError(
            f"measure=false, and the rows in {folder} are of another study ({made_by}); name the "
            "folder of this one"
        )
    now = provenance(device)
    origin["remade"] = {name: now[name] for name in ("command", "commit", "date")}
    for name in _publish(study, rows, folder, origin):
        print(f"wrote {folder / name}")
    write_index(publication.results)
    return folder


def _key(study: Study, options: dict[str, Any], origin: dict[str, Any]) -> str:
    """Digest what rows depend on: options, code, versions and machine.

    An option at its default, of configs/study.yaml or of the study's constructor, does not count:
    adding one keeps the rows that were measured without it.
    """
    defaults = read_defaults("study") | signature_defaults(type(study))
    changed = select_changed(options, defaults)
    where = [origin["versions"], origin["machine"], torch.get_num_threads()]
    content = [changed, where, digest_code(Path(inspect.getfile(type(study))))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _publish(study: Study, rows: pd.DataFrame, folder: Path, origin: dict[str, Any]) -> list[str]:
    """Make everything from the rows, then write it; return the names of the files."""
    figures, tables = study.figures(rows), study.tables(rows)
    findings = render_findings(study, rows)
    text = [f"# {study.title}", "", *(f"- {f}" for f in findings), ""]
    for caption, table in tables.items():
        text += [f"**{caption}**", "", table.to_markdown(), ""]
    text += [f"![{name}]({name}.svg)" for name in figures]
    replace_text(folder / "rows.csv", rows.convert_dtypes().to_csv(index=False))
    replace_text(folder / "table.md", "\n".join(text).rstrip() + "\n")
    lines = [f"{json.dumps(caption)}: {json.dumps(t.to_json())}" for caption, t in tables.items()]
    replace_text(folder / "tables.json", "{\n" + ",\n".join(lines) + "\n}\n")
    replace_text(folder / "findings.json", json.dumps(findings, indent=1) + "\n")
    for name, figure in figures.items():
        save(figure, folder / f"{name}.svg")
    for old in folder.glob("*.svg"):
        if old.stem not in figures:
            old.unlink()
    replace_text(folder / "provenance.json", json.dumps(origin, indent=1) + "\n")
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def _track(
    publication: Publication,
    study: Study,
    rows: pd.DataFrame,
    scratch: Path,
    say: Callable[[str], None],
) -> None:
    tracker = Tracker(
        scratch, publication.options, mode=publication.wandb, name=publication.name, warn=say
    )
    values = rows.astype(object).where(rows.notna(), None).values.tolist()
    tracker.table("rows", [str(c) for c in rows.columns], values)
    for name, table in study.tables(rows).items():
        tracker.table(name, table.columns, [[cell.text for cell in row] for row in table.rows])
    tracker.finish({})
