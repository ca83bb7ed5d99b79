"""The objects of a run, given or built from its config: tasks, problem and meta-gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from metalearn.config.build import build, find_function
from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.metagrad import MetaGradient
from metalearn.problem import BilevelProblem, Meta, TrainableProblem
from metalearn.system.machine import find_device, use_threads
from metalearn.system.memory import keep_freed_memory_by_default
from metalearn.tasks import ImageTasks, TaskBatch, Tasks
from metalearn.training import weights
from metalearn.tree import detached, leaves_of, like_tree, named_leaves

STATISTICS_IMAGES = 1000
STATISTICS_SEED = 4000
"""The training images that a body's "population" statistics are measured on."""


@dataclass(frozen=True)
class Setup:
    """The objects that the outer loop moves, whether a config or a caller in Python made them.

    Args:
        meta: what is learned, a pytree of leaves of autograd.
        optimiser: makes the outer optimiser over the leaves of meta.
    """

    problem: BilevelProblem
    meta: Meta
    metagrad: MetaGradient
    tasks: Tasks
    device: torch.device
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer]

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors of meta."""
        return leaves_of(self.meta)

    @property
    def mode(self) -> str:
        """The name of the problem's mode in training."""
        return getattr(self.problem, "mode", TrainableProblem.mode)

    @property
    def couples_tasks(self) -> bool:
        """True if a task's loss depends on the other tasks of its meta-batch."""
        return getattr(self.problem, "couples_tasks", False)

    def load(self, meta: Meta) -> None:
        """Copy the meta-parameters of a checkpoint into this run.

        Raises:
            UsageError: they are another model's.
        """
        own, given = named_leaves(self.meta), named_leaves(meta)
        if {k: x.shape for k, x in given.items()} != {k: x.shape for k, x in own.items()}:
            raise UsageError(
                "the checkpoint's meta-parameters do not fit this run: expected the names and "
                "shapes of its own model. Put back its options, or train anew"
            )
        with torch.no_grad():
            for name, value in given.items():
                own[name].copy_(value)

    @property
    def constants(self) -> dict[str, Tensor]:
        """The tensors of the network that training leaves as they are and checkpoints hold.

        They are frozen parameters and buffers, by name. Those of a run from Python are its
        caller's.
        """
        return {}

    def load_constants(self, constants: Mapping[str, Tensor]) -> None:
        """Copy the constants of a checkpoint into this run.

        Raises:
            UsageError: they are another model's.
        """

    def settled(self, problem: BilevelProblem, meta: Meta) -> BilevelProblem:
        """Return a mode of the problem as evaluation uses it.

        `STATISTICS_IMAGES` training images, always the same ones, are there to measure by.

        Raises:
            UsageError: the problem needs images, and the tasks are not of images in memory.
        """
        if not isinstance(problem, TrainableProblem):
            return problem
        return problem.settled(meta, lambda: self.statistics_images)

    @cached_property
    def statistics_images(self) -> Tensor:
        """The training images that `settled` measures by, (n, ...) in [0, 1]."""
        if not isinstance(self.tasks, ImageTasks):
            raise UsageError(
                "problem.statistics=population: expected tasks of images, not "
                f"{type(self.tasks).__name__}. Set problem.statistics=task."
            )
        images = self.tasks.split("train").images
        g = torch.Generator().manual_seed(STATISTICS_SEED)
        chosen = torch.randperm(len(images), generator=g)[:STATISTICS_IMAGES]
        return images[chosen].to(self.device).float() / 255

    @torch.no_grad()
    def check(self, task: TaskBatch) -> None:
        """Try the problem on a task.

        Raises:
            UsageError: it cannot take the inputs, or its outputs do not fit the targets.
        """
        if isinstance(self.problem, TrainableProblem):
            return self.problem.check(detached(self.meta), task)
        # The default check calls only the methods that every problem has.
        TrainableProblem.check(cast(TrainableProblem, self.problem), detached(self.meta), task)


