"""MAML by other libraries, with the settings of their own Omniglot examples.

The images, the classes and the drawing of tasks are this project's. The examples' own loaders are
slower. The settings are those of the examples at these commits:

- learn2learn: examples/vision/maml_omniglot.py, commit db5cee3 (2023-07-04).
- higher: examples/maml-omniglot.py, commit 15a247a (2021-10-26).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.studies.time_to_accuracy.learners import Learner, mean_accuracy
from metalearn.tasks import ImageTasks, Sampler, TaskBatch
from metalearn.tasks.l2l import import_learn2learn
from metalearn.training.estimate import Estimate

META_BATCH = 32
"""The tasks of a meta-step: learn2learn's `meta_batch_size` and higher's `--task_num`."""


class ByLearn2learn:
    """MAML by learn2learn: one inner step at 0.5, Adam at 0.003, one query image of each class.

    The example also adapts to 32 validation tasks in each meta-step. This is left out, since it
    trains nothing.

    Args:
        tasks: drawn from for training. The support images of each class are `tasks.shots`.
        network: "OmniglotFC", the example's, or "OmniglotCNN", the library's other network.
        seed: of the weights' initialisation, which the caller has seeded, and of the tasks.
    """

    steps: int | None = None

    def __init__(
        self, tasks: ImageTasks, seed: int, device: torch.device, network: str = "OmniglotFC"
    ) -> None:
        models = import_learn2learn("learn2learn.vision.models")
        algorithms = import_learn2learn("learn2learn.algorithms")
        size = tasks.image_size**2
        sizes = (size, tasks.ways) if network == "OmniglotFC" else (tasks.ways,)
        model = getattr(models, network)(*sizes).to(device)
        self._maml = algorithms.MAML(model, lr=0.5, first_order=False)
        self._optimiser = torch.optim.Adam(self._maml.parameters(), lr=0.003)
        self._sampler = training_sampler(tasks, 1, seed, device)
        setting = f"{network}, 1 inner step at 0.5, Adam at 0.003, 1 query a class"
        self.about = describe(model, setting)

    def step(self) -> None:
        self._optimiser.zero_grad()
        for sx, sy, qx, qy in each_task(self._sampler.sample(META_BATCH)):
            learner = self._maml.clone()
            learner.adapt(F.cross_entropy(learner(sx), sy))
            F.cross_entropy(learner(qx), qy).backward()
        for p in self._maml.parameters():
            p.grad /= META_BATCH
        self._optimiser.step()

    def accuracy(self, sampler: Sampler, tasks: int) -> Estimate:
        def predict(sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
            learner = self._maml.clone(first_order=True)
            learner.adapt(F.cross_entropy(learner(sx), sy))
            with torch.no_grad():
                logits: Tensor = learner(qx)
            return logits

        return mean_accuracy(predict, sampler, tasks)


class ByHigher:
    """MAML by higher: five inner steps at 0.1, Adam at 0.001, 15 query images of each class.

    The example's default has five support images of each class (`--k_spt`), and here `tasks.shots`
    decides. The gradient is the sum over the tasks, as in the example.

    Args:
        tasks, seed: as in `ByLearn2learn`.
    """

    steps: int | None = None

    def __init__(self, tasks: ImageTasks, seed: int, device: torch.device) -> None:
        import higher

        self._higher: Any = higher
        blocks = [_block(tasks.channels), _block(64), _block(64)]
        self._model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, tasks.ways)).to(device)
        self._optimiser = torch.optim.Adam(self._model.parameters(), lr=1e-3)
        self._sampler = training_sampler(tasks, 15, seed, device)
        setting = "3 pooled layers, 5 inner steps at 0.1, Adam at 0.001, 15 queries a class"
        self.about = describe(self._model, setting)

    def step(self) -> None:
        self._optimiser.zero_grad()
        for sx, sy, qx, qy in each_task(self._sampler.sample(META_BATCH)):
            with self._inner_loop(copy_initial_weights=False) as (network, inner):
                self._adapt(network, inner, sx, sy)
                F.cross_entropy(network(qx), qy).backward()
        self._optimiser.step()

    def accuracy(self, sampler: Sampler, tasks: int) -> Estimate:
        def predict(sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
            with self._inner_loop(track_higher_grads=False) as (network, inner):
                self._adapt(network, inner, sx, sy)
                logits: Tensor = network(qx).detach()
            return logits

        return mean_accuracy(predict, sampler, tasks)

    def _inner_loop(self, **options: bool) -> Any:
        inner = torch.optim.SGD(self._model.parameters(), lr=0.1)
        return self._higher.innerloop_ctx(self._model, inner, **options)

    def _adapt(self, network: Any, inner: Any, sx: Tensor, sy: Tensor) -> None:
        for _ in range(5):
            inner.step(F.cross_entropy(network(sx), sy))


def _block(channels: int) -> nn.Sequential:
    """Return a layer of 64 filters of 3 x 3 without padding, which halves the side by pooling."""
    norm = nn.BatchNorm2d(64, momentum=1, affine=True)
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3), norm, nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)
    )


def training_sampler(tasks: ImageTasks, queries: int, seed: int, device: torch.device) -> Sampler:
    """Return a sampler of training tasks with so many query images of each class."""
    return replace(tasks, queries=queries).sampler("train", seed, device)


def each_task(task: TaskBatch) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    return zip(task.support_x, task.support_y, task.query_x, task.query_y, strict=True)


def describe(model: nn.Module, setting: str) -> dict[str, Any]:
    """Return the setting of an example, whose batch norms use the queries' own statistics."""
    parameters = sum(p.numel() for p in model.parameters())
    about = {"setting": setting, "mode": "transductive", "parameters": parameters}
    return about | {"meta_batch": META_BATCH}


Make = Callable[[ImageTasks, int, torch.device], Learner]
"""The maker of a learner from the tasks, the seed and the device."""

EXAMPLES: dict[str, tuple[str, Make]] = {
    "learn2learn": ("learn2learn", ByLearn2learn),
    "learn2learn, CNN": (
        "learn2learn",
        lambda tasks, seed, device: ByLearn2learn(tasks, seed, device, "OmniglotCNN"),
    ),
    "higher": ("higher", ByHigher),
}
"""The library of each example, and the maker of its learner."""
