"""A run's folder: config, metrics, checkpoints and summary; and its W&B run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from omegaconf import DictConfig, OmegaConf

from metalearn.config import OBJECTS, shell_word
from metalearn.errors import TrainingStopped, UsageError
from metalearn.parallel.ranks import ALONE, Ranks
from metalearn.system import random_state as randomness
from metalearn.system.files import replace_text
from metalearn.training import checkpoint
from metalearn.training.metrics_file import MetricsFile, to_json
from metalearn.training.tracking import Labels, Tracker, method_of

P = ParamSpec("P")
T = TypeVar("T")


def check_unused(folder: Path, from_python: bool = False) -> None:
    """Raise UsageError if `folder` holds a run with a checkpoint."""
    if checkpoint.generations(folder) or MetricsFile(folder / "metrics.jsonl").begun():
        raise UsageError(
            f"run_dir={folder} holds a run already; choose another, or "
            + ("resume=True" if from_python else shell_word("resume", folder))
        )


def led(method: Callable[Concatenate[RunFolder, P], T]) -> Callable[Concatenate[RunFolder, P], T]:
    """Run the method on rank 0; every rank gets its value or its error."""

    @wraps(method)
    def by_rank_0(self: RunFolder, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.ranks.on_rank_zero(lambda: method(self, *args, **kwargs))

    return by_rank_0


class RunFolder:
    """A context manager that locks the folder; with `resume` it continues the run there.

    Of several ranks, all of which call its methods, rank 0 alone touches the disk.

    Once it is open, a failure to write is a TrainingStopped that says which checkpoint is whole.

    Raises:
        UsageError: the folder cannot be written, another process trains into it, or it holds a run
            (with `resume`: holds none).
    """

    def __init__(
        self, folder: Path, config: DictConfig, resume: bool, ranks: Ranks = ALONE
    ) -> None:
        self.folder, self.config, self.resume, self.ranks = folder, config, resume, ranks
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.last = checkpoint.generation(folder, 0)
        self._tracker: Tracker | None = None
        self.loaded = self.last  # the checkpoint that the run resumes from
        self._saved: int | None = None  # the last checkpoint's step
        self._damaged: list[Path] = []

    def __enter__(self) -> RunFolder:
        self._open()
        return self

    @led
    def _open(self) -> None:
        try:
            if not self.resume:
                self.folder.mkdir(parents=True, exist_ok=True)
            self.metrics.open(self.resume)
            if not self.resume:
                # Again: another process may have been faster.
                check_unused(self.folder, OBJECTS in self.config)
        except OSError as error:
            raise self._unwritable(error) from error
        except UsageError:
            self.metrics.close()
            raise

    @led
    def load(self) -> tuple[dict[str, Any], list[str]]:
        """Return the state to go on from, and a sentence for each checkpoint that is damaged.

        It writes nothing, and raises as `checkpoint.newest` does.
        """
        state, damaged = checkpoint.newest(self.folder)
        self._saved, self._damaged = state["step"], list(damaged)
        self.loaded = checkpoint.generations(self.folder)[len(damaged)]
        return state, [f"{error}; the one before it is used" for error in damaged.values()]

    @led
    def start(self, say: Callable[[str], None], step: int = 0, wandb_id: str | None = None) -> None:
        """Begin after meta-step `step`.

        Later rows, damaged checkpoints and the summary of an earlier end are dropped. W&B gets the
        earlier rows that it lacks.

        Args:
            wandb_id: that of the run which is gone on with.

        Raises:
            UsageError: the folder cannot be written, or rows are missing.
        """
        try:
            self.metrics.cut(step)
            checkpoint.drop_unfinished(self.folder)
            for path in self._damaged:
                path.unlink()  # it would push the whole ones out
            (self.folder / "summary.json").unlink(missing_ok=True)  # of an earlier end
            replace_text(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        except OSError as error:
            raise self._unwritable(error) from error
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        config["method"] = method_of(self.config)
        with randomness.untouched():
            self._tracker = Tracker(
                self.folder,
                config,
                mode=self.config.wandb,
                name=self.config.name,
                labels=Labels.of(self.config),
                run_id=wandb_id,
                warn=say,
            )
            self._tracker.catch_up(self.metrics.rows())

    @led
    def log(self, row: dict[str, Any]) -> None:
        with self._writing():
            self.metrics.append(row)
        assert self._tracker is not None
        self._tracker.log(row, step=row["step"])

    @led
    def save(self, state: dict[str, Any]) -> None:
        """Write the newest checkpoint, and delete the oldest if there are too many."""
        assert self._tracker is not None
        state = {**state, "wandb_id": self._tracker.run_id}
        with self._writing():
            self.metrics.sync()  # so that no checkpoint is ahead of its rows
            checkpoint.save_newest(self.folder, state, self.config.keep_checkpoints)
        self._saved = state["step"]

    @led
    def save_best(self, states: list[dict[str, Any]], first: int = 0) -> None:
        """Make `states` the folder's best.pt, best.1.pt and so on; raises as `save` does.

        Args:
            states: the best first.
            first: the place of the first one that differs from what is there.
        """
        with self._writing():
            checkpoint.save_best(self.folder, states, first)

    @led
    def finish(self, summary: dict[str, Any]) -> None:
        with self._writing():
            replace_text(self.folder / "summary.json", to_json(summary, indent=2) + "\n")
        assert self._tracker is not None
        shown = [k for k in summary if isinstance(summary[k], int | float | str)]
        self._tracker.table("comparison", shown, [[summary[k] for k in shown]])
        self._tracker.finish(summary)

    def __exit__(self, *error: object) -> None:
        if self._tracker is not None:
            self._tracker.finish({})
        self.metrics.close()

    @property
    def resuming(self) -> str:
        """The call or the command that resumes this run."""
        if OBJECTS in self.config:
            return f"metalearn.train(..., run_dir={str(self.folder)!r}, resume=True)"
        return f"`metalearn train {shell_word('resume', self.folder)}`"

    @led
    def step_seconds(self) -> list[float]:
        """Return the seconds of each meta-step, in all sessions of the run."""
        return [row["step_s"] for row in self.metrics.rows()]

    @led
    def written(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"run_dir={self.folder} cannot be written ({error.strerror}); choose another folder"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = f"{self.last}, of meta-step {self._saved}, is whole: "
            raise TrainingStopped(
                f"stopped: {self.folder} cannot be written ({error.strerror}); "
                + (kept if self._saved is not None else "")
                + f"make it writable, with room, then go on with {self.resuming}"
            ) from error
