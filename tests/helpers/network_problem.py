"""A small network with a learned decay as a stochastic problem, in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from metalearn.bilevel import Descent, FixedBatches, Method

SGD = partial(torch.optim.SGD, lr=0.1)


class NetworkProblem:
    """Classification of 4 classes from 6 features, by a network with dropout if asked for."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)]
        self.model = nn.Sequential(*layers)
        x = torch.randn(48, 6, generator=generator)
        y = (x @ torch.randn(6, 4, generator=generator)).argmax(1)
        self.train, self.validation = TensorDataset(x[:32], y[:32]), TensorDataset(x[32:], y[32:])

    def begin(self) -> dict[str, Tensor]:
        return {"decay": torch.tensor(-3.0), "scale": torch.zeros(4)}

    def init(self, meta: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def inner_loss(self, params: dict[str, Tensor], meta: dict[str, Tensor], batch: Any) -> Tensor:
        x, y = batch
        logits = functional_call(self.model, params, (x,)) * meta["scale"].exp()
        decay = sum(p.square().sum() for p in params.values()) / 2
        return F.cross_entropy(logits, y) + meta["decay"].exp() * decay

    def outer_loss(self, params: dict[str, Tensor], meta: dict[str, Tensor], batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(functional_call(self.model, params, (x,)), y)


def loaders(problem: NetworkProblem, fixed: bool = False) -> tuple[DataLoader, DataLoader]:
    """Loaders of 8 examples, whose order is that of torch's random state."""
    if not fixed:
        return (
            DataLoader(problem.train, 8, shuffle=True),
            DataLoader(problem.validation, 8, shuffle=True),
        )
    found = (problem.train, problem.validation)
    return tuple(DataLoader(d, batch_sampler=FixedBatches(len(d), 8)) for d in found)


def descent(method: Method, dropout: float = 0.0, fixed: bool = False, **options: Any) -> Descent:
    problem = NetworkProblem(dropout)
    inner = options.pop("inner_optimiser", partial(SGD, momentum=0.9))
    outer = options.pop("outer_optimiser", partial(torch.optim.Adam, lr=0.01))
    pair = loaders(problem, fixed)
    return Descent(problem, method, problem.begin(), *pair, inner, outer, **options)
