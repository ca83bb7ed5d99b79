"""The folder of a bilevel run: metrics.jsonl, checkpoints and summary.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from metalearn.errors import TrainingStopped, UsageError
from metalearn.parallel.ranks import Ranks
from metalearn.system.files import replace_text
from metalearn.training import checkpoint
from metalearn.training.metrics_file import MetricsFile, to_json

T = TypeVar("T")
KIND = "bilevel"


class BilevelFolder:
    """A context manager that locks the folder. All ranks call its methods; rank 0 touches the disk.

    Args:
        folder: without a run; with `resume` that of the run.
        keep: the number of checkpoints to keep.

    Raises:
        UsageError: the folder cannot be written, another process trains into it, or it holds a run
            (with `resume`: none).
    """

    def __init__(self, folder: Path, resume: bool, keep: int, ranks: Ranks) -> None:
        self.folder, self._resume, self._keep, self._ranks = folder, resume, keep, ranks
        self._metrics = MetricsFile(folder / "metrics.jsonl")
        self._saved: int | None = None

    def __enter__(self) -> BilevelFolder:
        self._ranks.on_rank_zero(self._open)
        return self

    def __exit__(self, *error: object) -> None:
        self._metrics.close()

    def _open(self) -> None:
        try:
            if not self._resume:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._metrics.open(self._resume)
        except OSError as error:
            raise UsageError(
                f"run_dir={self.folder} cannot be written ({error.strerror}); choose another folder"
            ) from error
        begun = checkpoint.generations(self.folder) or self._metrics.begun()
        if not self._resume and begun:
            self._metrics.close()
            raise UsageError(
                f"run_dir={self.folder} holds a run already; choose another, or resume=True"
            )

    def load(self) -> dict[str, Any]:
        """Return the newest whole checkpoint, and drop what a kill left of later steps.

        Raises:
            UsageError: no checkpoint is whole, or the checkpoint is of another kind of run.
        """
        return self._ranks.on_rank_zero(self._load)

    def _load(self) -> dict[str, Any]:
        state, damaged = checkpoint.newest(self.folder, _read)
        with self._writing():
            for path in damaged:
                path.unlink()  # it would push the whole ones out
            checkpoint.drop_unfinished(self.folder)
            self._metrics.cut(state["step"])
        self._saved = state["step"]
        return state

    def log(self, row: dict[str, Any]) -> None:
        """Append a step's row to metrics.jsonl."""
        self._on_disk(lambda: self._metrics.append(row))

    def save(self, state: dict[str, Any]) -> None:
        """Write the newest checkpoint, and delete the oldest if there are too many."""

        def write() -> None:
            self._metrics.sync()  # so that no checkpoint is ahead of its rows
            checkpoint.save_newest(self.folder, {"kind": KIND, **state}, self._keep)

        self._on_disk(write)
        self._saved = state["step"]

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        text = to_json(summary, indent=2) + "\n"
        self._on_disk(lambda: replace_text(self.folder / "summary.json", text))

    def _on_disk(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with self._writing():
                return work()

        return self._ranks.on_rank_zero(guarded)

    @property
    def last_good(self) -> str:
        """A phrase that names the last whole checkpoint."""
        last = checkpoint.generation(self.folder, 0)
        return f"the state of outer step {self._saved} is in {last}"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingStopped(
                f"stopped: {self.folder} cannot be written ({error.strerror}); make it writable, "
                f"with room, then go on with resume=True; {self.last_good}"
            ) from error


def _read(path: Path) -> dict[str, Any]:
    state = checkpoint.read(path)
    if state.get("kind") != KIND:
        raise UsageError(
            f"{path} is a checkpoint of another kind of run: expected one of bilevel.train. Choose "
            "its folder, or train anew."
        )
    return state
