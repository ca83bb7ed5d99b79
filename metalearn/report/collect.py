"""Reading and checks of the results in `results/` and of chosen runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.errors import UsageError
from metalearn.studies.frame.published import FOLDER
from metalearn.studies.frame.table import Table, make_table

_OF_A_STUDY = ("provenance.json", "findings.json", "tables.json")
# The keys of a result's provenance; the other keys of a single file are its content.
_ORIGIN = ("command", "commit", "machine", "date", "versions", "threads", "measure_s", "options")
_NUMBERS = ("test_loss", "steps", "meta_batch", "peak_memory_bytes")  # in a run's summary
_RUN_NAME = re.compile(r"(?P<dataset>[a-z_]+)_(?P<ways>\d+)w(?P<shots>\d+)s_(?P<method>.+)")


@dataclass(frozen=True)
class Result:
    """A result: the folder of a study, or a single JSON file with its provenance.

    Args:
        where: the path below the results folder, without `provenance.json`; unique.
        title: the heading of the result.
        findings: the findings as sentences.
        tables: the tables by caption.
        rows: all measurements of a study; None for a single file.
        figures: SVG or PNG files.
        origin: the provenance.
    """

    where: str
    title: str
    findings: Sequence[str]
    tables: Mapping[str, Table]
    rows: Table | None
    figures: Sequence[Path]
    origin: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.where.rpartition("/")[2]


@dataclass(frozen=True)
class Run:
    """A training run: its `summary.json`, and its training data if they are known.

    Args:
        where: the path of the run.
        method: the method, or the run's name if that does not name a method.
        dataset: the name of the dataset; "" if it is not known.
        ways: the number of classes of a task; None if it is not known.
        shots: the number of support images of each class; None if it is not known.
        summary: the content of `summary.json`.
        curve: pairs (meta-step, validation accuracy in percent); empty without `metrics.jsonl`.
    """

    where: str
    method: str
    dataset: str
    ways: int | None
    shots: int | None
    summary: Mapping[str, Any]
    curve: Sequence[tuple[int, float]] = ()

    @property
    def budget(self) -> str:
        return f"{self.summary['steps']} meta-steps of {self.summary['meta_batch']} tasks"


def results(folder: Path) -> tuple[list[Result], list[Result], list[Run]]:
    """Return the studies, the single results and the runs in `folder`, at any depth.

    A single JSON file counts if it is the summary of a run, or names the command that made it.

    Raises:
        UsageError: `folder` is not a folder, or a file in it is damaged or has another content.
    """
    if not folder.is_dir():
        raise UsageError(f"results={folder} is no folder; give the one that holds the studies")
    studies, lone, runs = [], [], []
    for path in sorted(folder.rglob("*.json")):
        below = path.relative_to(folder)
        if any(part.startswith(".") for part in below.parts):
            continue
        if path.name == "provenance.json":
            studies.append(_study(path.parent, below.parent.as_posix()))
        elif path.name not in _OF_A_STUDY:
            content = _json(path)
            if not isinstance(content, dict):
                continue
            if _is_summary(content):
                runs.append(_run(path, below.as_posix(), content))
            elif "command" in content:
                lone.append(_lone(path, below.as_posix(), content))
    return sorted(studies, key=lambda s: (s.where.count("/"), s.where)), lone, runs


def runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in `folders`: folders of runs, or folders with runs at any depth.

    Raises:
        UsageError: a folder has no finished run, or a summary is damaged.
    """
    found = {}
    for folder in folders:
        paths = sorted(folder.rglob("summary.json"))
        if not paths:
            raise UsageError(
                f"runs=[{folder}] holds no finished run (no summary.json); give a folder of runs/"
            )
        for path in paths:
            content = _json(path)
            if not isinstance(content, dict) or not _is_summary(content):
                raise UsageError(f"{path} is no summary of a run; train it again, or leave it out")
            found[path] = _run(path, path.parent.as_posix(), content)
    return list(found.values())


def published(name: str) -> Table | None:
    """Return the published figures on the subject of a study; None if there are none."""
    path = FOLDER / f"{name}.csv"
    return _csv(path) if path.is_file() else None


