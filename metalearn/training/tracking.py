"""Weights & Biases runs that stay on this machine unless sending is asked for."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from metalearn.config import OBJECTS
from metalearn.errors import UsageError

_warn = logging.getLogger(__name__).warning

LONGEST_NAME = 80
"""The longest name of a table; W&B allows 128 characters with those that it adds."""
PATIENCE_S = 30.0
"""The seconds that a run waits for W&B's server to start, and for the last rows to be sent."""


@dataclass(frozen=True)
class Labels:
    """The labels of a W&B run, by which people find it; None or empty: W&B's own variable counts.

    Args:
        project: None: `WANDB_PROJECT`, else "metalearn".
        entity: the user or the team; None: `WANDB_ENTITY`.
        group, job_type, notes, tags: None or empty: `WANDB_RUN_GROUP`, `WANDB_JOB_TYPE`,
            `WANDB_NOTES`, `WANDB_TAGS`.

    Raises:
        UsageError: W&B takes no such label.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, most in (("project", 128), ("entity", 128), ("group", 128), ("job_type", 64)):
            value = getattr(self, name)
            odd = sorted(set(value or "").intersection("/\\#?%:")) if name == "project" else []
            if value is not None and (odd or not 1 <= len(value) <= most):
                raise UsageError(
                    f"tracking.{name}={value}: expected 1 to {most} characters"
                    + (", none of / \\ # ? % :" if name == "project" else "")
                    + ". Give another, or leave it out"
                )
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise UsageError(
                    f"tracking.tags has {tag!r}: expected tags of 1 to 64 characters. Give others"
                )

    @classmethod
    def of(cls, config: DictConfig) -> Labels:
        """Return the labels of a training config."""
        own = {name: config.tracking[name] for name in cls.__dataclass_fields__}
        return cls(**{**own, "tags": tuple(own["tags"])})

    def options(self) -> dict[str, Any]:
        """Return the arguments of `wandb.init`, completed from the environment."""
        # W&B reads the environment once a process, when its first run begins.
        found: dict[str, Any] = {
            name: getattr(self, name) or os.environ.get(variable) or None
            for name, variable in _VARIABLES.items()
        }
        tags = self.tags or os.environ.get("WANDB_TAGS", "").split(",")
        found["tags"] = [tag for tag in tags if tag] or None
        return {**found, "project": found["project"] or "metalearn"}


_VARIABLES = {
    **{"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP"},
    **{"job_type": "WANDB_JOB_TYPE", "notes": "WANDB_NOTES"},
}


def method_of(config: DictConfig) -> str:
    """Return the method of a training config: its name in configs/, or else its class."""
    if OBJECTS in config:  # a run from Python
        described = config[OBJECTS].meta_gradient
        target = described if isinstance(described, str) else described["class"]
    else:
        target = config.metagrad["_target_"]
    return str(config.tracking.method or target.rpartition(".")[2])


class Tracker:
    """A W&B run of the real client; offline unless `mode` says otherwise, and nothing is sent then.

    run_dir: W&B's own folder, `wandb/`, is made inside it.
    config:  the run's configuration, nested mappings of plain values.
    name:    the run's; WANDB_NAME goes before it.
    mode:    "offline" writes files that `wandb sync` can send later, whatever WANDB_MODE says;
             "online" sends as it goes, and asks a terminal for a missing W&B key;
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
        name: str | None = None,
        labels: Labels = Labels(),
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
            self._guard(lambda: self._start(config, name, labels))

    @property
    def run_id(self) -> str | None:
        """The id of the run in W&B, which checkpoints keep for the tracker that resumes it."""
        return self._run_id

    @property
    def path(self) -> Path | None:
        """The offline run's folder, which `wandb sync` takes; None without one."""
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

    def _start(self, config: Mapping[str, Any], name: str | None, labels: Labels) -> None:
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
            name=os.environ.get("WANDB_NAME") or name,
            **labels.options(),
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
            self._warn(f"W&B stopped, and this run continues without it: {reason}.")
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
