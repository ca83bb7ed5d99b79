"""The place of a run's data: stored as an absolute path, and told anew where the data has moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.errors import UsageError
from metalearn.system.files import with_home

OPTION = "tasks.dataset.source"
"""The option with the path of a dataset's files."""


def make_absolute(config: DictConfig) -> None:
    """Replace the paths of the dataset by absolute paths, which hold in every folder.

    Raises:
        UsageError: the path is empty, or begins with the home of an unknown user.
    """
    if (source := OmegaConf.select(config, OPTION)) is not None:
        move(config, source, "the config")
    if splits := OmegaConf.select(config, "tasks.dataset.splits"):
        config.tasks.dataset.splits = str(with_home(splits).absolute())


def check_outside(config: DictConfig, run_dir: Path) -> None:
    """Raise UsageError if a new run's folder is within the folder of a user's own images.

    A folder in there would count as a class.
    """
    source = OmegaConf.select(config, OPTION)
    own = OmegaConf.select(config, "tasks.dataset._target_") == "metalearn.tasks.own_images.images"
    if own and source and run_dir.resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(
            f"run_dir={run_dir}: expected a folder outside the images, {source}, where it would "
            "count as a class. Give another run_dir="
        )


def move(config: DictConfig, source: Any, where: str) -> None:
    """Set the place where the dataset of a config lies now.

    Args:
        config: of a training run; it is changed.
        source: the path, absolute or from the current folder.
        where: the origin of the config, for the error.

    Raises:
        UsageError: `source` is no path, or the tasks are not read from files.
    """
    if not isinstance(source, str) or not source:
        raise UsageError(
            f"source={source}: expected the path of the data. Give one, or leave it out"
        )
    dataset = OmegaConf.select(config, "tasks.dataset")
    if not isinstance(dataset, DictConfig) or "source" not in dataset:
        raise UsageError(
            f"source={source}: expected tasks that are read from files, which those of {where} are "
            "not. Leave source= out"
        )
    dataset.source = str(with_home(source).absolute())
