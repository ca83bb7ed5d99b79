"""The fingerprint of a run's start: its classes and images by split, and its initial weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from metalearn.tasks import ImageTasks, Tasks
from metalearn.training.experiment import Setup
from metalearn.training.given import GivenSamplers, task_tensors
from metalearn.tree import leaves_of

SPLITS = ("train", "validation", "test")

DataRecord = Mapping[str, Mapping[str, Any]]
"""The "classes" of each split by name, and the SHA-256 of its "images" where it has them."""


def describe_data(tasks: Tasks, splits: Iterable[str] = SPLITS) -> dict[str, dict[str, Any]]:
    """Return the record of the data of some splits; a split without classes is left out."""
    found: dict[str, dict[str, Any]] = {}
    for split in splits:
        if classes := tasks.classes(split):
            found[split] = {"classes": list(classes)}
            if isinstance(tasks, ImageTasks):
                data = tasks.split(split)
                found[split]["images"] = _digest([data.images, data.labels])
    return found


def find_other_data(own: DataRecord, saved: DataRecord) -> str | None:
    """Return what differs between the data of now and those of a checkpoint; None: nothing.

    The splits that either record lacks are not compared.
    """
    splits = [split for split in SPLITS if split in own and split in saved]
    now, then = (
        {split: set(record[split]["classes"]) for split in splits} for record in (own, saved)
    )
    for name in sorted(set().union(*now.values(), *then.values())):
        places = [
            " and ".join(split for split in splits if name in classes[split]) or "no split"
            for classes in (now, then)
        ]
        if places[0] != places[1]:
            return f"class {name!r} is in {places[0]}, and was in {places[1]}"
    for split in splits:
        if own[split].get("images") != saved[split].get("images"):
            return f"the images of the {split} split are not what they were"
    return None


def describe_start(experiment: Setup, splits: Iterable[str] = SPLITS) -> dict[str, Any]:
    """Return the digests of the initial weights and of the data of some splits."""
    tasks = experiment.tasks
    if isinstance(tasks, GivenSamplers):
        splits = tasks.samplers
    return {
        "data": {split: _digest_split(tasks, split) for split in splits},
        "initial weights": _digest(
            x.detach().cpu() for x in [*leaves_of(experiment.meta), *experiment.constants.values()]
        ),
    }


def digest_names(names: Sequence[str]) -> str:
    """Return the SHA-256 of the names, a line each."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _digest_split(tasks: Tasks, split: str) -> dict[str, Any]:
    """Return digests of a split: of its images, or of a task where it has none in memory."""
    if isinstance(tasks, ImageTasks):
        (record,) = describe_data(tasks, [split]).values()
        return record | {"classes": digest_names(record["classes"])}
    sampler = tasks.sampler(split, 0, "cpu")
    start = deepcopy(sampler.state_dict())
    task = sampler.sample(1)
    sampler.load_state_dict(start)
    return {"tasks": _digest(x.detach().cpu() for x in task_tensors(task))}


def _digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU, with their types and shapes."""
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
