"""Runs a study and publishes what it found."""

from __future__ import annotations

import hashlib
import inspect
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from metalearn.config import read_defaults
from metalearn.config.build import signature_defaults
from metalearn.config.canonical import select_changed
from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.studies.frame.claims import Claims
from metalearn.studies.frame.code import digest_code
from metalearn.studies.frame.expected import describe_expected
from metalearn.studies.frame.extend import read_extended, read_provenance
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.frame.index import read_origins, write_index
from metalearn.studies.frame.metagrads import read_config
from metalearn.studies.frame.protocol import Cell, Row, Study
from metalearn.studies.frame.publication import Publication
from metalearn.studies.frame.publish import make_files, write_files
from metalearn.studies.frame.rows import RowFile
from metalearn.system.files import locked, read_json
from metalearn.system.provenance import provenance
from metalearn.training.progress import RunProgress
from metalearn.training.tracking import Tracker


def run_study(study: Study, publication: Publication, device: torch.device) -> Path:
    """Measures the cells that are not yet measured, then publishes; returns the folder.

    `results/NAME/` gets rows.csv, table.md, the same tables in tables.json, a vector figure each,
    findings.json, what the report page shows first (page.json) and provenance.json. Until all is
    measured the rows lie in `scratch`, under a name made of the options and of the code that
    measures: the same command resumes from them.

    With `extend` the published rows of the study's cells stay, as `read_extended` finds them. The
    new provenance holds theirs as "extends".

    With `share` several processes run the same command at a time. Each cell is measured by one of
    them. The process that measures the last cell publishes; the others end without it.

    Without `measure` all but rows.csv is made anew from it; the provenance stays that of the rows,
    and names the code that made the rest.

    Raises:
        UsageError: a folder cannot be written or is in use by another process, a file that the
            study reads is damaged, the options ask for one measurement twice, or there are no
            published rows to go by or to extend.
        ArithmeticError: a measurement met what is not finite, or has no derivative; those before it
            are kept.
    """
    if not publication.measure:
        for name in ("extend", "share"):
            if getattr(publication, name):
                raise UsageError(
                    f"{name}=true: expected measure=true, for new cells. Leave one out."
                )
        return _republish(study, publication, device)
    cells = list(study.cells())
    for i, cell in enumerate(cells):
        if cell in cells[:i]:
            asked = ", ".join(f"{k}={v}" for k, v in cell.items())
            raise UsageError(f"{asked} is asked for twice; leave one of the equal values out")
    folder, scratch = publication.results / publication.name, publication.scratch / publication.name
    read_origins(publication.results, but_for=folder)  # what the index will list
    origin = provenance(device)
    published: list[tuple[Cell, list[Row]]] = []
    if publication.extend:
        published, origin["extends"] = read_extended(study, publication.options, folder)
    origin["key"] = key = _key(study, publication.options, origin)
    with _writing(folder, scratch):
        for path in (folder, scratch):
            path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        if not publication.share:
            locks.enter_context(locked(folder))
            locks.enter_context(locked(scratch))
        with _writing(scratch):
            claims = Claims(scratch / f"claims-{key}", publication.share)
        if publication.share:
            with claims.alone(), locked(folder), locked(scratch):
                pass  # no process without share=true is at work
            if _was_published(folder, key):
                print(f"{folder} holds these measurements; without share=true they are made anew")
                return folder
        file = RowFile(scratch / f"rows-{key}.jsonl")
        begun = sum(cell in file for cell in cells)
        file.take(published)
        left = [cell for cell in cells if cell not in file]
        if check := getattr(study, "check", None):
            check(left, device)
        with RunProgress(
            len(cells), start=len(cells) - len(left), unit="measurement", every_s=5
        ) as progress:
            progress.say(f"{study.title}: {len(cells)} measurements")
            if left:
                progress.say(describe_expected(study, publication, left, device))
            if published:
                progress.say(f"{len(published)} of them are published, in {folder}/rows.csv")
            if begun:
                progress.say(f"going on from {begun} of them, in {file.path}")
            _measure(study, cells, file, claims, device, progress)
            with claims.alone():
                file.read()
                others = sum(cell not in file for cell in cells)
                if publication.share and not file.path.exists():
                    progress.say(f"another process wrote {folder}/")
                elif others:
                    progress.say(
                        f"other processes measure {others} of {len(cells)}, and the last of them "
                        "publishes; if one was stopped, give the same command again"
                    )
                else:
                    _publish(study, publication, file, origin, progress.say)
                    claims.remove()
    return folder


