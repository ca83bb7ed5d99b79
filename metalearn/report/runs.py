"""Training runs: their summaries, their training data, and the experiments they follow."""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn import config
from metalearn.config.interpolation import resolved
from metalearn.errors import UsageError
from metalearn.system.files import read_json

_FRACTIONS = ("test_accuracy", "test_accuracy_interval", "accuracy", "accuracy_interval")
_RANGES = {
    **dict.fromkeys(_FRACTIONS, (0.0, 1.0)),
    **dict.fromkeys(("steps", "meta_batch", "peak_memory_bytes"), (0.0, 1e30)),
    "test_loss": (-math.inf, math.inf),
}
"""The numbers of a summary or of an evaluation's row, with their least and greatest values."""
_OF_A_ROW = {"mode", "accuracy", "ways", "shots", "inner_steps", "trained_inner_steps"}
_NOT_ITS_OWN = (
    *("name", "seed", "steps", "device", "threads", "wandb", "test", "run_dir", "resume"),
    *("checkpoint_every", "keep_checkpoints", "keep_best", "tracking"),
)
"""The options that do not make another experiment. The page states the budget and test tasks."""


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
    own, note = _read_config(path, summary), ""
    if "command" not in summary and path.name != "summary.json" and _is_one(str(summary["name"])):
        # A result of before commands were recorded, of which the name is all that is known.
        own, note = _compose(f"experiment={summary['name']}"), ", by its name alone"
    dataset, ways, shots = _read_data(own)
    method = _name_method(path, summary, own, f"{dataset}_{ways}w{shots}s_") + note
    return Run(where, method, dataset, ways, shots, summary, _read_curve(path.parent))


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
                ways=_count(row["ways"]),
                shots=_count(row["shots"]),
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


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_config(path: Path, summary: Mapping[str, Any]) -> DictConfig | None:
    """Return the config of a run, None if it is not known; no interpolation of it is resolved."""
    saved = path.with_name("config.yaml")
    try:
        if path.name == "summary.json" and saved.is_file():
            found = OmegaConf.load(saved)
            return found if isinstance(found, DictConfig) else None
        _, *words = shlex.split(str(summary["command"]))
        own = words[words.index("train") + 1 :]
        return _compose(*(word for word in own if word.partition("=")[0] not in _NOT_ITS_OWN))
    except Exception:  # YAML's, OmegaConf's, shlex's and the file system's errors share no class
        return None


@functools.cache
def _compose(*words: str) -> DictConfig:
    composed: Any = OmegaConf.create(resolved(config.compose("train", list(words))))
    return composed


def _read_data(own: DictConfig | None) -> tuple[str, int | None, int | None]:
    """Return the dataset, ways and shots of a config; "" and None if they are missing."""
    plain: Any = {} if own is None else OmegaConf.to_container(own)
    tasks = plain.get("tasks")
    tasks = tasks if isinstance(tasks, dict) else {}
    dataset = tasks.get("dataset")
    target = dataset.get("_target_") if isinstance(dataset, dict) else None
    name = str(target or "").rpartition(".")[2]
    return name, _count(tasks.get("ways")), _count(tasks.get("shots"))


def _name_method(
    path: Path, summary: Mapping[str, Any], own: DictConfig | None, setting: str
) -> str:
    """Return the method of the run's experiment, or the run's name with the changes to it."""
    name, stem = str(summary["name"]), path.stem.partition("-seed")[0]
    changes = {e: _changes_to(e, own, path) for e in dict.fromkeys((name, stem)) if _is_one(e)}
    for experiment, changed in changes.items():
        if changed == []:
            dataset = f"{setting.partition('_')[0]}_"
            return experiment.removeprefix(setting).removeprefix(dataset)
    if name not in changes:
        return name
    changed = changes[name] or ["its config is not known"]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"{name}, changed: {', '.join(changed[:3])}{more}"


def _is_one(experiment: str) -> bool:
    folder = config.config_folder() / "experiment"
    return experiment in {path.stem for path in folder.glob("*.yaml")}


def _changes_to(experiment: str, own: DictConfig | None, path: Path) -> list[str] | None:
    """Return the options in which a config differs from an experiment; None: it is not known."""
    if own is None:
        return None
    try:
        mine = config.checked(own, str(path), "train")
        base = _compose(f"experiment={experiment}")
        if not (changed := _differences(_options(mine), _options(base))):
            return changed
        from metalearn.config.canonical import canonicalise  # which imports what it compares

        return _differences(canonicalise(mine, _NOT_ITS_OWN), canonicalise(base, _NOT_ITS_OWN))
    except UsageError:
        return None


def _options(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return {key: value for key, value in plain.items() if key not in _NOT_ITS_OWN}


def _differences(own: Any, base: Any, at: str = "") -> list[str]:
    """Return the names of the options that differ; a group's own name if it is another choice."""
    both = isinstance(own, dict) and isinstance(base, dict)
    if both and own.get("_target_") == base.get("_target_"):
        keys = dict.fromkeys([*own, *base])
        nested = [_differences(own.get(k), base.get(k), f"{at}.{k}") for k in keys]
        return [name for names in nested for name in names]
    return [] if own == base else [at.removeprefix(".")]


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
