"""Sweeps: a training for each combination of `key=a,b` values, by Hydra's launchers."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from metalearn.config import compose, config_folder, parse, text_of, values
from metalearn.config.overrides import HYDRAS, is_group, quote
from metalearn.errors import UsageError
from metalearn.system.files import replace_text

_LONGEST_SUFFIX = 60
Run = Callable[[DictConfig], tuple[int, str]]
"""The work of a job: from its config to its exit status and the folder of its run."""


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    Args:
        number: of the job in the sweep.
        status: its exit status.
        reason: why it was refused; empty: it was not.
        folder: of its run; empty if it was refused.
        swept: its values of the options that the sweep varies.
    """

    number: int
    status: int
    reason: str
    folder: str
    swept: dict[str, Any]


def jobs(overrides: list[str]) -> Iterable[list[str]]:
    """Return the overrides of each job of a sweep; `seed=0,1` gives two jobs.

    Raises:
        UsageError: the values of an override cannot be listed.
    """
    return [list(job) for job in itertools.product(*map(_choices, parse(overrides)))]


def _choices(override: Override) -> list[str]:
    """Return an override for each of its values."""
    if not override.is_sweep_override():
        return [text_of(override)]
    value: Any = override.value()
    try:
        if isinstance(value, Glob):
            files = (config_folder() / override.key_or_group).glob("*.yaml")
            values = value.filter(sorted(path.stem for path in files))
        else:
            values = list(override.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{text_of(override)}: expected values that can be listed ({reason}). Give a,b"
        ) from error
    if not values:
        raise UsageError(f"{text_of(override)}: expected at least one value. Give a,b")
    return [f"{override.get_key_element()}={v}" for v in values]


def _for_each_job(override: Override) -> str:
    """Return an override for Hydra's sweep, which applies it to jobs alone.

    Hydra also composes a config of the defaults of those groups that are swept, and an option of
    another choice is unknown there.
    """
    key, _, value = text_of(override).partition("=")
    kept = override.is_sweep_override() or is_group(override) or not value
    if kept or override.key_or_group.startswith(HYDRAS):
        return text_of(override)
    return f"{key}=choice({value})"


def multirun(verb: str, overrides: list[str], run: Run, folder: Path) -> list[Ended]:
    """Run a sweep by the launcher that `hydra/launcher=` names; without one, job after job.

    Args:
        folder: for what another launcher writes; not made without one.

    Returns:
        The jobs that have ended, in order.
    """
    if not any(o.key_or_group == "hydra/launcher" for o in parse(overrides)):
        made = not Path("runs").exists()
        try:
            Path("runs").mkdir(exist_ok=True)
            scratch = TemporaryDirectory(dir="runs", prefix=".sweep-")
        except OSError as error:
            raise UsageError(
                f"runs: expected a folder that can be written ({error.strerror}). Start the sweep "
                "in another folder."
            ) from error
        with scratch as path:  # for Hydra's own file of the sweep; runs have theirs
            ended = _sweep(verb, overrides, run, Path(path).absolute())
        if made and not any(Path("runs").iterdir()):  # every job was refused
            Path("runs").rmdir()
        return ended
    return _sweep(verb, overrides, run, folder.absolute())


def new_folder() -> Path:
    """Return the path of a new folder in runs/sweeps/."""
    return Path("runs/sweeps") / datetime.now().strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")


def job_name(name: str, swept: dict[str, Any]) -> str:
    """Return the name of a run with what differs between the runs, such as NAME-lr0.1-seed2.

    A name that begins with the choices of tasks= and metagrad= does not repeat them.
    """
    words = []
    for key, value in swept.items():
        short = key.rpartition(".")[2]
        if sum(other.rpartition(".")[2] == short for other in swept) > 1:
            short = key
        if key in ("tasks", "metagrad", "experiment") and str(value) in name:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        words.append(re.sub(r"[^\w.+-]", "_", f"{short}{'' if number else '-'}{value}"))
    return "-".join([name, *words])[: len(name) + _LONGEST_SUFFIX]


def _sweep(verb: str, overrides: list[str], run: Run, folder: Path) -> list[Ended]:
    """Each job leaves how it ended in the folder, as it may have a process or a machine of its
    own."""
    here = os.getpid()
    varied = [o.key_or_group for o in parse(overrides) if o.is_sweep_override()]

    def job(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        words = list(hydra_config.overrides.task)
        config = compose(verb, words)
        given = values(words)
        swept = {key: _plain(given[key]) for key in varied if not key.startswith(HYDRAS)}
        config.name = job_name(config.name, swept)
        ended = _ended(folder)
        if any(one.status >= 128 for one in ended):
            return  # a signal that one job got is meant for the sweep
        status, said, where = 2, "", ""
        try:
            status, where = run(config)
        except UsageError as error:
            said = str(error)
            if os.getpid() == here and said not in {one.reason for one in ended}:
                print(f"metalearn: {config.name}: {said}", file=sys.stderr)
        number = int(hydra_config.job.num)
        text = json.dumps(asdict(Ended(number, status, said, where, swept)))
        replace_text(folder / f"status-{number}.json", text)

    argv = sys.argv
    words = [_for_each_job(override) for override in parse(overrides)]
    sys.argv = ["metalearn", "--multirun", f"hydra.sweep.dir={quote(str(folder))}", *words]
    try:
        configs = str(config_folder())
        hydra.main(version_base="1.3", config_path=configs, config_name=verb)(job)()
    finally:
        sys.argv = argv
    return _ended(folder)


def _plain(value: Any) -> Any:
    """Return a value of an override as JSON takes it."""
    return value if isinstance(value, bool | int | float) else str(getattr(value, "text", value))


def _ended(sweep: Path) -> list[Ended]:
    found = [
        Ended(**json.loads(path.read_text(encoding="utf-8")))
        for path in sweep.glob("status-*.json")
    ]
    return sorted(found, key=lambda one: one.number)
