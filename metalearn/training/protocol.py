"""The protocol that checkpoints are judged by: every figure with its mode, steps and tasks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from metalearn import config
from metalearn.config.build import build
from metalearn.errors import UsageError
from metalearn.metagrad import MetaGradient
from metalearn.problem import BilevelProblem
from metalearn.system.files import replace_text, written_beside
from metalearn.tasks import Sampler
from metalearn.tasks.omniglot_official import RUNS, WAYS, FixedTasks, official_runs
from metalearn.training import checkpoint
from metalearn.training.estimate import Estimate
from metalearn.training.evaluation import Member, evaluate_each, evaluate_ensemble
from metalearn.training.experiment import Experiment, few_shot_problem
from metalearn.training.metrics_file import to_json

MODES = {"transductive": True, "inductive": False}
"""Whose statistics batch norm takes for the queries: their own, or the support set's."""

BENCHMARKS = ("held_out", "omniglot_official")


@dataclass(frozen=True)
class Protocol:
    """How a checkpoint is judged.

    Args:
        benchmark: of `BENCHMARKS`. "held_out": `tasks` tasks, drawn by `seed`, of the split's
            classes, which the run never trained on. "omniglot_official": the release's 20 runs.
        source: of "omniglot_official": its all_runs.zip.
        split: "validation", whose classes the model was chosen by, or "test".
        tasks, seed: the same for every checkpoint, mode and number of steps.
        modes: of `MODES`.
        queries: images a class; None: the run's own.
        ways, shots: of a task; None: the run's own.
        inner_steps: a row for each number of them; empty: the run's own.

    Raises:
        UsageError: a value is none of these.
    """

    benchmark: str = "held_out"
    source: str | None = None
    split: str = "test"
    tasks: int = 1000
    seed: int = 2000
    modes: Sequence[str] = tuple(MODES)
    queries: int | None = None
    inner_steps: Sequence[int] = ()
    ways: int | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise UsageError(f"benchmark={self.benchmark}; expected one of {', '.join(BENCHMARKS)}")
        if (self.source is not None) != (self.benchmark == "omniglot_official"):
            raise UsageError(
                f"source={self.source} with benchmark={self.benchmark}; omniglot_official needs "
                "source=PATH of its all_runs.zip, and held_out takes none"
            )
        if self.tasks < 2:
            raise UsageError(f"tasks={self.tasks}; expected a whole number of at least 2")
        if self.split not in ("validation", "test"):
            raise UsageError(f"split={self.split}; expected 'validation' or 'test'")
        different = len(set(self.inner_steps)) == len(self.inner_steps)
        if not different or min(self.inner_steps, default=0) < 0:
            raise UsageError(
                f"inner_steps={list(self.inner_steps)}; expected different whole numbers of at "
                "least 0"
            )

    def rows(
        self,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        say: Callable[[str], Any] = lambda text: None,
    ) -> list[dict[str, Any]]:
        """A row for each mode and number of inner steps: the figures with their 95 % intervals over
        tasks, and what they are figures of.

        Raises:
            UsageError: the checkpoint cannot be used, or not for this benchmark.
        """
        one = self._open(path, device, threads)
        make_sampler, tasks, about = self._tasks([one])
        rows = []
        for steps in self.inner_steps or (one.inner_steps,):
            member = one.member(steps)
            found = evaluate_each(
                member.problems, member.metagrad, member.meta, make_sampler(), tasks
            )
            for mode, scores in found.items():
                rows.append(
                    {"mode": mode, "inner_steps": steps, "trained_inner_steps": one.inner_steps}
                    | _figures(scores)
                    | one.origin
                    | about
                )
                say(described(rows[-1]))
        return rows

    def ensemble_rows(
        self,
        paths: Sequence[Path],
        device: str = "cpu",
        threads: int | None = None,
        say: Callable[[str], Any] = lambda text: None,
    ) -> list[dict[str, Any]]:
        """`rows` of the checkpoints as one: the mean of the class probabilities that each predicts
        after adapting in its own way, with its own number of inner steps where none is asked for.

        Raises:
            UsageError: as `rows` does, and where the checkpoints' tasks differ, or their problems
                predict no classes.
        """
        members = [self._open(path, device, threads) for path in paths]
        make_sampler, tasks, about = self._tasks(members)
        about |= {"ensemble": len(members)}
        about |= {"members": [{"checkpoint": label(one.path), **one.origin} for one in members]}
        trained = _common([one.inner_steps for one in members])
        rows = []
        for steps in self.inner_steps or (None,):
            found = evaluate_ensemble([m.member(steps) for m in members], make_sampler(), tasks)
            taken = trained if steps is None else steps
            for mode, scores in found.items():
                rows.append(
                    {"mode": mode, "inner_steps": taken, "trained_inner_steps": trained}
                    | _figures(scores)
                    | about
                )
                say(described(rows[-1]))
        return rows

    def _open(self, path: Path, device: str, threads: int | None) -> _Opened:
        """A checkpoint with what the protocol asks for in its config."""
        state = checkpoint.load(path)
        run = config.checked(state["config"], str(path), "train")
        run.device, run.threads, run.transductive = device, threads, True
        if self.queries is not None:
            run.tasks.test_queries = self.queries
        trained_ways = run.tasks.get("ways")
        for name, value in (("ways", self.ways), ("shots", self.shots)):
            if value is not None and name not in run.tasks:
                raise UsageError(
                    f"{name}={value}: expected a checkpoint whose tasks have {name}, which those "
                    f"of {path} have not. Leave {name}= out"
                )
            if value is not None:
                run.tasks[name] = value
        free = run.get("problem") is None and run.model.get("head", "free") == "free"
        if self.ways is not None and free and self.ways != trained_ways:
            raise UsageError(
                f"ways={self.ways}: expected {trained_ways}, for the head of {path} has a vector "
                "for each class it was trained on. Leave ways= out."
            )
        experiment = Experiment.of(run)
        experiment.load(checkpoint.select_meta(state))
        problems: dict[str, BilevelProblem] = {}
        for mode in self.modes:
            run.transductive = MODES[mode]
            problem, _ = few_shot_problem(experiment.model, run)
            problems[mode] = experiment.settled(problem, experiment.meta)
        return _Opened(path, state["step"], run, experiment, problems, run.metagrad.inner.steps)

    def _tasks(
        self, opened: Sequence[_Opened]
    ) -> tuple[Callable[[], Sampler], int, dict[str, Any]]:
        """The maker of a sampler of the tasks, their number, and a row's entries about them."""
        first, *others = opened
        for other in others:
            first.check_same_tasks(other)
        judged = self._held_out if self.benchmark == "held_out" else self._official
        make_sampler, tasks, about = judged(first.path, first.run, first.experiment)
        for one in opened:
            one.experiment.check(make_sampler().sample(1))
        return make_sampler, tasks, about

    def described(self) -> str:
        if self.benchmark == "omniglot_official":
            return f"the {RUNS} runs of {WAYS}-way one-shot classification of {self.source}"
        return f"{self.tasks} tasks of the {self.split} split"

    @staticmethod
    def note(row: Mapping[str, Any]) -> str:
        """What a reader of the figures must know beside them."""
        if not row.get("characters_trained_on"):
            return ""
        seen, shown = row["characters_trained_on"], row["characters"]
        return (
            f"{seen} of the {shown} characters shown were among those that it trained on; "
            "tasks=omniglot_background trains on none of them"
        )

    def _held_out(
        self, path: Path, run: DictConfig, experiment: Experiment
    ) -> tuple[Callable[[], Sampler], int, dict[str, Any]]:
        tasks, split = experiment.tasks, self.split
        classes = tasks.classes(split)
        if both := sorted(set(classes).intersection(tasks.classes("train"))):
            raise UsageError(
                f"{path}: the {split} split of its tasks shares {both[0]} with the training split; "
                "give tasks.dataset whose splits are of different classes"
            )
        return (
            lambda: tasks.sampler(split, self.seed, experiment.device),
            self.tasks,
            {
                **{"benchmark": self.benchmark, "split": split, "tasks": self.tasks},
                **{"tasks_seed": self.seed, "queries": run.tasks.get("test_queries")},
                **{"ways": run.tasks.get("ways"), "shots": run.tasks.get("shots")},
                **{"classes": len(classes), "classes_sha256": digest(classes)},
            },
        )

    def _official(
        self, path: Path, run: DictConfig, experiment: Experiment
    ) -> tuple[Callable[[], Sampler], int, dict[str, Any]]:
        ways, channels = run.tasks.get("ways"), run.tasks.get("channels")
        if ways != WAYS or channels != 1:
            raise UsageError(
                f"the tasks of {path} have {ways} ways and the one-shot test of the Omniglot "
                f"release has {WAYS}; set ways={WAYS}, or give a checkpoint of "
                f"experiment=omniglot_20w1s_maml or another with tasks.ways={WAYS}"
            )
        runs = official_runs(str(self.source), run.tasks.image_size)
        trained = experiment.tasks.split("train").images  # type: ignore[attr-defined]
        known = {image.numpy().tobytes() for image in trained}
        shown = (runs.support_x.flatten(0, 1) * 255).round().to(torch.uint8)
        seen = sum(image.numpy().tobytes() in known for image in shown)
        fixed = FixedTasks(runs.to(experiment.device))
        about: dict[str, Any] = {"benchmark": self.benchmark, "tasks": RUNS, "queries": 1}
        about |= {"characters": len(shown), "characters_trained_on": seen}
        return lambda: fixed, RUNS, about


