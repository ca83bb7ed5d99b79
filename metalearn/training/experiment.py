"""The objects of a run, built from its config: tasks, model, problem and meta-gradient."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from metalearn.config.build import build
from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.metagrad import MetaGradient
from metalearn.nn.body import body_and_head, can_split
from metalearn.problem import BilevelProblem, FewShot, Meta
from metalearn.problems import ConvexHead, WithBody
from metalearn.problems.learned import LearnedProx, LearnedRates
from metalearn.system.machine import find_device, use_threads
from metalearn.system.memory import keep_freed_memory
from metalearn.tasks import ImageTasks, TaskBatch, Tasks
from metalearn.training import checkpoint
from metalearn.tree import fixed, live, named_leaves

T = TypeVar("T")
STATISTICS_IMAGES = 1000
STATISTICS_SEED = 4000
"""The training images that a body's "population" statistics are measured on."""


@dataclass(frozen=True)
class Experiment:
    """The objects that training and evaluation share.

    Args:
        meta: what is learned, a pytree of leaves of autograd: the model's parameters by name, and
            what else the problem has in its meta.
    """

    model: nn.Module
    problem: BilevelProblem
    meta: Meta
    metagrad: MetaGradient
    tasks: Tasks
    device: torch.device

    @classmethod
    def of(cls, config: DictConfig | Mapping[str, Any]) -> Experiment:
        """Build the run that a config describes; `config.seed` draws the weights of the model.

        Sets what holds for the whole process: threads, and that freed memory is kept.

        Raises:
            UsageError: a constructor refuses a value, or the device is not there.
        """
        config = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        keep_freed_memory()
        use_threads(config.threads)
        device = find_device(config.device)
        torch.manual_seed(config.seed)
        model = build(config.model, nn.Module).to(device)
        if next(model.parameters(), None) is None:
            raise UsageError(
                f"model._target_={config.model._target_} has no parameters to learn; choose model= "
                "for one that has, such as model=mlp"
            )
        metagrad = build(config.metagrad, MetaGradient)
        problem, meta = few_shot_problem(model, config)
        tasks = build(config.tasks, Tasks)
        return cls(model, problem, meta, metagrad, tasks, device)

    def load(self, meta: Meta) -> None:
        """Copy the meta-parameters of a checkpoint into this run.

        Raises:
            UsageError: they are another model's.
        """
        own, given = named_leaves(self.meta), named_leaves(meta)
        if {k: x.shape for k, x in given.items()} != {k: x.shape for k, x in own.items()}:
            raise UsageError(
                "the checkpoint's weights do not fit the model of its config; train it again"
            )
        with torch.no_grad():
            for name, value in given.items():
                own[name].copy_(value)

    def start_from(self, word: str) -> None:
        """Copy the weights of the network from a checkpoint of any problem.

        Other meta-parameters, such as inner rates or a ridge penalty, keep their own start.

        Args:
            word: as `checkpoint.find` takes it.

        Raises:
            UsageError: there is no such checkpoint, or it is of another network.
        """
        path = checkpoint.find(word)
        meta = checkpoint.select_meta(checkpoint.load(path))
        given = {
            keys.rpartition("['")[2].removesuffix("']"): x for keys, x in named_leaves(meta).items()
        }
        with torch.no_grad():
            for name, own in self.model.named_parameters():
                if name not in given or given[name].shape != own.shape:
                    has = tuple(given[name].shape) if name in given else "missing"
                    raise UsageError(
                        f"init_from={word}: expected a network whose {name} has the shape "
                        f"{tuple(own.shape)}; there it is {has}. Give model= the same options."
                    )
            for name, own in self.model.named_parameters():
                own.copy_(given[name])

    def settled(self, problem: BilevelProblem, meta: Meta) -> BilevelProblem:
        """The problem as evaluation uses it: a body's "population" statistics are those of
        `STATISTICS_IMAGES` training images, the same ones whenever they are asked for.

        Raises:
            UsageError: the tasks are not of images in memory.
        """
        if not isinstance(problem, WithBody):
            return problem
        return problem.settled(meta, lambda: self._statistics_images)

    @functools.cached_property
    def _statistics_images(self) -> Tensor:
        if not isinstance(self.tasks, ImageTasks):
            raise UsageError(
                "statistics=population: expected tasks of images, not "
                f"{type(self.tasks).__name__}. Set statistics=task."
            )
        images = self.tasks.split("train").images
        g = torch.Generator().manual_seed(STATISTICS_SEED)
        chosen = torch.randperm(len(images), generator=g)[:STATISTICS_IMAGES]
        return images[chosen].to(self.device).float() / 255

    @staticmethod
    def _try(task: TaskBatch, run: Callable[[], T]) -> T:
        """Return the result of `run`; raise UsageError if the model refuses the inputs."""
        x = task.support_x
        try:
            return run()
        except (RuntimeError, ValueError) as error:
            values = x[0, 0].numel()
            raise UsageError(
                f"the model cannot take the tasks' inputs, {values} values of shape "
                f"{tuple(x.shape[2:])}; choose model= for them, or sizes that begin with {values}"
            ) from error

    @torch.no_grad()
    def check(self, task: TaskBatch) -> None:
        """Try the problem on a task.

        Raises:
            UsageError: it cannot take the inputs, or its outputs are none for the targets.
        """
        y = task.support_y
        if isinstance(self.problem, WithBody) and isinstance(self.problem.head, ConvexHead):
            if y.is_floating_point():
                raise UsageError(
                    "problem=: expected tasks of classes, and these are a regression's. Choose "
                    "other tasks=, or leave problem= out."
                )
            self._try(task, lambda: self.problem.init(fixed(self.meta), task))
            return
        # Only shapes matter here; a solved head needs some proximal strength.
        plain, meta = FewShot(self.model, prox=1.0), fixed(dict(self.model.named_parameters()))
        outputs = self._try(
            task, lambda: plain.query_predictions(plain.init(meta, task), meta, task)
        )
        shape = tuple(outputs.shape[2:])
        if y.is_floating_point():
            if shape != tuple(y.shape[2:]):
                raise UsageError(
                    f"the model's outputs are of shape {shape}, the targets of shape "
                    f"{tuple(y.shape[2:])}; choose model= for them, such as model=mlp_sinusoid"
                )
            return
        classes = int(y.max()) + 1
        if len(shape) != 1 or shape[0] < classes:
            raise UsageError(
                f"the model has outputs of shape {shape} and the tasks have {classes} classes; "
                f"give it an output a class (model.ways={classes}, or sizes that end in {classes})"
            )


