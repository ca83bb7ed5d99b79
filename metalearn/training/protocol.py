"""The protocol of an evaluation: every figure with its mode, inner steps and tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from metalearn.errors import UsageError
from metalearn.parallel.ranks import ALONE, Ranks
from metalearn.tasks import Sampler
from metalearn.tasks.omniglot_official import RUNS, WAYS, FixedTasks, official_runs
from metalearn.training.agreement import check_same, on_every_rank
from metalearn.training.estimate import Estimate
from metalearn.training.evaluation import evaluate_each, evaluate_ensemble
from metalearn.training.fingerprint import (
    BEFORE,
    describe_data,
    describe_start,
    digest_names,
    find_leak,
    find_other_data,
    hash_each,
)
from metalearn.training.opened import MODES, OpenedCheckpoint, open_checkpoint

BENCHMARKS = ("held_out", "omniglot_official")


@dataclass(frozen=True)
class EvaluationProtocol:
    """The tasks and modes by which checkpoints are judged.

    Args:
        benchmark: of `BENCHMARKS`. "held_out": `tasks` tasks, drawn by `seed`, of the split's
            classes, which the run never trained on. "omniglot_official": the release's 20 runs.
        source: of "omniglot_official": its all_runs.zip; of "held_out": the place where the run's
            dataset lies now, None: where it lay in training.
        split: "validation", whose classes the model was chosen by, or "test".
        tasks, seed: the same for every checkpoint, mode and number of steps.
        modes: of `MODES`.
        queries: images a class; None: the run's own.
        ways, shots: of a task; None: the run's own.
        inner_steps: a row for each number of them; empty: the run's own.

    Raises:
        UsageError: a value is out of its range.
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
        if self.source is None and self.benchmark == "omniglot_official":
            raise UsageError(
                f"source=null with benchmark={self.benchmark}; it needs source=PATH of its "
                "all_runs.zip"
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
        say: Callable[[dict[str, Any]], Any] = lambda row: None,
        ranks: Ranks = ALONE,
    ) -> list[dict[str, Any]]:
        """Return a row for each mode and number of inner steps.

        It holds the figures with their 95 % intervals over tasks, and describes the tasks. Ranks
        take the batches of tasks in turn, and each gets all rows.

        Raises:
            UsageError: the checkpoint cannot be used, or not for this benchmark; on every rank.
            OutOfMemory: memory does not hold one task; on every rank.
        """
        (one,), (make_sampler, tasks, about) = self._prepare([path], device, threads, ranks)
        rows = []
        for steps in self.inner_steps or (one.inner_steps,):
            member = one.member(steps)
            found = evaluate_each(
                *(member.problems, member.metagrad, member.meta, make_sampler(), tasks),
                ranks=ranks,
                say=_say_of(ranks),
            )
            for mode, scores in found.items():
                rows.append(
                    {"mode": mode, "inner_steps": steps, "trained_inner_steps": one.inner_steps}
                    | _figures(scores)
                    | one.origin
                    | about
                )
                say(rows[-1])
        return rows

    def ensemble_rows(
        self,
        paths: Sequence[Path],
        device: str = "cpu",
        threads: int | None = None,
        say: Callable[[dict[str, Any]], Any] = lambda row: None,
        ranks: Ranks = ALONE,
    ) -> list[dict[str, Any]]:
        """Return `rows` of the ensemble of checkpoints, the mean of their class probabilities.

        Each member adapts in its own way, and by default with its own number of inner steps.

        Raises:
            UsageError: as `rows` does, and where the checkpoints' tasks differ, or their problems
                predict no classes.
        """
        members, (make_sampler, tasks, about) = self._prepare(paths, device, threads, ranks)
        about |= {"ensemble": len(members)}
        about |= {"members": [{"checkpoint": label(one.path), **one.origin} for one in members]}
        trained = _common([one.inner_steps for one in members])
        rows = []
        for steps in self.inner_steps or (None,):
            found = evaluate_ensemble(
                *([m.member(steps) for m in members], make_sampler(), tasks),
                ranks=ranks,
                say=_say_of(ranks),
            )
            taken = trained if steps is None else steps
            for mode, scores in found.items():
                rows.append(
                    {"mode": mode, "inner_steps": taken, "trained_inner_steps": trained}
                    | _figures(scores)
                    | about
                )
                say(rows[-1])
        return rows

    def _prepare(
        self, paths: Sequence[Path], device: str, threads: int | None, ranks: Ranks
    ) -> tuple[list[OpenedCheckpoint], _JudgedTasks]:
        """Open the checkpoints and make their tasks, the same on every rank."""

        def prepare() -> tuple[list[OpenedCheckpoint], _JudgedTasks]:
            opened = [self._open(path, device, threads) for path in paths]
            return opened, self._tasks(opened)

        opened, judged = on_every_rank(ranks, prepare)
        if ranks.size > 1:
            splits = [self.split] if self.benchmark == "held_out" else []
            starts = [
                describe_start(one.experiment, describe_data(one.experiment.tasks), splits)
                for one in opened
            ]
            own = {str(one.path): start for one, start in zip(opened, starts, strict=True)}
            check_same(ranks, own | judged[2])
        return opened, judged

    def _open(self, path: Path, device: str, threads: int | None) -> OpenedCheckpoint:
        moved = self.source if self.benchmark == "held_out" else None
        return open_checkpoint(
            path, self.modes, device, threads, self.queries, self.ways, self.shots, moved
        )

    def _tasks(self, opened: Sequence[OpenedCheckpoint]) -> _JudgedTasks:
        first, *others = opened
        for other in others:
            first.check_same_tasks(other)
        judged = self._held_out if self.benchmark == "held_out" else self._official
        make_sampler, tasks, about = judged(first)
        for one in opened:
            if self.benchmark == "held_out":
                about = self._compare_data(one) | about
            one.experiment.check(make_sampler().sample(1))
        return make_sampler, tasks, about

    def described(self) -> str:
        if self.benchmark == "omniglot_official":
            return f"the {RUNS} runs of {WAYS}-way one-shot classification of {self.source}"
        return f"{self.tasks} tasks of the {self.split} split"

    @staticmethod
    def note(row: Mapping[str, Any]) -> str:
        """Return the remark that belongs to the figures, or ""."""
        if "other_data" in row:
            return str(row["other_data"])
        if not row.get("characters_trained_on"):
            return ""
        seen, shown = row["characters_trained_on"], row["characters"]
        return (
            f"{seen} of the {shown} characters shown were among those that it trained on; "
            "tasks=omniglot_background trains on none of them"
        )

    def _compare_data(self, one: OpenedCheckpoint) -> dict[str, str]:
        """Compare the data with those of a checkpoint's training; return a row's entry on it.

        Raises:
            UsageError: it was trained on what it is to be judged by, or chosen by it.
        """
        tasks, split = one.experiment.tasks, self.split
        shared = OmegaConf.select(one.run, "tasks.dataset.split_by") == "images"  # as asked for
        both = sorted(set(tasks.classes(split)).intersection(tasks.classes("train")))
        if both and not shared:
            raise UsageError(
                f"{one.path}: the {split} split of its tasks shares {both[0]} with the training "
                "split: expected splits of different classes. Train with such ones"
            )
        own = describe_data(tasks)
        if leak := find_leak(own, one.data, split):
            raise UsageError(
                f"{one.path} {leak}: expected ones that it has not seen. Give the data of its "
                "training by source=, as a CSV file if new classes have moved the splits"
            )
        difference = find_other_data(own, one.data)
        if difference is None:
            return {}
        return {"other_data": f"the data of {label(one.path)} have changed: {difference}"}

    def _held_out(self, one: OpenedCheckpoint) -> _JudgedTasks:
        run, experiment = one.run, one.experiment
        tasks, split = experiment.tasks, self.split
        classes = list(map(str, tasks.classes(split)))
        return (
            lambda: tasks.sampler(split, self.seed, experiment.device),
            self.tasks,
            {
                **{"benchmark": self.benchmark, "split": split, "tasks": self.tasks},
                **{"tasks_seed": self.seed, "queries": run.tasks.get("test_queries")},
                **{"ways": run.tasks.get("ways"), "shots": run.tasks.get("shots")},
                **{
                    "classes": len(classes),
                    "classes_sha256": digest_names(classes),
                },
            },
        )

    def _official(self, one: OpenedCheckpoint) -> _JudgedTasks:
        path, run, experiment = one.path, one.run, one.experiment
        ways, channels = run.tasks.get("ways"), run.tasks.get("channels")
        if ways != WAYS or channels != 1:
            raise UsageError(
                f"the tasks of {path} have {ways} ways and the one-shot test of the Omniglot "
                f"release has {WAYS}; set ways={WAYS}, or give a checkpoint of "
                f"experiment=omniglot_20w1s_maml or another with tasks.ways={WAYS}"
            )
        runs = official_runs(str(self.source), run.tasks.image_size)
        record = one.data or describe_data(experiment.tasks)  # the data may be away by now
        trained = [record[name]["examples"] for name in ("train", BEFORE) if name in record]
        shown = (runs.support_x.flatten(0, 1) * 255).round().to(torch.uint8)
        seen = int(torch.isin(hash_each(shown), torch.cat(trained)).sum())
        fixed = FixedTasks(runs.to(experiment.device))
        about: dict[str, Any] = {"benchmark": self.benchmark, "tasks": RUNS, "queries": 1}
        about |= {"characters": len(shown), "characters_trained_on": seen}
        return lambda: fixed, RUNS, about


_JudgedTasks = tuple[Callable[[], Sampler], int, dict[str, Any]]
"""The maker of a sampler, the number of tasks, and a row's entries about them."""


def _say_of(ranks: Ranks) -> Callable[[str], None]:
    """Return a function that prints a message of this rank; its number is in front if not 0."""
    return print if ranks.rank == 0 else lambda said: print(f"rank {ranks.rank}: {said}")


def _common(values: Sequence[int | None]) -> int | None:
    """Return the common value; None if the values differ."""
    return values[0] if len(set(values)) == 1 else None


def label(path: Path) -> str:
    """Return the name of a checkpoint in a row: the run's folder and the file."""
    return f"{path.parent.name}/{path.name}"


def _figures(scores: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Return the figures of a row; None stands for one that is not finite.

    A run may diverge with more inner steps than it was trained with.
    """
    figures: dict[str, float | None] = {}
    for name, estimate in scores.items():
        finite = math.isfinite(estimate.mean) and math.isfinite(estimate.interval)
        figures[name] = estimate.mean if finite else None
        figures[f"{name}_interval"] = estimate.interval if finite else None
    return figures
