"""From a config to the objects of a run: tasks, model, problem and meta-gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metalearn.errors import UsageError
from metalearn.memory import keep_freed_memory
from metalearn.metagrad import MetaGradient
from metalearn.problem import FewShot
from metalearn.tasks import Tasks


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
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = _device(config.device)
        torch.manual_seed(config.seed)
        model = build(config.model).to(device)
        problem = FewShot(model, config.prox, config.transductive)
        return cls(model, problem, build(config.metagrad), build(config.tasks), device)

    @property
    def meta(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters())


def build(config: Any) -> Any:
    """Calls the config's `_target_`; a constructor's refusal becomes a user's error."""
    try:
        return hydra.utils.instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, UsageError) and cause.__cause__:
            cause = cause.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        target = config.get("_target_", "the config")
        raise UsageError(f"{target} cannot be built: {cause or error}") from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name!r} is unknown; expected 'cpu' or 'cuda'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={name!r}, but this machine has no CUDA device; use device=cpu")
    return device
