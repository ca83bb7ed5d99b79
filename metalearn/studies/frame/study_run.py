"""Training runs that studies share: found again by their config, resumed, judged once."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.canonical import canonicalise, select_changed
from metalearn.config.options import STRICT, Count, NonNegative, one_sentence
from metalearn.errors import TrainingStopped, UsageError
from metalearn.system.files import damaged, read_json
from metalearn.training import checkpoint
from metalearn.training.evaluation_file import write
from metalearn.training.loop import train
from metalearn.training.metrics_file import MetricsFile
from metalearn.training.protocol import EvaluationProtocol

NOT_ITS_OWN = (
    *("name", "steps", "device", "threads", "wandb", "test", "run_dir", "resume"),
    *("checkpoint_every", "keep_checkpoints", "keep_best", "tracking"),
)
"""The options that a resumed run may change, or that do not affect its training."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class Budget:
    """The end of a run.

    Args:
        steps: meta-steps.
        minutes: minutes of training. The run ends at the next validation. 0: no limit.
    """

    steps: Count
    minutes: NonNegative = 0.0

    def check(self, cfg: DictConfig) -> None:
        """Check that a run of this config can end by the budget.

        Raises:
            UsageError: minutes would cut a cosine schedule.
        """
        if self.minutes and cfg.schedule == "cosine":
            raise UsageError(
                f"train_minutes={self.minutes:g}: expected 0. {cfg.name} has schedule=cosine, "
                "whose rate falls to 0 at steps=. Leave train_minutes out, or give "
                "overrides=['schedule=constant']."
            )


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """A run of `metalearn train` in a folder of its own, found again by its config.

    Another study that asks for the same config resumes the run, also after options were added.

    Args:
        config: the run's config. Its steps are the budget's.
        folder: the run's folder.
    """

    config: DictConfig
    folder: Path

    @classmethod
    def of(cls, root: Path, words: Sequence[str], device: torch.device) -> StudyRun:
        """Find the run of a config in `root`, or name the folder of a new one.

        The name of a new folder holds a digest of the options that are not at their defaults.

        Raises:
            UsageError: a word is not one of `metalearn train`'s.
        """
        fixed = ["wandb=disabled", f"device={device}", "test.tasks=2", "checkpoint_every=50"]
        cfg = config.compose("train", [*words, *fixed])
        own, stem = _identify(cfg), f"{cfg.name}-seed{cfg.seed}"
        folder = root / f"{stem}-{_digest(select_changed(own, config.read_defaults('train')))}"
        begun = [path.parent for path in root.glob(f"{glob.escape(stem)}-*/config.yaml")]
        for other in sorted(begun, key=lambda path: (path != folder, path)):
            if _identify_saved(other) == own:
                return cls(cfg, other)
        if folder in begun:  # its config.yaml is damaged, or a default has changed since
            folder = root / f"{stem}-{_digest(own)}"
        return cls(cfg, folder)

    def train(self, budget: Budget) -> str:
        """Train until the budget is spent, from where the run stands.

        Messages go to the folder's train.log.

        Returns:
            the reason why a guard stopped the run, or an empty text.

        Raises:
            UsageError: the run is beyond the budget, another process trains it, or it cannot go on.
            TrainingInterrupted: a signal asked for it.
        """
        budget.check(self.config)
        while (target := self._target(budget)) is not None:
            self.config.steps = target
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                log = (self.folder / "train.log").open("a")
            except OSError as error:
                raise UsageError(
                    f"runs={self.folder.parent}: expected a folder that can be written "
                    f"({error.strerror}). Choose another one."
                ) from error
            with log, contextlib.redirect_stdout(log):  # the study has a bar of its own
                try:
                    begun = bool(checkpoint.generations(self.folder))
                    train(self.config, self.folder, resume=begun)
                except TrainingStopped as error:
                    return str(error)
        return ""

    def summary(self) -> dict[str, Any]:
        """Return the run's newest summary, empty before the run has ended once.

        Raises:
            UsageError: the file is damaged.
        """
        path = self.folder / "summary.json"
        if not path.is_file():
            return {}
        found = read_json(path)
        numbers = [found.get(name) for name in ("steps", "train_s")] if found else [None]
        if not all(isinstance(number, int | float) for number in numbers):
            raise UsageError(damaged(path))
        return dict(found)

    def _target(self, budget: Budget) -> int | None:
        """Return the meta-step to train to next, None at the end."""
        summary = self.summary()
        done = summary.get("steps", 0)
        if checkpoint.generations(self.folder):
            reached = checkpoint.newest(self.folder)[0]["step"]
            if max(done, reached) > budget.steps:
                raise UsageError(
                    f"steps={budget.steps}: {self.folder} has taken {max(done, reached)} "
                    "meta-steps already, expected at least these. Give a larger steps= or another "
                    "runs=."
                )
        else:
            done = reached = 0
        ended = done == budget.steps and done == reached
        if not budget.minutes:
            return None if ended else budget.steps
        before = [row["train_s"] for row in self.curve() if row["step"] < reached]
        if before and before[-1] >= 60 * budget.minutes:
            raise UsageError(
                f"train_minutes={budget.minutes:g}: {self.folder} has trained for more than "
                f"{before[-1] / 60:.3g} minutes. Give a larger train_minutes= or another runs=."
            )
        if ended or (done and done == reached and summary["train_s"] >= 60 * budget.minutes):
            return None
        every = int(self.config.validation.every)
        return min(budget.steps, (reached // every + 1) * every)

    def curve(self) -> list[dict[str, Any]]:
        """Return a row for each validation.

        Its values are the meta-step, the tasks and seconds of training so far, the accuracy, and
        the share of those tasks whose linear solve met negative curvature, None without solves.
        """
        rows: list[dict[str, Any]] = []
        train_s, negative, solves = 0.0, 0, False
        if not (self.folder / "metrics.jsonl").is_file():
            return rows
        for line in MetricsFile(self.folder / "metrics.jsonl").rows():
            train_s += line["step_s"]
            solves |= "solve_negative_curvature" in line
            negative += line.get("solve_negative_curvature", 0)
            if "validation_accuracy" in line:
                tasks = line["step"] * self.config.meta_batch
                rows.append(
                    {
                        "step": line["step"],
                        "trained_tasks": tasks,
                        "negative_curvature": negative / tasks if solves else None,
                        "train_s": train_s,
                        "accuracy": line["validation_accuracy"],
                        "accuracy_interval": line["validation_accuracy_interval"],
                    }
                )
        return rows

    def judged(self, protocol: EvaluationProtocol, device: torch.device) -> list[dict[str, Any]]:
        """Return the protocol's rows for the run's chosen meta-parameters (`kept`)."""
        return self.kept(
            "held_out", dataclasses.asdict(protocol), lambda best: protocol.rows(best, str(device))
        )

    def kept(
        self, name: str, asked: Mapping[str, Any], measure: Callable[[Path], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Measure the run's chosen meta-parameters, or read the rows of an earlier measurement.

        The rows are stored beside the checkpoint in NAME-DIGEST.json. Other meta-parameters or
        another `asked` are measured anew.

        Args:
            asked: the options of the measurement, of which the digest is made.
            measure: a function from the path of the checkpoint to rows.
        """
        best = self.folder / "best.pt"
        content = best.read_bytes() + json.dumps(asked, default=list).encode()
        path = self.folder / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.json"
        if not path.is_file():
            write(path, {"rows": measure(best)})
        found = read_json(path)
        rows = found.get("rows") if isinstance(found, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UsageError(damaged(path))
        return rows


def _identify(cfg: DictConfig) -> dict[str, Any]:
    """Return the canonical form of the options that a run is found by."""
    own = canonicalise(cfg, but_for=NOT_ITS_OWN)
    if cfg.schedule == "cosine":  # its rate depends on where it ends
        own["schedule"] = f"cosine to {cfg.steps}"
    return own


def _identify_saved(folder: Path) -> dict[str, Any] | None:
    """Return those options of the run in a folder; None if its config.yaml cannot be used."""
    try:
        return _identify(config.saved(folder / "config.yaml", "train"))
    except UsageError:
        return None


def _digest(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