def _publish(
    study: Study,
    publication: Publication,
    file: RowFile,
    origin: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Write the study's folder by the rows of all cells, and remove the file of the rows."""
    cells = list(study.cells())
    folder, scratch = publication.results / publication.name, publication.scratch / publication.name
    table = file.frame(cells)
    origin |= {
        "title": study.title,
        "options": publication.options,
        "measure_s": round(file.seconds(cells), 1),
        "threads": torch.get_num_threads(),
    }
    with _writing(folder, scratch):
        written = write_files(make_files(study, table, publication.paper), folder, origin)
        write_index(publication.results)
    _track(publication, study, table, scratch, say)
    for finding in render_findings(study, table):
        say(f"- {finding}")
    say(f"wrote {folder}/: {', '.join(written)}")
    file.path.unlink()


def _measure(
    study: Study,
    cells: Sequence[Cell],
    file: RowFile,
    claims: Claims,
    device: torch.device,
    progress: RunProgress,
) -> None:
    """Measure the cells that are not in the file and that no other process has claimed."""
    for cell in cells:
        if cell in file:
            continue
        with claims.claim(cell) as mine:
            file.read()
            if not mine or cell in file:
                continue
            began = time.perf_counter()
            done = sum(cell in file for cell in cells)
            with _ending(f"{done} of {len(cells)} measurements are finished"):
                rows = study.measure(cell, device)
            with _writing(file.path), claims.alone():
                file.read()
                file.add(cell, rows, time.perf_counter() - began)
            done = sum(cell in file for cell in cells)
            progress.update(done, ", ".join(str(v) for v in cell.values() if v is not None))


def _was_published(folder: Path, key: str) -> bool:
    """Tell whether the folder holds the rows of this key."""
    path = folder / "provenance.json"
    return path.is_file() and read_json(path).get("key") == key


@contextmanager
def _ending(done: str) -> Iterator[None]:
    """Say what is kept where a signal or a stopped training ends a measurement.

    The sentence names no run of the measurement, since the run's folder may be gone.
    """
    kept = f"{done}; the same command resumes"
    try:
        yield
    except KeyboardInterrupt as ended:
        raise TrainingInterrupted(signal.SIGINT, kept) from ended
    except TrainingInterrupted as ended:
        raise TrainingInterrupted(ended.status - 128, kept) from ended
    except TrainingStopped as ended:
        raise TrainingStopped(f"{str(ended).partition('; ')[0]}; {kept}") from ended


@contextmanager
def _writing(*paths: Path) -> Iterator[None]:
    """Turn an OSError into a UsageError that names the paths."""
    try:
        yield
    except OSError as error:
        named = " or ".join(map(str, paths))
        raise UsageError(
            f"{named} cannot be written ({error.strerror}); mend this, or choose another folder. "
            "The same command resumes from the finished measurements."
        ) from error


def _republish(study: Study, publication: Publication, device: torch.device) -> Path:
    folder = publication.results / publication.name
    if not folder.is_dir():
        raise UsageError(f"measure=false, and {folder} is no folder; leave measure=false out")
    with locked(folder):
        return _remake(study, publication, device, folder)


def _remake(study: Study, publication: Publication, device: torch.device, folder: Path) -> Path:
    origin = read_provenance(study, folder, "measure=false")
    try:
        rows = pd.read_csv(folder / "rows.csv")
        if rows.empty:
            raise ValueError("no row")
        made = make_files(study, rows, publication.paper)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"measure=false, and {folder}/rows.csv does not hold what the study measures "
            f"({' '.join(str(error).split())[:100]}); leave measure=false out"
        ) from error
    read_origins(publication.results, but_for=folder)  # what the index will list
    now = provenance(device)
    origin["remade"] = {name: now[name] for name in ("command", "commit", "date")}
    with _writing(folder):
        for name in write_files(made, folder, origin):
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
    imported = options.get("import") or []
    for name in [imported] if isinstance(imported, str) else imported:
        content.append(digest_code(Path(inspect.getfile(sys.modules[name]))))
    content += [read_config(name) for name in options.get("metagrads") or []]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


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