@dataclass(frozen=True)
class _Opened:
    """A checkpoint, ready to be judged."""

    path: Path
    step: int
    run: DictConfig
    experiment: Experiment
    problems: Mapping[str, BilevelProblem]
    inner_steps: int

    @property
    def origin(self) -> dict[str, Any]:
        return {"name": self.run.get("name"), "seed": self.run.seed, "chosen_step": self.step}

    def member(self, steps: int | None) -> Member:
        """The member that takes so many inner steps; None: its own number."""
        self.run.metagrad.inner.steps = self.inner_steps if steps is None else steps
        metagrad = build(self.run.metagrad, MetaGradient)
        return Member(self.problems, metagrad, self.experiment.meta)

    def check_same_tasks(self, other: _Opened) -> None:
        """Raises UsageError where an option of their test tasks differs."""
        own, others = self._task_options(), other._task_options()
        for name in own | others:
            if own.get(name) != others.get(name):
                raise UsageError(
                    f"{other.path} has tasks.{name}={others.get(name)} and {self.path} "
                    f"{own.get(name)}: expected members with the same tasks. Choose others, or "
                    "give ways=, shots= and queries= for all"
                )

    def _task_options(self) -> dict[str, Any]:
        """The task options but for a dataset's folder, which says nothing of its contents."""
        tasks = self.run.tasks
        names = ("_target_", "ways", "shots", "test_queries", "channels", "image_size")
        data = tasks.get("dataset", {})
        return {name: tasks.get(name) for name in names} | {
            f"dataset.{name}": value for name, value in data.items() if name != "source"
        }


