"""The layers whose parameters carry a task axis, each a module's twin in `TaskBatched`.

Inside a task-batched network activations are (n, T, ...): examples first, then tasks. A convolution
over T tasks is then one grouped convolution on (n, T * channels, ...). Folding the two axes is a
view, never a copy. Every layer below maps (n, T, ...) to (n, T, ...). Its parameters are (T, ...),
put there by `torch.func.functional_call`. Parameters of (1, ...) serve all tasks: their
convolutions and products are dense.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.nn.activation import leaky_relu
from metalearn.nn.convolution import Geometry, grouped_conv2d
from metalearn.nn.head import SymmetricHead
from metalearn.nn.normalisation import batch_norm
from metalearn.nn.pooling import Window, max_pool2d
from metalearn.tree import inverse, memory_order


class TaskLayer(nn.Module):
    """A module's twin that acts on (n, T, ...) with parameters of (T, ...), of the same names.

    The parameters registered here only reserve the names; calls bring their own.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(parameter.detach(), requires_grad=False))
        for name in ("weight", "bias"):
            if getattr(module, name, None) is None:
                self.register_parameter(name, None)


class TaskConv2d(TaskLayer):
    """A convolution with one grouped kernel for all tasks."""

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__(module)
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise UsageError(
                f"Conv2d(padding={module.padding!r}, padding_mode={module.padding_mode!r}) cannot "
                "be task-batched; give the padding as numbers, with padding_mode='zeros'"
            )
        self.stride, self.padding = module.stride, module.padding
        self.dilation, self.groups = module.dilation, module.groups

    def forward(self, x: Tensor) -> Tensor:
        tasks = x.shape[1]
        _check_inputs(x, 2, self.weight.shape[2] * self.groups, "channels")
        if len(self.weight) < tasks:
            geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)
            y = grouped_conv2d(_task_by_task(x), self.weight[0], geometry)
            if self.bias is not None and len(self.bias) == 1:
                y = y + self.bias.reshape(-1, 1, 1).to(y.dtype)
            y = _examples_first(y, tasks)
            if self.bias is not None and len(self.bias) > 1:
                y = y + self.bias[..., None, None].to(y.dtype)
            return y
        geometry = Geometry(self.stride, self.padding, self.dilation, tasks * self.groups)
        y = grouped_conv2d(x.flatten(1, 2), _folded(self.weight), geometry)
        if self.bias is not None:
            y = y + _per_channel(self.bias, x).view(-1, 1, 1).to(y.dtype)
        return y.unflatten(1, (tasks, -1))


def _check_inputs(x: Tensor, axis: int, expected: int, what: str) -> None:
    """Raise UsageError unless an axis of the inputs has the length that the weights expect."""
    if x.shape[axis] != expected:
        raise UsageError(
            f"inputs of {x.shape[axis]} {what}: expected {expected}, as in the layer's weights. "
            f"Give inputs of {expected}, or a model for {x.shape[axis]}."
        )


def _task_by_task(x: Tensor) -> Tensor:
    """Return (n, T, ...) as (T n, ...), a task's examples together.

    For a dense layer's result this is a view.
    """
    return x.transpose(0, 1).flatten(0, 1)


def _examples_first(x: Tensor, tasks: int) -> Tensor:
    """Return (T n, ...) as a view (n, T, ...)."""
    return x.unflatten(0, (tasks, -1)).transpose(0, 1)


def _folded(weight: Tensor) -> Tensor:
    """Return (T, o, c, h, w) as (T o, c, h, w), in its order in memory."""
    order = memory_order(weight[0], batched=True)
    rows = weight.permute(0, *(1 + axis for axis in order)).flatten(0, 1)
    return rows.permute(inverse(order))


class TaskLinear(TaskLayer):
    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        _check_inputs(x, -1, self.weight.shape[-1], "features")
        if len(self.weight) < shape[1]:
            shared = None if self.bias is None or len(self.bias) > 1 else self.bias[0]
            # In two dimensions: with more, torch's choice of product depends on requires_grad.
            rows = _task_by_task(x).flatten(0, -2)
            y = F.linear(rows, self.weight[0], shared)
            y = _examples_first(y.view(-1, *shape[2:-1], y.shape[-1]), shape[1])
            if self.bias is not None and shared is None:
                y = y + self.bias.view(shape[1], *[1] * (y.dim() - 3), -1).to(y.dtype)
            return y
        rows = x.transpose(0, 1).flatten(1, -2)
        y = torch.bmm(rows, self.weight.mT)
        if self.bias is not None:
            y = y + self.bias[:, None].to(y.dtype)
        return y.unflatten(1, (shape[0], *shape[2:-1])).transpose(0, 1)


