"""A training from Python of a few meta-steps, whose sampler is its own; a script for torchrun."""

from __future__ import annotations

import functools
import sys

import torch

from metalearn import FewShot, GradientDescent, TaskBatch, Unrolled, train


class Lines:
    """Tasks y = slope x."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, num_tasks):
        own = {"generator": self.generator, "dtype": torch.float64}
        slope = torch.randn(num_tasks, 1, 1, **own)
        x = torch.randn(num_tasks, 20, 1, **own)
        return TaskBatch(x[:, :10], slope * x[:, :10], x[:, 10:], slope * x[:, 10:])

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


def run(folder: str) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    problem = FewShot(torch.nn.Sequential(*layers).double())
    options = {"run_dir": folder, "steps": 6, "meta_batch": 5, "wandb": "disabled", "threads": 1}
    options |= {"validation_every": 3, "validation_tasks": 6, "test_tasks": 7}
    held_out = {"validation": Lines(1), "test": Lines(2)}
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    method = Unrolled(GradientDescent(3, 0.1), backend="batched")
    train(problem, method, problem.begin(), Lines(0), adam, **held_out, **options)


if __name__ == "__main__":
    run(sys.argv[1])