def _common(values: Sequence[int]) -> int | None:
    """The value that all are; None where they differ."""
    return values[0] if len(set(values)) == 1 else None


def label(path: Path) -> str:
    """A checkpoint's name in a row: the run's folder and the file."""
    return f"{path.parent.name}/{path.name}"


def digest(classes: Sequence[str]) -> str:
    """SHA-256 of the names, a line each."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


def described(row: Mapping[str, Any]) -> str:
    """A row as a line for the screen."""
    steps = "step" if row["inner_steps"] == 1 else "steps"
    number = "each its own" if row["inner_steps"] is None else row["inner_steps"]
    shown = [f"{row['mode']}, {number} inner {steps}:"]
    for name in [key for key in row if f"{key}_interval" in row]:
        value, interval = row[name], row[f"{name}_interval"]
        if value is None:
            shown.append(f"{name} not finite")
        elif name == "accuracy":
            shown.append(f"{name} {Estimate(value, interval).percent()}")
        else:
            shown.append(f"{name} {value:.4f} ± {interval:.4f}")
    return "  ".join(shown)


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each mode and number of steps that several checkpoints have: the mean of their accuracies
    and its 95 % interval, and the standard deviation over them."""
    groups: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if "accuracy" in row:
            groups.setdefault((row["mode"], row["inner_steps"]), []).append(row["accuracy"])
    found = []
    for (mode, steps), values in groups.items():
        if len(values) > 1:
            accuracy = torch.tensor(values, dtype=torch.float64)
            estimate = Estimate.of(accuracy)
            found.append(
                {
                    **{"mode": mode, "inner_steps": steps, "checkpoints": len(values)},
                    **{"accuracy": estimate.mean, "accuracy_interval": estimate.interval},
                    "deviation": float(accuracy.std()),
                }
            )
    return found


def default_out(word: str, path: Path) -> Path:
    """The file for the rows of a checkpoint, `word` being what the user calls it.

    A path has them beside it, in evaluation.json. A name has them in runs/NAME-evaluation.json, for
    nothing but studies writes into results/.
    """
    if path == Path(word):
        return path.parent / "evaluation.json"
    return Path("runs") / f"{word}-evaluation.json"


def check_out(path: Path, make_folder: bool = False) -> None:
    """Raises UsageError where `write` would, before the work is done; leaves nothing, or the folder
    alone that `make_folder` makes."""
    try:
        if make_folder:
            path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            raise UsageError(
                f"out={path} is a folder; give the file to write, such as "
                f"{path / 'evaluation.json'}"
            )
        with written_beside(path, b""):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def write(path: Path, content: Mapping[str, Any]) -> None:
    """As JSON, written beside and renamed.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        replace_text(path, to_json(dict(content), indent=1) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"out={path} cannot be written ({error.strerror}); choose another file")


def _figures(scores: Mapping[str, Estimate]) -> dict[str, float | None]:
    """None where it is not finite: with more inner steps than it trained for a run may diverge."""
    figures: dict[str, float | None] = {}
    for name, estimate in scores.items():
        finite = math.isfinite(estimate.mean) and math.isfinite(estimate.interval)
        figures[name] = estimate.mean if finite else None
        figures[f"{name}_interval"] = estimate.interval if finite else None
    return figures
