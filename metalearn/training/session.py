"""One sitting of a run: its folder, its progress on the screen, and the signals that end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.parallel.ranks import Ranks
from metalearn.training.checks import check_same_run
from metalearn.training.messages import closing, progress_line
from metalearn.training.progress import RunProgress
from metalearn.training.run_folder import RunFolder
from metalearn.training.signals import Interruption
from metalearn.training.state import TrainingState


class Session:
    """A context manager around the meta-steps of a run.

    Args:
        run_dir: the run's folder.
        config: the run's.
        resume: go on with the run in the folder; else begin one.
        ranks: all of them open the session together, and rank 0 alone touches the disk.
    """

    def __init__(self, run_dir: Path, config: DictConfig, resume: bool, ranks: Ranks) -> None:
        self._config, self._resume, self._ranks = config, resume, ranks
        self._folder = RunFolder(run_dir, config, resume, ranks)
        self._interruption = Interruption()
        self._stack = ExitStack()
        self.warned: set[Any] = set()  # the warnings that were given, each once a session
        self._row: dict[str, Any] = {}

    def __enter__(self) -> Session:
        with self._stack as stack:
            stack.enter_context(self._interruption)
            stack.enter_context(self._folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def begin(self, state: TrainingState) -> dict[str, Any] | None:
        """Put the saved state back, or save the first one.

        Returns:
            The row of the last meta-step if a signal has broken off its validation, else None.

        Raises:
            UsageError: the folder cannot be written or gone on from, `steps` lie behind, or the
                checkpoint is another run's.
        """
        saved, damaged = self._folder.load() if self._resume else ({}, [])
        if self._resume:
            if self._config.steps < saved["step"]:
                raise UsageError(
                    f"steps={self._config.steps}; this run has taken {saved['step']} meta-steps "
                    "already"
                )
            where = self._folder.loaded
            before = check_same_run(self._config, saved["config"], where)
            state.load_state_dict(saved, where)
            if before.device != self._config.device:
                state.measure()
        silent = self._ranks.rank > 0
        self._progress = self._stack.enter_context(
            RunProgress(self._config.steps, start=state.step, silent=silent)
        )
        for sentence in damaged:
            self.say(sentence)
        unvalidated: dict[str, Any] | None = saved.get("unvalidated")
        done = state.step if unvalidated is None else state.step - 1
        self._folder.start(self.say, done, saved.get("wandb_id"))
        if self._resume:
            self._folder.save_best(state.best_states())  # those there may be of a later meta-step
        else:
            self.save(state)
        return unvalidated

    def steps(self, state: TrainingState) -> Iterator[int]:
        """Yield the numbers of the meta-steps that are left.

        After each one it saves a checkpoint where one is due, shows the progress, and leaves if a
        signal asked for it.

        Raises:
            TrainingInterrupted: a signal asked the run to leave; its state is saved.
        """
        while state.step < self._config.steps:
            yield state.step + 1
            last = state.step == self._config.steps
            signum = self._signal()
            if last or signum or state.step % self._config.checkpoint_every == 0:
                state.check_ranks()
                self.save(state)
            line = progress_line(self._row, self._config.meta_batch, state.peak)
            self._progress.update(state.step, line)
            if signum:
                self._leave(signum, state)

    def leave_if_asked(
        self, state: TrainingState, unvalidated: tuple[dict[str, Any], dict[str, Any]] | None = None
    ) -> None:
        """Raise TrainingInterrupted if a signal asked for it.

        Args:
            unvalidated: the row of a meta-step under validation, and the `streams` of the state
                before that. Both are saved, and the resumed run begins with that validation. None:
                the saved state stays as it is.
        """
        if not (signum := self._signal()):
            return
        if unvalidated is not None:
            row, streams = unvalidated
            state.rewind(streams)
            state.check_ranks()
            self.log(row)
            self._folder.save(state.state_dict() | {"unvalidated": row})
        self._leave(signum, state)

    def _signal(self) -> int | None:
        """Return the signal that any rank has got by now."""
        return self._ranks.all_reduce_max(self._interruption.signum or 0) or None

    def _leave(self, signum: int, state: TrainingState) -> NoReturn:
        raise TrainingInterrupted(
            signum,
            f"left after meta-step {state.step}; go on with {self._folder.resuming}",
        )

    def stop(
        self, state: TrainingState, reason: str, row: dict[str, Any] | None = None
    ) -> NoReturn:
        """Log the last row, save the state and raise TrainingStopped."""
        if row is not None:
            self.log(row)
        self.save(state)
        raise TrainingStopped(f"stopped at meta-step {reason} is in {self._folder.last}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.say(text)

    def log(self, row: dict[str, Any]) -> None:
        """Append a meta-step's row to metrics.jsonl and to W&B."""
        self._row = row
        self._folder.log(row)

    def save(self, state: TrainingState) -> None:
        """Write last.pt."""
        self._folder.save(state.state_dict())

    def save_best(self, state: TrainingState, first: int) -> None:
        """Write best.pt and its runners-up, from place `first` on."""
        self._folder.save_best(state.best_states(), first)

    def step_seconds(self) -> list[float]:
        """Return the seconds of each meta-step, of all sittings."""
        return self._folder.step_seconds()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json and print what the run came to."""
        self._folder.finish(summary)
        for line in closing(summary, str(self._folder.folder), self._folder.written()):
            self.say(line)
