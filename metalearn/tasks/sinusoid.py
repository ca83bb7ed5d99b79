"""The sinusoid regression tasks of MAML (Finn et al. 2017, section 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.batch import TaskBatch

SEEDS = {"train": 0, "validation": 1, "test": 2}


class SinusoidSampler:
    """The sampler of y = amplitude sin(x - phase) with random amplitudes and phases.

    The amplitude is in [0.1, 5], the phase in [0, pi] and x in [-5, 5], all uniform. A batch has
    support inputs and targets (T, shots, 1), and query inputs and targets (T, queries, 1).

    Raises:
        UsageError: `shots` or `queries` is below 1.
    """

    def __init__(
        self, shots: int, queries: int, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        if min(shots, queries) < 1:
            raise UsageError(f"shots={shots}, queries={queries}; each must be at least 1")
        self.shots, self.queries, self.device = shots, queries, device
        self._generator = torch.Generator().manual_seed(seed)

    def sample(self, num_tasks: int) -> TaskBatch:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            drawn = torch.rand(num_tasks, *shape, generator=self._generator)
            return (low + (high - low) * drawn).to(self.device)

        amplitude, phase = uniform(0.1, 5.0, 1, 1), uniform(0.0, math.pi, 1, 1)
        x = uniform(-5.0, 5.0, self.shots + self.queries, 1)
        y = amplitude * torch.sin(x - phase)
        k = self.shots
        return TaskBatch(x[:, :k], y[:, :k], x[:, k:], y[:, k:])

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])


@dataclass(frozen=True)
class SinusoidTasks:
    """The `Tasks` of sinusoids: the splits have the same distribution and different seeds."""

    shots: int = 10
    queries: int = 10
    test_queries: int = 100

    def sampler(self, split: str, seed: int, device: torch.device | str) -> SinusoidSampler:
        queries = self.queries if split == "train" else self.test_queries
        return SinusoidSampler(self.shots, queries, 3 * seed + SEEDS[split], device)

    def classes(self, split: str) -> tuple[str, ...]:
        return ()