def _study(folder: Path, where: str) -> Result:
    origin = _json(folder / "provenance.json")
    if not isinstance(origin, dict) or not {"title", "command", "date"} <= set(origin):
        raise UsageError(_damaged(folder / "provenance.json"))
    findings, tables = _json(folder / "findings.json"), _json(folder / "tables.json")
    if not isinstance(findings, list):
        raise UsageError(_damaged(folder / "findings.json"))
    try:
        shown = {str(c): Table.from_json(t) for c, t in tables.items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(_damaged(folder / "tables.json")) from error
    return Result(
        where=where,
        title=str(origin["title"]),
        findings=[str(f) for f in findings],
        tables=shown,
        rows=_csv(folder / "rows.csv"),
        figures=sorted(folder.glob("*.svg")),
        origin=origin,
    )


def _lone(path: Path, where: str, content: dict[str, Any]) -> Result:
    tables, rest = {}, {}
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            columns = list(dict.fromkeys(name for row in value for name in row))
            rows = [[row.get(name) for name in columns] for row in value]
            tables[key.replace("_", " ")] = make_table([c.replace("_", " ") for c in columns], rows)
        elif key not in ("title", "findings"):
            rest[key] = value
    own = {key: value for key, value in rest.items() if key not in _ORIGIN}
    origin = {key: value for key, value in rest.items() if key in _ORIGIN}
    origin["options"] = {**own, **(origin.get("options") or {})}
    return Result(
        where=where,
        title=str(content.get("title") or _titled(where)),
        findings=[str(f) for f in content.get("findings") or ()],
        tables=tables,
        rows=None,
        figures=[p for s in (".svg", ".png") if (p := path.with_suffix(s)).is_file()][:1],
        origin=origin,
    )


def _titled(where: str) -> str:
    """Return a title for a path: "Exercises: conditioning" for `exercises/conditioning.json`."""
    words = where.removesuffix(".json").replace("_", " ").replace("/", ": ")
    return words[:1].upper() + words[1:]


def _is_summary(content: dict[str, Any]) -> bool:
    return {"name", "test_loss", "steps", "meta_batch"} <= set(content)


def _run(path: Path, where: str, summary: dict[str, Any]) -> Run:
    measured = [summary.get(k) for k in ("test_accuracy", "test_accuracy_interval", *_NUMBERS)]
    if not all(isinstance(value, int | float | None) for value in measured):
        raise UsageError(_damaged(path))
    named = _RUN_NAME.fullmatch(str(summary["name"]))
    if named:
        method, dataset = named["method"], named["dataset"]
        ways, shots = int(named["ways"]), int(named["shots"])
        return Run(where, method, dataset, ways, shots, summary, _curve(path.parent))
    dataset, ways, shots = _trained_on(path.with_name("config.yaml"))
    return Run(where, str(summary["name"]), dataset, ways, shots, summary, _curve(path.parent))


def _trained_on(config: Path) -> tuple[str, Any, Any]:
    """Return the dataset, ways and shots of a run's config; "" and None if they are missing."""
    from omegaconf import OmegaConf

    try:
        # No interpolation is resolved: the config of a run has none, and a foreign config could
        # read ${oc.env:...}.
        saved: Any = OmegaConf.to_container(OmegaConf.load(config))
        tasks = saved.get("tasks") or {}
        dataset = (tasks.get("dataset") or {}).get("_target_")
        ways, shots = tasks.get("ways"), tasks.get("shots")
    except Exception:  # missing or not YAML; only the name of the run is then known
        return "", None, None
    return str(dataset or "").rpartition(".")[2], ways, shots


def _curve(folder: Path) -> list[tuple[int, float]]:
    path = folder / "metrics.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            if row.get("validation_accuracy") is not None:
                found.append((row["step"], 100 * row["validation_accuracy"]))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # the incomplete last line of an interrupted run
    return found


def _csv(path: Path) -> Table:
    """Read a CSV file; "None" and "NA" are texts in it, and only an empty cell is missing."""
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise UsageError(_damaged(path)) from error
    values = frame.astype(object).where(frame.notna(), None).values.tolist()
    return make_table(list(frame.columns), values)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return f"{path} is absent or damaged; run its command again, or take it out of the folder"
