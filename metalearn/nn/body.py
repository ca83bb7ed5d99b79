"""The body of a classifier whose parameters all tasks share: features in one dense pass."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.nn.head import SymmetricHead
from metalearn.nn.task_batched import TaskBatched

Statistics = Literal["task", "population"]


def can_split(model: nn.Module) -> bool:
    """Return True if `body_and_head` can split the model."""
    return isinstance(model, nn.Sequential) and _head_at(model) > 0


def body_and_head(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a model into its body, and its last layer that has parameters with all after it.

    Both keep the layers' names, so that parameters are called as in the model.

    Raises:
        UsageError: the model is not a sequence in which a layer comes before its head.
    """
    if not isinstance(model, nn.Sequential) or _head_at(model) == 0:
        raise UsageError(
            f"model={type(model).__name__}: expected an nn.Sequential of a body and a head. "
            "Put the layers in one, the head last."
        )
    layers, at = list(model.named_children()), _head_at(model)
    return nn.Sequential(OrderedDict(layers[:at])), nn.Sequential(OrderedDict(layers[at:]))


def _head_at(model: nn.Sequential) -> int:
    """Return the index of the head; 0 if there is none."""
    heads = [
        i
        for i, layer in enumerate(model)
        if isinstance(layer, SymmetricHead) or any(True for _ in layer.parameters())
    ]
    return max(heads, default=0)


class Body:
    """A module whose parameters all tasks share, run once for all images of a meta-batch.

    Args:
        module: maps (n, ...) to (n, features); its batch norms keep no running averages.
        statistics: the statistics that its batch norms normalise by:
            - "task": those of each set of images that a task shows together, as where every task
              has parameters of its own.
            - "population": those of all images in training, and of the training classes in
              evaluation. A prediction then depends on no other image.

    For "population", `settled` measures the statistics of a fixed sample with the current
    parameters (Wu & Johnson 2021, "precise" batch norm). Nothing has to be averaged over the
    training.
    """

    def __init__(self, module: nn.Module, statistics: Statistics = "task") -> None:
        if statistics not in ("task", "population"):
            raise UsageError(
                f"statistics={statistics!r}: expected 'task' or 'population'. Choose one of them."
            )
        self.statistics = statistics
        self._by_task = TaskBatched(module)
        self._module = copy.deepcopy(module)

    def __call__(
        self, params: Mapping[str, Tensor], support: Tensor, query: Tensor, transductive: bool
    ) -> Tensor:
        """Return the features of (T, n, ...) support and (T, m, ...) query images: (T, n + m, F).

        `transductive` concerns "task" statistics. True: each set is normalised by its own
        statistics. False: the queries are normalised by those of the support set.
        """
        if self.statistics == "population":
            return self._together(params, torch.cat([support, query], dim=1))
        shared = {name: p[None] for name, p in params.items()}
        if not transductive:
            images = torch.cat([support, query], dim=1)
            return self._by_task(shared, images, statistics_from=support.shape[1])
        sets = [images for images in (support, query) if images.shape[1]]
        return torch.cat([self._by_task(shared, images) for images in sets], dim=1)

    def _together(self, params: Mapping[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = torch.func.functional_call(
            self._module, dict(params), (images.flatten(0, 1),)
        )
        return features.unflatten(0, images.shape[:2])

    @torch.no_grad()
    def settled(self, params: Mapping[str, Tensor], images: Tensor) -> Body:
        """Return this body for evaluation, with the batch norm statistics of (n, ...) images.

        Each layer takes the mean and variance over all images, from inputs that are normalised in
        the same way.
        """
        module = copy.deepcopy(self._module)
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.track_running_stats, norm.momentum = True, None
                norm.running_mean = images.new_zeros(norm.num_features)
                norm.running_var = images.new_ones(norm.num_features)
                norm.num_batches_tracked = torch.tensor(0, device=images.device)
        torch.func.functional_call(module.train(), dict(params), (images,))
        body = copy.copy(self)
        body._module = module.eval()
        return body

    def by_task(self) -> Body:
        """Return this body with "task" statistics."""
        body = copy.copy(self)
        body.statistics = "task"
        return body