@dataclass(frozen=True)
class Experiment(Setup):
    """The objects that a config describes, which training and evaluation share.

    Its meta holds the model's parameters by name, and what else the problem has in its meta.
    """

    problem: TrainableProblem
    model: nn.Module

    @classmethod
    def of(cls, config: DictConfig | Mapping[str, Any]) -> Experiment:
        """Build the run that a config describes; `config.seed` draws the weights of the model.

        Sets what holds for the whole process: threads, and that freed memory is kept.

        Raises:
            UsageError: a constructor refuses a value, or the device is not there.
        """
        config = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        keep_freed_memory_by_default()
        use_threads(config.threads)
        device = find_device(config.device)
        torch.manual_seed(config.seed)
        model = build(config.model, nn.Module).to(device)
        if next(model.parameters(), None) is None:
            raise UsageError(
                f"model._target_={config.model._target_} has no parameters to learn; choose model= "
                "for one that has, such as model=mlp"
            )
        weights.freeze(model, config.get("frozen", []))
        metagrad = build(config.metagrad, MetaGradient)
        problem = build_problem(config.problem, model)
        meta = as_leaves(problem.begin(), device)
        tasks = build(config.tasks, Tasks)
        optimiser = partial(build_optimiser, config.optimiser)
        return cls(problem, meta, metagrad, tasks, device, optimiser, model)

    def start_from(self, word: str) -> list[str]:
        """Copy the weights of the network from a file, as `weights.start_from` does.

        Other meta-parameters, such as inner rates or a ridge penalty, keep their own start.
        """
        return weights.start_from(self.model, word)

    @property
    def constants(self) -> dict[str, Tensor]:
        return weights.read_constants(self.model)

    def load_constants(self, constants: Mapping[str, Tensor]) -> None:
        weights.load_constants(self.model, constants)


def build_problem(config: DictConfig, model: nn.Module) -> TrainableProblem:
    """Build the problem that a config describes, around a model if its constructor takes one.

    Raises:
        UsageError: it refuses its options, or is no `TrainableProblem`.
    """
    options = config.copy()
    with open_dict(options):
        options["_partial_"] = True
    make = build(options, partial)
    if isinstance(loss := make.keywords.get("loss"), str) and "." in loss:
        make = partial(make, loss=find_function("problem.loss", loss))
    around = {"model": model} if "model" in inspect.signature(make.func).parameters else {}
    try:
        problem = make(**around)
    except TypeError as error:
        raise UsageError(
            f"problem._target_={config._target_}: {error}. Give what it takes."
        ) from error
    if not isinstance(problem, TrainableProblem):
        raise UsageError(
            f"problem._target_={config._target_}: expected a problem that derives from "
            "metalearn.problem.TrainableProblem. Derive it from that class."
        )
    return problem


def as_leaves(meta: Meta, device: torch.device) -> Meta:
    """Return the meta-parameters as leaves of autograd on a device; such leaves stay themselves."""
    leaves = [
        x if x.is_leaf and x.requires_grad and x.device == device else x.detach().to(device)
        for x in leaves_of(meta)
    ]
    return like_tree(meta, [x.requires_grad_() for x in leaves])


def build_optimiser(config: Any, params: Any) -> torch.optim.Optimizer:
    """Return the optimiser of `config` for `params`; raise as `build` does."""
    make = build(config, partial)
    for name, value in config.items():
        if isinstance(value, int | float) and not abs(value) <= MAX_FLOAT32:
            raise UsageError(f"optimiser.{name}={value}; expected a number up to {MAX_FLOAT32:.1e}")
    trial = torch.zeros(1, requires_grad=True)
    trial.grad = torch.zeros(1)
    try:
        make([trial]).step()  # much is refused here only, by assertions too
        optimiser = make(params)
    except Exception as error:  # the refusals of torch's optimisers share no class
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{config._target_} refuses optimiser.*: {reason}; give what it takes"
        ) from error
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise UsageError(
            f"optimiser._target_={config._target_}: expected a class of torch.optim. Give its name."
        )
    return optimiser
