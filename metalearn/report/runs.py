"""Training runs: their summaries, their evaluations and their learning curves."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.report.experiments import (
    as_count,
    compose_words,
    is_experiment,
    name_method,
    read_config,
    read_data,
)
from metalearn.system.files import read_json

_RANGES = {
    **dict.fromkeys(("test_accuracy", "accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("test_accuracy_interval", "accuracy_interval"), (0.0, math.inf)),
    **dict.fromkeys(("steps", "meta_batch", "peak_memory_bytes"), (0.0, 1e30)),
    "test_loss": (-math.inf, math.inf),
}
"""The numbers of a summary or of an evaluation's row, with their least and greatest values."""
_OF_A_ROW = {"mode", "accuracy", "ways", "shots", "inner_steps", "trained_inner_steps"}


@dataclass(frozen=True)
class Run:
    """A training run: its `summary.json`, and its training data if they are known.

    Args:
        where: the path of the run.
        method: the method, or the run's name if the run is not as an experiment has it.
        dataset: the name of the dataset; "" if it is not known.
        ways: the number of classes of a task; None if it is not known.
        shots: the number of support images of each class; None if it is not known.
        summary: the content of `summary.json`.
        curve: pairs (meta-step, validation accuracy in percent); empty without `metrics.jsonl`.
        evaluated: the accuracy is from an evaluation of the run's checkpoint.
        superseded: an evaluation in the same setting takes the place of the summary's accuracy.
        init_from: the training whose weights the run starts from; "" for none.
    """

    where: str
    method: str
    dataset: str
    ways: int | None
    shots: int | None
    summary: Mapping[str, Any]
    curve: Sequence[tuple[float, float]] = ()
    evaluated: bool = False
    superseded: bool = False
    init_from: str = ""

    @property
    def budget(self) -> str:
        return f"{self.summary['steps']:,} meta-steps of {self.summary['meta_batch']} tasks"

    @property
    def setting(self) -> str:
        return f"{self.ways}-way {self.shots}-shot"

    @property
    def mode(self) -> str:
        """The mode of the problem that was tested; an older summary says only `transductive`."""
        old = "transductive" if self.summary.get("transductive", True) else "inductive"
        return str(self.summary.get("mode", old))


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in `folders`: folders of runs, or folders with runs at any depth.

    Raises:
        UsageError: a folder has no finished run, or a summary is damaged.
    """
    found = {}
    for folder in folders:
        paths = sorted(path for path in folder.rglob("summary.json") if path.is_file())
        if not paths:
            raise UsageError(
                f"runs=[{folder}] holds no finished run (no summary.json); give a folder of runs/"
            )
        for path in paths:
            content = read_json(path)
            if not is_summary(content):
                raise UsageError(f"{path} is no summary of a run; train it again, or leave it out")
            found[path] = read_run(path, path.parent.as_posix(), content)
    return list(found.values())


def is_summary(content: Any) -> bool:
    return isinstance(content, dict) and {"name", "test_loss", "steps", "meta_batch"} <= set(
        content
    )


def is_evaluation(content: Any) -> bool:
    """Return True for the file of `metalearn evaluate` on classes that are held out."""
    rows = content.get("rows") if isinstance(content, dict) else None
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and set(row) >= _OF_A_ROW for row in rows)
        and all(row.get("benchmark", "held_out") == "held_out" for row in rows)
    )


def read_run(path: Path, where: str, summary: Mapping[str, Any]) -> Run:
    """Return the run of a summary.

    A run has the method of an experiment if its config is the experiment's own. The config is the
    run folder's config.yaml, or what the command in the summary composes.

    Raises:
        UsageError: a value of the summary is not a number.
    """
    _check_numbers(path, summary)
    own, note = read_config(path, summary), ""
    if (
        "command" not in summary
        and path.name != "summary.json"
        and is_experiment(str(summary["name"]))
    ):
        # A result of before commands were recorded, of which the name is all that is known.
        own, note = compose_words(f"experiment={summary['name']}"), ", by its name alone"
    dataset, ways, shots = read_data(own)
    method = name_method(path, summary, own, f"{dataset}_{ways}w{shots}s_") + note
    first = str(own.get("init_from") or "") if own is not None else ""
    curve = _read_curve(path.parent)
    return Run(where, method, dataset, ways, shots, summary, curve, init_from=first)


def read_evaluations(run: Run, path: Path, where: str, content: Mapping[str, Any]) -> list[Run]:
    """Return a run for each row of an evaluation at the number of inner steps of the training.

    Args:
        run: the run whose checkpoint was evaluated.
        content: a file for which `is_evaluation` is true.

    Raises:
        UsageError: a value of a row is not a number.
    """
    found = []
    for row in content["rows"]:
        _check_numbers(path, row)
        if row["inner_steps"] != row["trained_inner_steps"]:
            continue
        measured = {
            "test_accuracy": row["accuracy"],
            "test_accuracy_interval": row.get("accuracy_interval"),
            "test_tasks": row.get("tasks"),
            "mode": row["mode"],
        }
        ensemble = f", ensemble of {row['ensemble']}" if row.get("ensemble") else ""
        found.append(
            replace(
                run,
                where=where,
                method=run.method + ensemble,
                ways=as_count(row["ways"]),
                shots=as_count(row["shots"]),
                summary={**run.summary, **measured},
                curve=(),
                evaluated=True,
            )
        )
    return found


def evaluated_path(path: Path) -> Path:
    """Return the summary's path of an evaluation NAME-5-way.json: NAME.json."""
    return path.with_name(re.sub(r"(-ensemble)?(-\d+-way)?$", "", path.stem) + ".json")


def supersede(runs: Sequence[Run], evaluations: Mapping[str, Iterable[Run]]) -> list[Run]:
    """Mark the runs whose setting and batch statistics one of their evaluations has.

    Args:
        evaluations: the evaluations of a run, by the run's `where`.

    Returns:
        The runs, and then all evaluations.
    """
    found = []
    for run in runs:
        settings = [(e.ways, e.shots, e.mode) for e in evaluations.get(run.where, ())]
        again = (run.ways, run.shots, run.mode) in settings
        found.append(replace(run, superseded=again))
    return found + [e for several in evaluations.values() for e in several]


def _check_numbers(path: Path, content: Mapping[str, Any]) -> None:
    for name, (least, most) in _RANGES.items():
        value = content.get(name)
        if value is not None and not least <= _number(value) <= most:
            raise UsageError(
                f"{path} has {name}={str(value)[:40]}: expected a number from {least:g} to "
                f"{most:g}. Run its command again, or take it out of the folder."
            )


def _number(value: Any) -> float:
    """Return a number as a float; nan for anything else, and for one that is not finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _read_curve(folder: Path) -> list[tuple[float, float]]:
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the incomplete last line of an interrupted run
        if isinstance(row, dict):
            point = (_number(row.get("step")), 100 * _number(row.get("validation_accuracy")))
            if all(map(math.isfinite, point)):
                found.append(point)
    return found
