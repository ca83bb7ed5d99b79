"""Modules of many kinds, each with the shape of one of its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

WITHOUT = {"track_running_stats": False}


class Softmaxed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Normalised(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x).flatten(1)
        return F.normalize(x)


class Squashed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).cumsum(1)


class Scaled(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


class Chain(nn.Module):
    """A declared module with the containers of torch, which are entered."""

    task_batchable = True

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)])
        self.by_name = nn.ModuleDict({"squash": nn.Tanh()})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.by_name["squash"](layer(x))
        return x


class Mixing(Chain):
    """A subclass that does not declare its own forward, which mixes the examples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(0)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell = kind(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(x)
        return y[0] if isinstance(y, tuple) else y


class First(nn.Module):
    def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0][:, -1]


class Branching(nn.Module):
    """A module that `vmap` cannot map: a branch on a value, and an attribute that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(4, 3), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.last = y
        return y if y.sum() > 0 else 2 * y


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - self.shift)


def hooked(kind: str, hook: Callable, **options: bool) -> nn.Module:
    layer = nn.Linear(4, 3)
    getattr(layer, f"register_{kind}")(hook, **options)
    return nn.Sequential(nn.Linear(4, 4), layer, nn.ReLU())


def own_forward() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.forward = lambda x: F.linear(x, layer.weight).tanh()  # type: ignore[method-assign]
    return nn.Sequential(layer)


def weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))


def pruned() -> nn.Module:
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", 0.5)
    return nn.Sequential(layer, nn.ReLU())


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True).eval()


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sequential with a forward": (lambda: Softmaxed(nn.Linear(4, 3)), (4,)),
    "list with a forward": (lambda: Normalised([nn.Linear(4, 3)]), (4,)),
    "linear with a forward": (lambda: nn.Sequential(Squashed(4, 3)), (4,)),
    "own parameter": (lambda: Scaled(nn.Linear(4, 3)), (4,)),
    "containers": (Chain, (4,)),
    "forward not declared": (Mixing, (4,)),
    "hook": (lambda: hooked("forward_hook", lambda m, x, y: 2 * y), (4,)),
    "hook that reads": (lambda: hooked("forward_hook", lambda m, x, y: y * y.max().item()), (4,)),
    "pre-hook": (lambda: hooked("forward_pre_hook", lambda m, x: (x[0] + 1,)), (4,)),
    "kwargs hook": (
        lambda: hooked(
            "forward_pre_hook", lambda m, x, k: ((x[0].softmax(0),), k), with_kwargs=True
        ),
        (4,),
    ),
    "backward hook": (lambda: hooked("full_backward_hook", lambda m, g, h: (2 * g[0],)), (4,)),
    "backward pre-hook": (
        lambda: hooked("full_backward_pre_hook", lambda m, g: (3 * g[0],)),
        (4,),
    ),
    "instance's forward": (own_forward, (4,)),
    "weight norm, hook": (weight_norm, (4,)),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))), (4,)),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3))).eval(),
        (4,),
    ),
    "pruned": (pruned, (4,)),
    "LSTM": (lambda: nn.Sequential(nn.LSTM(4, 3, batch_first=True), First()), (2, 4)),
    "GRU": (lambda: nn.Sequential(nn.GRU(4, 3, batch_first=True), First()), (2, 4)),
    "LSTM cell": (lambda: Recurrent(nn.LSTMCell), (4,)),
    "GRU cell": (lambda: Recurrent(nn.GRUCell), (4,)),
    "attention": (encoder, (2, 4)),
    "branch on a value": (Branching, (4,)),
    "constant buffer": (Shifted, (4,)),
    "running averages": (lambda: nn.Sequential(nn.BatchNorm1d(4)).eval(), (4,)),
    "batch norm of volumes": (lambda: nn.Sequential(nn.BatchNorm3d(2, **WITHOUT)), (2, 2, 2, 2)),
}
