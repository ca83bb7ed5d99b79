"""The sampler of image tasks: indices are drawn, and one indexing operation gathers images."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError, counted
from metalearn.tasks.batch import TaskBatch
from metalearn.tasks.draws import make_draw
from metalearn.tasks.images import LabelledImages


class ImageTaskSampler:
    """The sampler of tasks with `ways` classes, `shots` support and `queries` query images each.

    learn2learn chooses the images of a task where it is installed, and `draws.OwnDraw` the same
    images elsewhere. The pixels stay in one uint8 tensor on `device`, until `sample` gathers the
    whole batch and scales it to [0, 1]. Labels are 0 .. ways - 1, and the images of a task are
    sorted by label. Support and query set share no image.

    The sequence of tasks depends only on `seed`. Sampling does not change Python's global random
    state, from which both draw.

    Args:
        data: the labelled images of one split.
        ways: the number of classes of a task, at least 2.
        shots: the number of support images of each class.
        queries: the number of query images of each class.
        seed: of the tasks and of the affine maps.
        device: of the images and of the batches.
        task_pool: the number of different tasks, which then recur. A task is drawn again from its
            number, and no task is stored. None: no limit.
        affine: the strength of the random affine maps (`AffineMaps`); 0: none. Each image gets a
            new map whenever it is drawn. The maps have their own generator.

    Raises:
        UsageError: a number is too small, there are fewer classes than ways, a class has too few
            images, or `affine` is not within 0 .. `AffineMaps.STRONGEST`.
    """

    def __init__(
        self,
        data: LabelledImages,
        ways: int,
        shots: int,
        queries: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        task_pool: int | None = None,
        affine: float = 0.0,
    ) -> None:
        if min(ways, shots, queries) < 1:
            raise UsageError(
                f"ways={ways}, shots={shots}, queries={queries}; each must be at least 1"
            )
        if ways < 2:
            raise UsageError(f"ways={ways} leaves nothing to tell apart; expected at least 2")
        if task_pool is not None and task_pool < 1:
            raise UsageError(
                f"task_pool={task_pool}; expected at least 1 task, or null for no limit"
            )
        if ways > len(data.classes):
            number = counted(len(data.classes), "class")
            raise UsageError(f"ways={ways}, but this split has {number}; ask for fewer ways")
        counts = torch.bincount(data.labels, minlength=len(data.classes))
        fewest = int(counts.min())
        if shots + queries > fewest:
            raise UsageError(
                f"shots={shots} and queries={queries} need {shots + queries} images a class, but "
                f"the smallest class, {data.classes[int(counts.argmin())]!r}, has {fewest}; ask "
                "for fewer, give the class more, or leave it out"
            )
        self.ways, self.shots, self.queries = ways, shots, queries
        self._images = data.images.to(device)
        self._draw = make_draw(data.labels.tolist(), ways, shots + queries)
        self._state = random.Random(seed).getstate()
        self._seed, self._task_pool = seed, task_pool
        self._maps = AffineMaps(affine, seed) if affine else None

    def sample(self, num_tasks: int) -> TaskBatch:
        """Return a batch of `num_tasks` tasks; support_x is (num_tasks, ways * shots, C, H, W)."""
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
        """Return the indices of a task's images, class by class."""
        if self._task_pool is not None:
            number = random.randrange(self._task_pool)
            stream = random.getstate()
            random.seed(f"{self._seed}:{number}")
            try:
                return self._draw()
            finally:
                random.setstate(stream)
        return self._draw()

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._state
        maps = {} if self._maps is None else {"affine": self._maps.generator.get_state()}
        return {"random": [version, list(words), gauss], **maps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`.

        A state without "affine", from before the affine maps, does not change their generator.
        """
        version, words, gauss = state["random"]
        self._state = (version, tuple(words), gauss)
        if self._maps is not None and "affine" in state:
            self._maps.generator.set_state(state["affine"])


class AffineMaps:
    """The random affine maps of images, all drawn uniformly and independently.

    At strength 1 a map has these steps, in this order:

    - a shift of up to 1/14 of the image's side along each axis (2 pixels of 28);
    - a shear of up to 0.1;
    - a scale of 0.9 to 1.1;
    - a rotation of up to 10 degrees.

    The ranges are proportional to the strength. Pixels are interpolated bilinearly, and the
    background is 0.

    Args:
        strength: above 0, up to `STRONGEST`.
        seed: of the generator. The generator is on the CPU, so that the maps are the same on every
            device.

    Raises:
        UsageError: the strength is out of its range.
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
        """Transform each of (N, channels, height, width) images by the next random map."""
        drawn = torch.rand(len(images), 5, generator=self.generator) * 2 - 1
        angle, size, shear, right, down = (self.strength * drawn).unbind(1)
        angle, scale, shear = math.radians(10) * angle, 1 + 0.1 * size, 0.1 * shear
        # grid_sample needs the inverse map, from new positions to old ones. Its unit is half a
        # side, so that a shift of 1/14 of the side is 1/7.
        cos, sin = angle.cos() / scale, angle.sin() / scale
        rows = [cos + shear * sin, sin - shear * cos, -right / 7, -sin, cos, -down / 7]
        inverse = torch.stack(rows, dim=1).view(-1, 2, 3).to(images.device)
        grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)