def few_shot_problem(model: nn.Module, config: DictConfig) -> tuple[BilevelProblem, Meta]:
    """Return the problem that a config describes, and the start of its meta-parameters."""
    if not isinstance(config.get("prox"), int | float):
        raise UsageError(f"prox={config.get('prox')}; expected a number of at least 0")
    learned = config.get("learn_prox", False)
    if learned and not 0 < config.prox <= MAX_FLOAT32:
        raise UsageError(
            f"prox={config.prox}; learn_prox=true starts from it, so that it must be above 0, up "
            f"to {MAX_FLOAT32:.1e}"
        )
    if learned and config.get("prox_head") is not None:
        raise UsageError(
            f"prox_head={config.prox_head}: expected null beside learn_prox=true, which learns one "
            "strength for all parameters. Leave prox_head out."
        )
    problem: BilevelProblem
    adapt, rates = config.get("adapt", "all"), config.get("learn_rates", False)
    statistics = config.get("statistics", "task")
    head_alone = adapt == "head" and can_split(model) and not (learned or rates)
    shares_body = config.get("problem") is not None or head_alone
    if statistics != "task" and not shares_body:
        raise UsageError(
            f"statistics={statistics}: expected a body that all tasks share and nothing else that "
            "is learned. Set adapt=head or problem=ridge, without learn_prox and learn_rates."
        )
    if config.get("problem") is not None:
        if learned or rates or adapt != "all" or config.get("prox_head") is not None:
            raise UsageError(
                f"problem={config.problem._target_}: expected none of adapt, prox_head, learn_prox "
                "and learn_rates, which it does not have. Leave them out."
            )
        if config.prox:
            raise UsageError(
                f"prox={config.prox}: expected 0 with problem=, which learns its own penalty. "
                "Choose metagrad=implicit_closed_form (ridge) or implicit_newton, or prox=0."
            )
        body, _ = body_and_head(model)
        convex = build(config.problem, ConvexHead)
        problem = WithBody(body, convex, config.transductive, statistics)
        start = {name: p.to(next(body.parameters())).detach() for name, p in convex.meta().items()}
        return problem, {**dict(body.named_parameters()), **live(start)}
    prox, prox_head = (0.0, None) if learned else (config.prox, config.get("prox_head"))
    theta = dict(model.named_parameters())
    if shares_body:
        body, head = body_and_head(model)
        few_shot = FewShot(head, prox, prox_head=prox_head)
        return WithBody(body, few_shot, config.transductive, statistics), theta
    few_shot = FewShot(model, prox, config.transductive, adapt, prox_head)
    problem = few_shot
    meta: Meta = theta
    like = next(model.parameters()).detach()
    if learned:
        problem = LearnedProx(few_shot)
        log_prox = like.new_tensor(math.log(config.prox)).requires_grad_()
        meta = {"theta": meta, "log_prox": log_prox}
    if not isinstance(rates, bool) and rates != "layers":
        raise UsageError(
            f"learn_rates={rates}: expected true or false, or layers. "
            "Choose layers for a rate for each tensor and inner step."
        )
    if rates:
        by_step = rates == "layers"
        problem = LearnedRates(problem, by_step)
        steps = max(config.metagrad.inner.steps, 1)
        # A symmetric head's class vectors share their rates, as they share their start.
        shapes = theta | dict(model.named_buffers())
        log_rates = {
            name: like.new_zeros(steps if by_step else shapes[name].shape)
            for name in few_shot.adapted
        }
        meta = {"theta": meta, "log_rates": live(log_rates)}
    return problem, meta


def build_optimiser(config: Any, params: Any) -> torch.optim.Optimizer:
    """Return the optimiser of `config` for `params`; raise as `build` does."""
    make = build(config, functools.partial)
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
        raise UsageError(f"optimiser._target_={config._target_} is none; give one of torch.optim")
    return optimiser
