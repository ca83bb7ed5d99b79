"""The body of a classifier whose parameters all tasks share: features in one dense pass."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.nn.functions import TaskFunctions
from metalearn.nn.head import SymmetricHead
from metalearn.nn.precision import Precision, reduced, widened
from metalearn.nn.structure import is_chain
from metalearn.nn.task_batched import TaskBatched

Statistics = Literal["task", "population"]


def can_split(model: nn.Module) -> bool:
    """Return True if `body_and_head` can split the model."""
    return _head_at(model) > 0


def body_and_head(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a model into its body, and its last layer that has parameters with all after it.

    Both keep the layers' names, so that parameters are called as in the model.

    Raises:
        UsageError: the model is not a sequence in which a layer comes before its head.
    """
    at = _head_at(model)
    if at == 0:
        raise UsageError(
            f"model={type(model).__name__}: expected an nn.Sequential of a body and a head. "
            "Put the layers in one, the head last: a linear layer, or a layer of your own."
        )
    layers = list(model.named_children())
    return nn.Sequential(OrderedDict(layers[:at])), nn.Sequential(OrderedDict(layers[at:]))


def head_layer(model: nn.Module) -> str:
    """Return the prefix of the names of the head's parameters, such as "13.".

    The head is the last layer with parameters of a chain of layers (`nn.Sequential`, nested or
    not), where that layer is linear, a `SymmetricHead`, or one of the user's own without children.

    Raises:
        UsageError: the model is no such chain, whose registered order need not be that of its
            calls, or ends in another layer.
    """
    name, layer = _last_layer(model)
    if not _is_head(layer):
        raise UsageError(
            f"adapt='head' or prox_head with model={type(model).__name__}: expected a chain of "
            "layers (nn.Sequential) that ends in a linear layer, which is its head, and not in "
            f"{type(layer).__name__}. Give adapt= a list of parameters' names, and no prox_head."
        )
    return f"{name}." if name else ""


def _last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the last layer with parameters, and its name, which is empty for the model itself."""
    path, layer = [], model
    while is_chain(layer):
        with_parameters = [
            (name, child)
            for name, child in layer.named_children()
            if isinstance(child, SymmetricHead) or any(True for _ in child.parameters())
        ]
        if not with_parameters:
            break
        name, layer = with_parameters[-1]
        path.append(name)
    return ".".join(path), layer


def _is_head(layer: nn.Module) -> bool:
    linear = SymmetricHead, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
    own = not type(layer).__module__.startswith("torch.") and not layer._modules
    return isinstance(layer, linear) or (own and not isinstance(layer, nn.Sequential))


def _head_at(model: nn.Module) -> int:
    """Return the index of the head among the model's children; 0 if it cannot be split."""
    name, layer = _last_layer(model)
    first = name.partition(".")[0]
    whole = model.get_submodule(first)
    if not name or not _is_head(layer) or len([*whole.parameters()]) > len([*layer.parameters()]):
        return 0
    return [own for own, _ in model.named_children()].index(first)


class Body:
    """A module whose parameters all tasks share, run once for all images of a meta-batch.

    Args:
        module: maps (n, ...) to (n, features); its batch norms keep no running averages.
        statistics: the statistics that its batch norms normalise by:
            - "task": those of each set of images that a task shows together, as where every task
              has parameters of its own.
            - "population": those of all images in training, and of the training classes in
              evaluation. A prediction then depends on no other image.
        precision: as in `TaskBatched`. Batch norm by "population" statistics takes bfloat16 in.

    The module runs in its own training mode, as its flags are at each call. Frozen parameters, of
    `requires_grad=False`, are not in `params`: the module's own serve.

    For "population", `settled` measures the statistics of a fixed sample with the current
    parameters (Wu & Johnson 2021, "precise" batch norm). Nothing has to be averaged over the
    training.
    """

    def __init__(
        self,
        module: nn.Module,
        statistics: Statistics = "task",
        precision: Precision = "full",
    ) -> None:
        if statistics not in ("task", "population"):
            raise UsageError(
                f"statistics={statistics!r}: expected 'task' or 'population'. Choose one of them."
            )
        self.statistics = statistics
        self._by_task, self._precision = TaskBatched(module, precision), precision
        self._module, self._settled = module, False

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
        together = images.flatten(0, 1)
        functions = TaskFunctions(len(together), statistics_from=0 if self._settled else None)
        with functions, reduced(self._precision, images.device):
            features = torch.func.functional_call(self._module, dict(params), (together,))
        found: Tensor = widened(features)
        return found.unflatten(0, images.shape[:2])

    @torch.no_grad()
    def settled(self, params: Mapping[str, Tensor], images: Tensor) -> Body:
        """Return this body for evaluation, with the batch norm statistics of (n, ...) images.

        Each batch norm without running averages takes the mean and variance over all images, from
        inputs that are normalised in the same way. Dropout is off, here and in evaluation.
        """
        module = copy.deepcopy(self._module).eval()
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not norm.track_running_stats:
                norm.track_running_stats, norm.momentum = True, None
                norm.running_mean = images.new_zeros(norm.num_features)
                norm.running_var = images.new_ones(norm.num_features)
                norm.num_batches_tracked = torch.tensor(0, device=images.device)
                norm.train()
        with reduced(self._precision, images.device):
            torch.func.functional_call(module, dict(params), (images,))
        body = copy.copy(self)
        body._module, body._settled = module.eval(), True
        return body

    def by_task(self) -> Body:
        """Return this body with "task" statistics."""
        body = copy.copy(self)
        body.statistics = "task"
        return body
