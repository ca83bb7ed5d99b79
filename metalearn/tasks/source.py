"""Where a run's tasks come from: one dataset, its three splits, a sampler for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from metalearn.errors import UsageError
from metalearn.tasks.batch import TaskBatch
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.sampler import ImageTaskSampler


class Sampler(Protocol):
    """A seeded stream of task batches."""

    def sample(self, num_tasks: int) -> TaskBatch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Tasks(Protocol):
    """Samplers of the splits "train", "validation" and "test"."""

    def sampler(self, split: str, seed: int, device: torch.device | str) -> Sampler: ...

    def classes(self, split: str) -> tuple[str, ...]:
        """The names of a split's classes; empty where tasks are not made of classes."""
        ...


@dataclass
class ImageTasks:
    """Few-shot classification on an image dataset.

    Args:
        dataset: gives the splits when called; nothing is read before that.
        ways, shots, queries: of a training task.
        test_queries: query images a class in validation and test.
        rotations: adds each training class turned by 90, 180 and 270 degrees as further classes
            (Santoro et al. 2016); validation and test classes stay as drawn.
        channels, image_size: what the images must be, for the model that is built beside.
        train_shots: of a training task; None: `shots`.
        distinct: how many different training tasks there are, drawn over and over; None: no limit.
        affine: the strength of random affine maps of each training image, support and query alike
            (`AffineMaps`: at 1 up to 10 degrees, 10 %, and 2 pixels of 28); 0: none.
    """

    dataset: Callable[[], Mapping[str, LabelledImages]]
    ways: int
    shots: int
    queries: int
    test_queries: int
    rotations: bool
    channels: int
    image_size: int
    train_shots: int | None = None
    distinct: int | None = None
    affine: float = 0.0
    _splits: Mapping[str, LabelledImages] | None = None

    def sampler(self, split: str, seed: int, device: torch.device | str) -> ImageTaskSampler:
        data = self.split(split)
        if split != "train":
            return ImageTaskSampler(data, self.ways, self.shots, self.test_queries, seed, device)
        if self.rotations:
            data = data.with_rotations()
        shots = self.shots if self.train_shots is None else self.train_shots
        return ImageTaskSampler(
            data, self.ways, shots, self.queries, seed, device, self.distinct, self.affine
        )

    def classes(self, split: str) -> tuple[str, ...]:
        return self.split(split).classes

    def split(self, name: str) -> LabelledImages:
        """As drawn, without rotations. Raises UsageError where the images are not as announced."""
        if self._splits is None:
            self._splits = self.dataset()
        data = self._splits[name]
        expected = (self.channels, self.image_size, self.image_size)
        if tuple(data.images.shape[1:]) != expected:
            raise UsageError(
                f"the images are {tuple(data.images.shape[1:])}, but tasks.channels and "
                f"tasks.image_size say {expected}; make them agree"
            )
        return data