class TaskSymmetricHead(TaskLinear):
    """A linear layer of as many classes as its weight has rows, (T, ways, features)."""

    log_scale: Tensor | None

    def __init__(self, module: SymmetricHead) -> None:
        super().__init__(module)
        for name in module.adapted:
            slot = nn.Parameter(getattr(module, name).detach(), requires_grad=False)
            self.register_parameter(name, slot)
        if module.log_scale is None:
            self.log_scale = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.log_scale is None else y * self.log_scale.exp()[:, None]


class TaskBatchNorm(TaskLayer):
    """The batch normalisation by the statistics of the current batch; no running averages.

    `statistics_from` is the number of leading examples that give the statistics (None: all). With
    the support set put first, this is the inductive evaluation: a query's prediction does not
    depend on the other queries.
    """

    statistics_from: int | None = None

    def __init__(self, module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__(module)
        self.eps = module.eps

    def forward(self, x: Tensor) -> Tensor:
        tasks, channels = x.shape[1:3]
        if (
            self.weight is not None
            and self.bias is not None
            and tasks > (max(len(self.weight), len(self.bias)))
        ):
            # A dense convolution's result lies task by task: no copy is made.
            each = [self._normalise(one, self.weight[0], self.bias[0]) for one in x.unbind(1)]
            return _examples_first(torch.cat(each), tasks)
        number = tasks * channels
        gain = x.new_ones(number) if self.weight is None else _per_channel(self.weight, x)
        shift = x.new_zeros(number) if self.bias is None else _per_channel(self.bias, x)
        return self._normalise(x.flatten(1, 2), gain, shift).unflatten(1, (tasks, channels))

    def _normalise(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Normalise x, (n, channels, ...), with gain and shift of (channels,)."""
        return batch_norm(x, gain, shift, self.eps, self.statistics_from)


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """Return (T, C), or (1, C) for all tasks, as the (T C,) channels of x, (n, T, C, ...)."""
    return parameter.expand(x.shape[1], -1).flatten()


class TaskGroupNorm(TaskLayer):
    def __init__(self, module: nn.GroupNorm) -> None:
        super().__init__(module)
        self.groups, self.eps = module.num_groups, module.eps

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else _per_channel(self.weight, x)
        bias = None if self.bias is None else _per_channel(self.bias, x)
        own = x if weight is None else x.to(weight.dtype)  # autocast narrows x alone
        y = F.group_norm(own.flatten(1, 2), x.shape[1] * self.groups, weight, bias, self.eps)
        return y.unflatten(1, x.shape[1:3]).to(x.dtype)


class TaskPool(TaskLayer):
    """A pooling layer, for which the tasks are further channels; it has no parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.pool = module

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


class TaskMaxPool(TaskLayer):
    def __init__(self, module: nn.MaxPool2d) -> None:
        super().__init__(module)
        if module.return_indices:
            raise UsageError(
                "MaxPool2d(return_indices=True) cannot be task-batched; set return_indices=False"
            )
        self.window = Window.of(module)

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x.flatten(1, 2), self.window).unflatten(1, x.shape[1:3])


class TaskFlatten(TaskLayer):
    def __init__(self, module: nn.Flatten) -> None:
        super().__init__(module)
        if (module.start_dim, module.end_dim) != (1, -1):
            raise UsageError(
                f"Flatten({module.start_dim}, {module.end_dim}) cannot be task-batched; "
                "use Flatten(1, -1)"
            )

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)


class TaskLeakyReLU(TaskLayer):
    def __init__(self, module: nn.ReLU | nn.LeakyReLU) -> None:
        super().__init__(module)
        self.slope = float(getattr(module, "negative_slope", 0.0))
        if self.slope < 0:
            raise UsageError(
                f"LeakyReLU(negative_slope={self.slope}) cannot be task-batched; expected a slope "
                "of at least 0"
            )

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x, self.slope)


class TaskElementwise(TaskLayer):
    """A module without parameters that acts on every element alone, used as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv2d: TaskConv2d,
    nn.Linear: TaskLinear,
    SymmetricHead: TaskSymmetricHead,
    nn.BatchNorm1d: TaskBatchNorm,
    nn.BatchNorm2d: TaskBatchNorm,
    nn.BatchNorm3d: TaskBatchNorm,
    nn.GroupNorm: TaskGroupNorm,
    nn.MaxPool2d: TaskMaxPool,
    nn.AvgPool2d: TaskPool,
    nn.AdaptiveAvgPool2d: TaskPool,
    nn.ZeroPad2d: TaskPool,
    nn.Flatten: TaskFlatten,
    nn.ReLU: TaskLeakyReLU,
    nn.LeakyReLU: TaskLeakyReLU,
    nn.GELU: TaskElementwise,
    nn.SiLU: TaskElementwise,
    nn.Sigmoid: TaskElementwise,
    nn.Softplus: TaskElementwise,
    nn.Tanh: TaskElementwise,
    nn.Identity: TaskElementwise,
}
