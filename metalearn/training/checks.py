"""The checks of a run that resumes, or that a restarted job began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalearn.config import OBJECTS, checked
from metalearn.config.canonical import canonicalise, find_difference
from metalearn.errors import UsageError
from metalearn.parallel.ranks import job, restarted
from metalearn.training import checkpoint
from metalearn.training.run_folder import check_unused

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
