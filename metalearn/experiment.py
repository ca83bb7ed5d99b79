"""From a config to the objects of a run: tasks, model, problem and meta-gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metalearn.errors import UsageError
from metalearn.machine import find_device, use_threads
from metalearn.memory import keep_freed_memory
from metalearn.metagrad import MetaGradient
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch, Tasks

BUILT_FROM = ("metalearn.", "torch.")


@dataclass(frozen=True)
class Experiment:
    """What training and evaluation share."""

    model: nn.Module
    problem: FewShot
    metagrad: MetaGradient
    tasks: Tasks
    device: torch.device

    @classmethod
    def of(cls, config: DictConfig | Mapping[str, Any]) -> Experiment:
        """Builds the run that a config describes; the model's weights follow `config.seed`.

        Sets what holds for the whole process: threads, and that freed memory is kept.

        Raises:
            UsageError: a constructor refuses a value, or the device is not there.
        """
        config = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        keep_freed_memory()
        use_threads(config.threads)
        device = find_device(config.device)
        torch.manual_seed(config.seed)
        model = build(config.model).to(device)
        problem = FewShot(model, config.prox, config.transductive)
        return cls(model, problem, build(config.metagrad), build(config.tasks), device)

    @property
    def meta(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters())

    def load(self, meta: Mapping[str, torch.Tensor]) -> None:
        """Copies a checkpoint's meta-parameters into the model.

        Raises:
            UsageError: they are another model's.
        """
        own = {name: p.shape for name, p in self.meta.items()}
        if {name: value.shape for name, value in meta.items()} != own:
            raise UsageError(
                "the checkpoint's weights do not fit the model of its config; train it again"
            )
        with torch.no_grad():
            for name, value in meta.items():
                self.meta[name].copy_(value)

    @torch.no_grad()
    def check(self, task: TaskBatch) -> None:
        """Tries the model on a task.

        Raises:
            UsageError: it cannot take the inputs, or its outputs are none for the targets.
        """
        x, y = task.support_x, task.support_y
        try:
            shape = tuple(self.problem.model(self.problem.init(self.meta, task), x).shape[2:])
        except (RuntimeError, ValueError) as error:
            values = x[0, 0].numel()
            raise UsageError(
                f"the model cannot take the tasks' inputs, {values} values of shape "
                f"{tuple(x.shape[2:])}; choose model= for them, or sizes that begin with {values}"
            ) from error
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


def build(config: Any) -> Any:
    """Calls the config's `_target_`; a constructor's refusal becomes a user's error.

    Nothing but classes and functions of `BUILT_FROM` is called, wherever the config comes from.
    """
    for target in _targets(config):
        if not str(target).startswith(BUILT_FROM):
            raise UsageError(f"_target_={target}; expected a name in metalearn or torch")
    try:
        return hydra.utils.instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, UsageError) and cause.__cause__:
            cause = cause.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        target = config.get("_target_", "the config")
        reason = " ".join(str(cause or error).split())
        raise UsageError(f"{target} cannot be built: {reason}") from error


def build_optimiser(config: Any, params: Any) -> torch.optim.Optimizer:
    """The optimiser of `config` for `params`; raises as `build` does."""
    make = build(config)
    trial = torch.zeros(1, requires_grad=True)
    trial.grad = torch.zeros(1)
    try:
        make([trial]).step()  # a rate that no float holds is refused here only
        optimiser: torch.optim.Optimizer = make(params)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{config._target_} refuses optimiser.*: {reason}; give what it takes"
        ) from error
    return optimiser


def _targets(config: Any) -> Iterator[Any]:
    for key, value in config.items():
        if key == "_target_":
            yield value
        elif isinstance(value, Mapping | DictConfig):
            yield from _targets(value)
