"""What is in `results/` and in chosen runs, read and checked."""

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
# What `provenance` and a study write of a result's origin; the rest of a lone file is its content.
_ORIGIN = ("command", "commit", "machine", "date", "versions", "threads", "measure_s", "options")
_NUMBERS = ("test_loss", "steps", "meta_batch", "peak_memory_bytes")  # of a run
_RUN_NAME = re.compile(r"(?P<dataset>[a-z_]+)_(?P<ways>\d+)w(?P<shots>\d+)s_(?P<method>.+)")


@dataclass(frozen=True)
class Result:
    """A study's folder, or a lone JSON file with its provenance.

    Args:
        where: its path below the results folder, without `provenance.json`; unique.
        rows: of a study: everything it measured.
        figures: SVG or PNG files.
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
    """A training run's `summary.json`, and what it was trained on where that is known.

    Args:
        curve: (meta-step, validation accuracy in percent) of a run whose metrics lie beside.
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
    """(studies, lone results, summaries of runs) in `folder`, at any depth.

    Of lone JSON files those count that are a run's summary or name the command they came from.

    Raises:
        UsageError: `folder` is none, or a file in it is not what its name says.
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
    """The runs in these folders: each a run's own, or one that holds runs at any depth.

    Raises:
        UsageError: a folder holds no finished run.
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
    """What others published on the subject of a study, by the study's name."""
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
    """Of `exercises/conditioning.json`: "Exercises: conditioning"."""
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
    """Dataset, ways and shots of the run whose config this is; "" and None where it has none."""
    from omegaconf import OmegaConf

    try:
        # As it is written, which for a run's own is resolved: another's could call ${oc.env:...}.
        saved: Any = OmegaConf.to_container(OmegaConf.load(config))
        tasks = saved.get("tasks") or {}
        dataset = (tasks.get("dataset") or {}).get("_target_")
        ways, shots = tasks.get("ways"), tasks.get("shots")
    except Exception:  # absent or no YAML; its name is then all that is known of the run
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
            continue  # the last line of a run that was cut short
    return found


def _csv(path: Path) -> Table:
    """Every cell as it stands in the file; "None" and "NA" are words there."""
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
