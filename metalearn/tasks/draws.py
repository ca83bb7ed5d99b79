"""The draws of tasks: the classes and examples of each task, as indices."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metalearn.tasks.l2l import import_learn2learn

Draw = Callable[[], list[int]]
"""Returns the indices of the next task's examples, class by class, by Python's random state."""


def make_draw(labels: Sequence[int], ways: int, each: int) -> Draw:
    """Return the draw of tasks with `ways` classes and `each` examples of each class.

    learn2learn draws them where it is installed, and `OwnDraw` draws the same tasks elsewhere.

    Args:
        labels: the class of each example.

    Raises:
        UsageError: learn2learn is installed and cannot be imported.
    """
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    if importlib.util.find_spec("learn2learn") is None:
        return OwnDraw(by_label, ways, each)
    return Learn2LearnDraw(labels, by_label, ways, each)


@dataclass(frozen=True)
class OwnDraw:
    """The draw without learn2learn: it takes the same random numbers to the same tasks."""

    by_label: Mapping[int, Sequence[int]]
    ways: int
    each: int

    def __call__(self) -> list[int]:
        classes = random.sample(list(self.by_label), self.ways)
        return [i for label in classes for i in random.sample(self.by_label[label], self.each)]


class Learn2LearnDraw:
    """The draw by learn2learn's `MetaDataset`, `Taskset`, `NWays` and `KShots`."""

    def __init__(
        self, labels: Sequence[int], by_label: dict[int, list[int]], ways: int, each: int
    ) -> None:
        data = import_learn2learn("learn2learn.data")
        transforms = import_learn2learn("learn2learn.data.transforms")
        self._labels = labels
        dataset = data.MetaDataset(
            _Labels(labels), indices_to_labels=dict(enumerate(labels)), labels_to_indices=by_label
        )
        steps = [transforms.NWays(dataset, ways), transforms.KShots(dataset, each)]
        self._tasks: Any = data.Taskset(dataset, task_transforms=steps, num_tasks=-1)

    def __call__(self) -> list[int]:
        by_class: dict[int, list[int]] = {}
        for drawn in self._tasks.sample_task_description():
            by_class.setdefault(self._labels[drawn.index], []).append(drawn.index)
        return [index for images in by_class.values() for index in images]


class _Labels(torch.utils.data.Dataset[int]):
    """The dataset of labels from which learn2learn draws; it has no pixels."""

    def __init__(self, labels: Sequence[int]) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> int:
        return self._labels[index]
