"""The ranges of training's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.config import OBJECTS, checked
from metalearn.config.canonical import canonicalise, find_difference
from metalearn.errors import UsageError
from metalearn.parallel.ranks import job, restarted
from metalearn.training import checkpoint
from metalearn.training.run_folder import check_unused
from metalearn.training.tracking import Labels

WITH_RESUME = (
    *(
        "resume",
        "import",
        "steps",
        "device",
        "threads",
        "wandb",
        "tracking",
        "checkpoint_every",
        "keep_checkpoints",
    ),
    *("on_nonfinite", "on_failed_solve", "on_explosion", "explosion_factor", "keep_best"),
)
"""The options that a resumed run may change: length, device, tracking, guards."""

MOST_TASKS = 100_000
"""The most tasks of a meta-step; 5-way 1-shot tasks of Omniglot then take 3 GB."""


def begun_by_this_job(folder: Path, config: DictConfig) -> bool:
    """Return True if the folder holds a run of this torchrun job and config.

    A job without a name of its own counts as the same job after a restart by torchrun.

    Raises:
        UsageError: it holds another run.
    """
    if checkpoint.generations(folder) and (job() is not None or restarted()):
        saved, _ = checkpoint.newest(folder)
        begun = checked(saved["config"], str(folder), "train", OBJECTS in config)
        same = canonicalise(begun, WITH_RESUME) == canonicalise(config, WITH_RESUME)
        if same and saved.get("job") == job():
            return True
    check_unused(folder, OBJECTS in config)
    return False


def check_same_run(config: DictConfig, saved_config: Any, where: Path) -> DictConfig:
    """Return a checkpoint's own config, completed, if it is of the run that resumes from it.

    Args:
        config: the run's.
        saved_config: as the checkpoint holds it.
        where: the checkpoint.

    Raises:
        UsageError: an option that a resumed run keeps is another.
    """
    saved = checked(saved_config, str(where), "train", OBJECTS in config)
    free = (*WITH_RESUME, "run_dir")
    own, other = (canonicalise(one, but_for=free) for one in (config, saved))
    for one in (own, other):
        one.get("tasks", {}).get("dataset", {}).pop("source", None)  # data may have moved
    if difference := find_difference(own, other):
        name, value, another = difference
        raise UsageError(
            f"{name}={value}: expected {another}, with which {where} was trained. Put back the "
            "run's own config.yaml and checkpoints, or train anew"
        )
    check_schedule(saved, config.steps)
    return saved


def check_schedule(saved: DictConfig, steps: int) -> None:
    """Raise UsageError if the schedule of a saved run ends at another meta-step than `steps`."""
    if saved.schedule == "cosine" and steps != saved.steps:
        raise UsageError(
            f"steps={steps}, but schedule=cosine brings the rate to 0 at this run's "
            f"{saved.steps} meta-steps; leave steps= out, or train anew with steps={steps}"
        )


def check_options(config: DictConfig) -> None:
    """Check what the options of training mean together.

    Raises:
        UsageError: a value is out of its range.
    """
    least = {"steps": 1, "meta_batch": 1, "validation.every": 1}
    least |= {"checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": 1}
    least |= {"validation.tasks": 2, "test.tasks": 2}  # one has no interval
    for name, fewest in least.items():
        value = OmegaConf.select(config, name)
        if not isinstance(value, int) or value < fewest:
            raise UsageError(f"{name}={value}; expected a whole number of at least {fewest}")
    if config.meta_batch > MOST_TASKS:
        raise UsageError(
            f"meta_batch={config.meta_batch}; expected at most {MOST_TASKS} tasks, for all of a "
            "meta-step's are drawn before it"
        )
    micro_batches, most = config.micro_batches, config.meta_batch
    if micro_batches is not None and not (
        type(micro_batches) is int and 1 <= micro_batches <= most
    ):
        raise UsageError(
            f"micro_batches={micro_batches}: expected a whole number from 1 to "
            f"meta_batch={most}, or null for the whole meta-batch. Leave micro_batches= out."
        )
    if config.schedule not in ("constant", "cosine"):
        raise UsageError(f"schedule={config.schedule}; expected 'constant' or 'cosine'")
    if config.wandb not in ("offline", "online", "disabled"):
        raise UsageError(f"wandb={config.wandb}; expected 'offline', 'online' or 'disabled'")
    Labels.of(config)
    if not 0 <= config.average < 1:
        raise UsageError(
            f"average={config.average}: expected a decay from 0 up to 1, 1 excluded. Give 0 for no "
            "average, or such as 0.99 for one over about the last 100 meta-steps"
        )
    clip = config.clip_norm
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise UsageError(f"clip_norm={config.clip_norm}; expected a number above 0, or null")
