"""Sweeps: a training for each combination of `key=a,b` values, by Hydra's launchers."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from metalearn.config import compose, config_folder, parse, text_of
from metalearn.config.overrides import HYDRAS, is_group, quote
from metalearn.errors import UsageError
from metalearn.system.files import replace_text


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


def multirun(verb: str, overrides: list[str], run: Callable[[DictConfig], int]) -> int:
    """Runs a sweep by the launcher that `hydra/launcher=` names, one job after the other without;
    the worst exit status of its jobs. What another launcher writes is in runs/sweeps/."""
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
            status = _sweep(verb, overrides, run, Path(path).absolute())
        if made and not any(Path("runs").iterdir()):  # every job was refused
            Path("runs").rmdir()
        return status
    folder = Path("runs/sweeps") / datetime.now().strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    return _sweep(verb, overrides, run, folder.absolute())


def _sweep(verb: str, overrides: list[str], run: Callable[[DictConfig], int], folder: Path) -> int:
    """Each job leaves its exit status in the folder, as it may have a process or a machine of its
    own."""
    here = os.getpid()

    def job(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        config = compose(verb, list(hydra_config.overrides.task))
        config.name = f"{config.name}-{hydra_config.job.num}"
        ended = _ended(folder)
        if any(status >= 128 for status, _ in ended):
            return  # a signal that one job got is meant for the sweep
        status, said = 2, ""
        try:
            status = run(config)
        except UsageError as error:
            said = str(error)
            if os.getpid() == here and said not in {other for _, other in ended}:
                print(f"metalearn: {said}", file=sys.stderr)
        replace_text(folder / f"status-{hydra_config.job.num}.json", json.dumps([status, said]))

    argv = sys.argv
    words = [_for_each_job(override) for override in parse(overrides)]
    sys.argv = ["metalearn", "--multirun", f"hydra.sweep.dir={quote(str(folder))}", *words]
    try:
        configs = str(config_folder())
        hydra.main(version_base="1.3", config_path=configs, config_name=verb)(job)()
    finally:
        sys.argv = argv
    return max((status for status, _ in _ended(folder)), default=0)


def _ended(sweep: Path) -> list[tuple[int, str]]:
    """Return the exit status of each job that has ended, and why it was refused."""
    return [tuple(json.loads(path.read_text())) for path in sorted(sweep.glob("status-*.json"))]
