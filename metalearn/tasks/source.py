"""The source of a run's tasks: one dataset, its three splits, and a sampler for each split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metalearn.errors import UsageError, check_known, counted
from metalearn.tasks.batch import TaskBatch
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.sampler import ImageTaskSampler


class Sampler(Protocol):
    """A seeded sequence of task batches; any object with these three methods is one.

    Two samplers of one seed give the same sequence. A sampler that loads the state of another goes
    on where the other was, so that a run that is resumed equals one that was not interrupted.
    """

    def sample(self, num_tasks: int) -> TaskBatch:
        """Return the next tasks; all of them have as many support and query examples."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the sequence: tensors and plain values, which a checkpoint stores."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place in the sequence that a `state_dict` describes."""
        ...


@runtime_checkable
class Tasks(Protocol):
    """The samplers of the splits "train", "validation" and "test"."""

    def sampler(self, split: str, seed: int, device: torch.device | str) -> Sampler:
        """Return a new sampler of a split, whose batches are on `device`."""
        ...

    def classes(self, split: str) -> tuple[str, ...]:
        """Return the names of a split's classes; empty if the tasks have no classes."""
        ...


@runtime_checkable
class TasksOfExamples(Tasks, Protocol):
    """Tasks that are drawn from examples in memory.

    The record of a run's data then tells one example from another.
    """

    def examples(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the examples of a split, (N, ...), and their labels or targets, (N, ...)."""
        ...


@dataclass
class ImageTasks:
    """The tasks of few-shot classification on an image dataset.

    Args:
        dataset: returns the splits; nothing is read before it is called.
        ways: the number of classes of a task.
        shots: the number of support images of each class in validation and test.
        queries: the number of query images of each class in training.
        test_queries: the number of query images of each class in validation and test.
        rotations: adds each training class rotated by 90, 180 and 270 degrees as new classes
            (Santoro et al. 2016). Validation and test classes are not rotated.
        channels, image_size: the number of channels and the side in pixels that the model expects.
        train_shots: the number of support images of each class in training; None: `shots`.
        task_pool: the number of different training tasks, which then recur; None: no limit.
        affine: the strength of random affine maps of training images, in support and query sets
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
    task_pool: int | None = None
    affine: float = 0.0
    _splits: Mapping[str, LabelledImages] | None = None

    def sampler(self, split: str, seed: int, device: torch.device | str) -> ImageTaskSampler:
        data, train = self.split(split), split == "train"
        if train and self.rotations:
            data = data.with_rotations()
        if self.ways > len(data.classes):
            number = counted(len(data.classes), "class")
            raise UsageError(
                f"ways={self.ways}, but the {split} split has {number}; ask for fewer ways, "
                "or give the split more classes"
            )
        shots, queries, task_pool, affine = self.shots, self.test_queries, None, 0.0
        if train:
            shots = self.shots if self.train_shots is None else self.train_shots
            queries, task_pool, affine = self.queries, self.task_pool, self.affine
        try:
            return ImageTaskSampler(
                data, self.ways, shots, queries, seed, device, task_pool, affine
            )
        except UsageError as error:
            raise UsageError(f"tasks of the {split} split: {error}") from error

    def classes(self, split: str) -> tuple[str, ...]:
        return self.split(split).classes

    def examples(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the images of a split and their labels, without rotations."""
        data = self.split(split)
        return data.images, data.labels

    def split(self, name: str) -> LabelledImages:
        """Return the images of a split, without rotations.

        Raises:
            UsageError: the images do not have `channels` and `image_size`.
        """
        if self._splits is None:
            self._splits = self.dataset()
        check_known("split", [name], self._splits)
        data = self._splits[name]
        expected = (self.channels, self.image_size, self.image_size)
        if tuple(data.images.shape[1:]) != expected:
            raise UsageError(
                f"tasks.channels={self.channels}, tasks.image_size={self.image_size}: expected "
                f"those of the images, {tuple(data.images.shape[1:])}. Give these"
            )
        return data
