"""The fingerprint of a run's start: digests of its initial weights and of its data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from metalearn.tasks import ImageTasks, Tasks
from metalearn.training.experiment import Setup
from metalearn.training.given import GivenSamplers, task_tensors
from metalearn.tree import leaves_of


def describe_start(
    experiment: Setup, splits: Iterable[str] = ("train", "validation", "test")
) -> dict[str, Any]:
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


def _digest_split(tasks: Tasks, split: str) -> dict[str, Any]:
    """Return digests of a split: of its images, or of a task where it has none in memory."""
    if isinstance(tasks, ImageTasks):
        data = tasks.split(split)
        names = hashlib.sha256("\n".join(data.classes).encode()).hexdigest()
        return {"classes": names, "images": _digest([data.images, data.labels])}
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
