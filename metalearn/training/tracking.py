"""Weights & Biases runs that stay on this machine unless sending is asked for."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

_warn = logging.getLogger(__name__).warning

LONGEST_NAME = 80
"""The longest name of a table; W&B allows 128 characters with those that it adds."""
PATIENCE_S = 30.0
"""The seconds that a run waits for W&B's server to start, and for the last rows to be sent."""


class Tracker:
    """A W&B run of the real client; offline unless `mode` says otherwise, and nothing is sent then.

    run_dir: W&B's own folder, `wandb/`, is made inside it.
    config:  the run's configuration, nested mappings of plain values.
    mode:    "offline" writes files that `wandb sync` can send later, whatever WANDB_MODE says;
             "online" sends as it goes, and asks a terminal for a W&B key if there is none;
             "disabled" does nothing at all and does not import W&B.
    run_id:  the id of an earlier run to carry on with; `catch_up` then gives W&B what it lacks.
    warn:    told of a failure of W&B's. Training never stops for one: it is said once, in one
             sentence, and the tracker does nothing from then on.

    No code, git state, package list, host name, console output or machine statistics are recorded.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        mode: Literal["offline", "online", "disabled"] = "offline",
        project: str = "metalearn",
        name: str | None = None,
        run_id: str | None = None,
        warn: Callable[[str], None] = _warn,
    ) -> None:
        self._mode = mode
        self._warn = warn
        self._run: Any = None  # a wandb.Run; None when disabled, finished or failed
        self._run_dir = Path(run_dir)
        self._run_id = run_id
        self._path: Path | None = None
        if mode != "disabled":
            self._guard(lambda: self._start(config, project, name))

    @property
    def run_id(self) -> str | None:
        """The id of the run in W&B, which checkpoints keep for the tracker that resumes it."""
        return self._run_id

    @property
    def path(self) -> Path | None:
        """The offline run's folder, which `wandb sync` takes; None if there is none."""
        return self._path

    def log(self, row: Mapping[str, float | int | str | None], step: int) -> None:
        """Log `row` at `step`, less its own "step" and its None values; nan and infinities are
        logged as they are.

        Rows of one step are merged. W&B drops a row whose step is below one already logged.
        """
        values = {k: v for k, v in row.items() if v is not None and k != "step"}
        if self._run is not None and values:
            self._guard(lambda: self._run.log(values, step=step))

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log the earlier rows of a run that is gone on with, each with its "step".

        Online, those that W&B has are left out; it drops them anyway when they come again. Offline,
        the folder of this session gets them all and those of earlier sessions are removed, so that
        `wandb sync` of the one folder sends every step once, however the sessions ended.
        """
        if self._run is None:
            return
        first = self._run.starting_step if self._mode == "online" else 0
        for row in rows:
            if row["step"] >= first:
                self.log(row, row["step"])
        if self._path is not None:
            for old in (self._run_dir / "wandb").glob("offline-run-*"):
                if old.name != self._path.name:
                    shutil.rmtree(old, ignore_errors=True)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table under `name`, with the row of the step last logged.

        W&B makes a file name of it and breaks off where that is too long: it gets the first part.
        """
        if self._run is not None:
            self._guard(lambda: self._log_table(name[:LONGEST_NAME], columns, rows))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Set the run's summary, less its None values, and close the run; idempotent."""
        if self._run is not None:
            self._guard(lambda: self._close(summary))

    def _start(self, config: Mapping[str, Any], project: str, name: str | None) -> None:
        offline = self._mode == "offline"
        if offline:
            # W&B reports its own crashes over the network, offline too; it reads this on import.
            os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb  # takes a second: not at the top

        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            dir=self._run_dir,
            config=dict(config),
            mode=self._mode,
            project=project,
            name=name,
            id=self._run_id,
            resume="allow" if self._run_id and not offline else None,
            reinit="create_new",  # leaves the caller's own runs, and wandb.run, alone
            settings=wandb.Settings(
                silent=True,
                init_timeout=PATIENCE_S,
                finish_timeout=PATIENCE_S,
                finish_timeout_raises=True,
                quiet=True,
                console="off",
                host="",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                # A table's rows are read from the run's own folder, wherever that is moved.
                allow_offline_artifacts=False,
            ),
        )
        self._run_id = self._run.id
        self._path = Path(self._run.dir).parent if offline else None

    def _log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        # W&B keeps a second copy of a table, by default in the user's home folder.
        with _environment("WANDB_DATA_DIR", str(self._run_dir.absolute() / "wandb")):
            # Uncommitted: a commit would move W&B's step on, and drop later rows of this step.
            self._run.log({name: table}, commit=False)

    def _close(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update({k: v for k, v in summary.items() if v is not None})
        self._run.finish()
        self._run = None

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        # Anything may go wrong in a client that runs a process of its own and speaks to a network,
        # and none of it is worth a training run: hence every Exception, in this one place.
        except Exception as error:
            self._run = None
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            self._warn(f"W&B stopped, and this run goes on without it: {reason}.")
            if isinstance(error, ConnectionError):  # W&B's process is gone
                _forget_service()


def _forget_service() -> None:
    """Let W&B start a new process for a later run, without waiting for the dead one at exit."""
    import wandb

    with suppress(Exception):  # that the process is gone is why this is called
        wandb.teardown()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
