"""`metalearn train`: a new run, a resumed run or a sweep; alone or under torchrun."""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn import config
from metalearn.config.old_names import rename_overrides
from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.parallel.ranks import (
    ALONE,
    Ranks,
    may_restart,
    process_group,
    world_size,
)
from metalearn.training import data_source
from metalearn.training.agreement import check_same, describe_options, on_every_rank
from metalearn.training.checks import WITH_RESUME, begun_by_this_job, check_schedule

SHORT = {
    "data": ("tasks=images", "tasks.dataset.source={}"),
    "source": ("tasks.dataset.source={}",),
}
"""The words for which an option is short; {} stands for its value."""

Complain = Callable[[Exception], None]


def run(words: list[str], complain: Complain) -> int:
    """Train and return the exit status; `complain` is told why a run ended early.

    Raises:
        UsageError: the overrides cannot be trained.
    """
    asks_for_sweep = [w for w in words if w in ("-m", "--multirun")]
    overrides = rename_overrides(_in_full([w for w in words if w not in asks_for_sweep]))
    resumed = "resume" in config.keys(overrides)
    if not asks_for_sweep and (own := [w for w in overrides if w.startswith("hydra/")]):
        raise UsageError(f"{own[0]} is a sweep's; add -m")
    if asks_for_sweep:
        if resumed:
            raise UsageError("resume= continues one run; leave -m out")
        if world_size() > 1:
            raise UsageError("-m is no work for several processes; start it without torchrun")
        from metalearn.config import sweep

        for words in sweep.jobs(overrides):
            config.compose("train", words)  # every job is sound before the first one starts
        from metalearn.commands.sweep_table import print_sweep

        into = sweep.new_folder()
        ended = sweep.multirun("train", overrides, lambda cfg: _begin(cfg, ALONE, complain), into)
        print_sweep(ended, into)
        return max((one.status for one in ended), default=0)
    with process_group() as ranks:
        # The run's own tasks have this option, and not those that the words would compose.
        moved = config.values(overrides).get(data_source.OPTION) if resumed else None
        given = [w for w in overrides if moved is None or not w.startswith(data_source.OPTION)]
        asked = on_every_rank(ranks, lambda: config.compose("train", given))
        # Before any other exchange, which ranks with other words would take part in differently.
        if ranks.size > 1:
            check_same(ranks, describe_options(asked))
        if resumed:
            cfg, folder = ranks.on_rank_zero(lambda: _resumed(asked, config.keys(given), moved))
            return _train_into(cfg, folder, True, ranks, complain)
        return _begin(asked, ranks, complain)[0]


def _in_full(words: list[str]) -> list[str]:
    """Return the words with each option of `SHORT` replaced by the words for which it is short."""
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    names = [name for _, name, _ in pairs]
    if "data" in names and {"tasks", "source", "resume"}.intersection(names):
        raise UsageError(
            "data=PATH: expected neither tasks= nor source= nor resume= beside it, for it chooses "
            "tasks=images and its source. Leave one of them out"
        )
    if "data=" in words:
        raise UsageError("data=: expected the path of your images. Give it")
    if "source" in names and not {"tasks", "resume", "experiment"}.intersection(names):
        raise UsageError(
            "source=PATH: expected tasks=, experiment= or resume= beside it. Give data=PATH to "
            "train on your own images"
        )
    return [
        full.format(value) if name in SHORT else full
        for word, name, value in pairs
        for full in SHORT.get(name, (word,))
    ]


def _begin(cfg: DictConfig, ranks: Ranks, complain: Complain) -> tuple[int, str]:
    """Begin a run, or continue the one that torchrun began by the same words.

    Returns:
        The exit status, and the run's folder.
    """
    data_source.make_absolute(cfg)
    if cfg.run_dir == "":
        raise UsageError("run_dir= is empty; give a folder, or leave it out")
    if cfg.run_dir is None:
        if may_restart():
            raise UsageError("run_dir= is missing, by which a restart would find the run; give it")
        data_source.check_outside(cfg, Path("runs"))
        folder, begun = ranks.on_rank_zero(lambda: _fresh(Path("runs"), cfg.name)), False
    else:
        folder = Path(cfg.run_dir)
        data_source.check_outside(cfg, folder)
        begun = ranks.on_rank_zero(lambda: begun_by_this_job(folder, cfg))
    return _train_into(cfg, folder, begun, ranks, complain), str(folder)


def _resumed(asked: DictConfig, given: set[str], moved: Any) -> tuple[DictConfig, Path]:
    """Return the config of the run that resume= names, with the options given, and its folder."""
    if odd := sorted(key for key in given if key.partition(".")[0] not in WITH_RESUME):
        raise UsageError(
            f"{odd[0]}= cannot be given beside resume=, which keeps the run's own config; only "
            f"{', '.join(WITH_RESUME[1:])} and source can"
        )
    folder = Path(asked.resume or "")
    if asked.resume is None or not os.path.isfile(folder / "config.yaml"):
        raise UsageError(f"resume={asked.resume}: there is no run; give the folder of one in runs/")
    cfg = config.saved(folder / "config.yaml", "train")
    if "steps" in given:
        check_schedule(cfg, asked.steps)
    for key in given.difference(("resume",)):
        OmegaConf.update(cfg, key, OmegaConf.select(asked, key))
    if moved is not None:
        data_source.move(cfg, moved, str(folder))
    return cfg, folder


def _train_into(
    cfg: DictConfig, folder: Path, resume: bool, ranks: Ranks, complain: Complain
) -> int:
    from metalearn.training.loop import train  # slow, and a mistake in the words is said at once

    cfg.resume = None
    try:
        train(cfg, folder, resume, ranks)
    except (TrainingStopped, TrainingInterrupted) as error:
        complain(error)
        return error.status
    return 0


def _fresh(parent: Path, name: str) -> Path:
    """Return a new folder that no other process takes at the same moment."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return parent / f"{name}-{stamp}-{secrets.token_hex(3)}"
