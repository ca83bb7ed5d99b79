"""Few-shot tasks drawn by learn2learn, their images gathered in one indexing operation."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
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

    With `affine` above 0 each image gets a small random affine map of its own (`AffineMaps`), anew
    whenever it is drawn; the maps come from a generator of their own, also seeded by `seed`.

    Raises:
        UsageError: fewer classes than ways, fewer than two ways, a class with too few images, or
            a value of `affine` outside of 0 .. `AffineMaps.STRONGEST`.
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
        affine: float = 0.0,
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
        self._maps = AffineMaps(affine, seed) if affine else None

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
        if self._maps is not None:
            pixels = self._maps.apply(pixels.flatten(0, 1)).view_as(pixels)
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
        maps = {} if self._maps is None else {"affine": self._maps.generator.get_state()}
        return {"random": [version, list(words), gauss], **maps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; one of before the affine maps leaves their generator as it is."""
        version, words, gauss = state["random"]
        self._state = (version, tuple(words), gauss)
        if self._maps is not None and "affine" in state:
            self._maps.generator.set_state(state["affine"])


class AffineMaps:
    """Random affine maps of images, all drawn uniformly and independently.

    At strength 1 an image is shifted by up to 1/14 of its side along each axis (2 pixels of 28),
    sheared by up to 0.1, scaled by 0.9 to 1.1, and turned by up to 10 degrees, in this order. The
    ranges are proportional to the strength. Pixels are interpolated bilinearly, the background is
    0.

    Args:
        strength: above 0, up to `STRONGEST`.
        seed: of the generator, which stays on the CPU: the maps are the same on every device.

    Raises:
        UsageError: the strength is another.
    """

    STRONGEST = 5.0

    def __init__(self, strength: float, seed: int) -> None:
        if not 0 < strength <= self.STRONGEST:
            raise UsageError(
                f"affine={strength}: expected a strength from 0 to {self.STRONGEST:g}. Give 0 for "
                "images as they are, 1 for small changes"
            )
        self.strength = strength
        self.generator = torch.Generator().manual_seed(seed)

    def apply(self, images: Tensor) -> Tensor:
        """Map each of (N, channels, height, width) images by the next map of the stream."""
        drawn = torch.rand(len(images), 5, generator=self.generator) * 2 - 1
        angle, size, shear, right, down = (self.strength * drawn).unbind(1)
        angle, scale, shear = math.radians(10) * angle, 1 + 0.1 * size, 0.1 * shear
        # grid_sample wants the map from new places to old ones, which is the inverse. Its unit is
        # half a side: a shift of 1/14 of the side is 1/7.
        cos, sin = angle.cos() / scale, angle.sin() / scale
        rows = [cos + shear * sin, sin - shear * cos, -right / 7, -sin, cos, -down / 7]
        inverse = torch.stack(rows, dim=1).view(-1, 2, 3).to(images.device)
        grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


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
