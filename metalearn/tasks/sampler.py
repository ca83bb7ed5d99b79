"""Few-shot tasks drawn by learn2learn, their images gathered in one indexing operation."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.batch import TaskBatch
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.l2l import import_learn2learn


class ImageTaskSampler:
    """Tasks of `ways` classes with `shots` support and `queries` query images each.

    learn2learn's `MetaDataset`, `Taskset` (its task dataset), `NWays` and `KShots` decide which
    images make a task; the pixels stay where they are, one uint8 tensor on `device`, until `sample`
    gathers the whole batch and scales it to [0, 1]. Labels are 0 .. ways - 1; a task's images are
    ordered by label.

    Support and query share no image. The stream depends on `seed` alone, and sampling leaves
    Python's global random state (which learn2learn draws from) as it was.

    With `distinct` there are so many different tasks, which recur: each is named by a number, from
    which it is drawn anew, so that none is kept.

    Raises:
        UsageError: fewer classes than ways, fewer than two ways, or a class with too few images.
    """

    def __init__(
        self,
        data: LabelledImages,
        ways: int,
        shots: int,
        queries: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        distinct: int | None = None,
    ) -> None:
        if min(ways, shots, queries) < 1:
            raise UsageError(
                f"ways={ways}, shots={shots}, queries={queries}; each must be at least 1"
            )
        if ways < 2:
            raise UsageError(f"ways={ways} leaves nothing to tell apart; expected at least 2")
        if distinct is not None and distinct < 1:
            raise UsageError(f"distinct={distinct}; expected at least 1 task, or null for no limit")
        if ways > len(data.classes):
            raise UsageError(
                f"ways={ways}, but this split has {len(data.classes)} classes; ask for fewer ways"
            )
        fewest = int(torch.bincount(data.labels, minlength=len(data.classes)).min())
        if shots + queries > fewest:
            raise UsageError(
                f"shots={shots} and queries={queries} need {shots + queries} images a class, but "
                f"the smallest class has {fewest}; ask for fewer"
            )
        self.ways, self.shots, self.queries = ways, shots, queries
        self._images = data.images.to(device)
        self._labels = data.labels.tolist()
        self._tasks = _task_dataset(self._labels, ways, shots + queries)
        self._state = random.Random(seed).getstate()
        self._seed, self._distinct = seed, distinct

    def sample(self, num_tasks: int) -> TaskBatch:
        """A batch of `num_tasks` tasks, (num_tasks, ways * shots, C, H, W) and so on."""
        ways, shots = self.ways, self.shots
        each = shots + self.queries
        outer_state = random.getstate()
        random.setstate(self._state)
        try:
            rows = [self._one_task() for _ in range(num_tasks)]
            self._state = random.getstate()
        finally:
            random.setstate(outer_state)
        device = self._images.device
        index = torch.tensor(rows, device=device).view(num_tasks, ways, each)
        index = torch.cat([index[:, :, :shots].flatten(1), index[:, :, shots:].flatten(1)], dim=1)
        pixels = self._images[index].float() / 255
        labels = torch.arange(ways, device=device)

        def repeated(k: int) -> Tensor:
            return labels.repeat_interleave(k).repeat(num_tasks, 1)

        split = ways * shots
        return TaskBatch(
            pixels[:, :split].contiguous(),
            repeated(shots),
            pixels[:, split:].contiguous(),
            repeated(self.queries),
        )

    def _one_task(self) -> list[int]:
        """Indices of the task's images, class by class."""
        if self._distinct is not None:
            number = random.randrange(self._distinct)
            stream = random.getstate()
            random.seed(f"{self._seed}:{number}")
            try:
                return self._draw()
            finally:
                random.setstate(stream)
        return self._draw()

    def _draw(self) -> list[int]:
        drawn = [d.index for d in self._tasks.sample_task_description()]
        by_class: dict[int, list[int]] = {}
        for index in drawn:
            by_class.setdefault(self._labels[index], []).append(index)
        return [index for images in by_class.values() for index in images]

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._state
        return {"random": [version, list(words), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["random"]
        self._state = (version, tuple(words), gauss)


class _Labels(torch.utils.data.Dataset[int]):
    """What learn2learn draws from: a dataset of labels, whose pixels it never sees."""

    def __init__(self, labels: list[int]) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> int:
        return self._labels[index]


def _task_dataset(labels: list[int], ways: int, each: int) -> Any:
    data = import_learn2learn("learn2learn.data")
    transforms = import_learn2learn("learn2learn.data.transforms")
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    dataset = data.MetaDataset(
        _Labels(labels), indices_to_labels=dict(enumerate(labels)), labels_to_indices=by_label
    )
    steps = [transforms.NWays(dataset, ways), transforms.KShots(dataset, each)]
    return data.Taskset(dataset, task_transforms=steps, num_tasks=-1)
