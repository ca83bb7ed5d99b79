"""The methods and networks of the memory study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.inner import GradientDescent, value_and_grad
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.nn import Conv4, ResNet12
from metalearn.problem import FewShot
from metalearn.studies.frame.metagrads import named_metagrad
from metalearn.system.memory import peak_bytes
from metalearn.tasks import TaskBatch
from metalearn.tree import detached

ONE_GRADIENT = "one inner gradient"

# The support loss is not convex. Where CG met negative curvature it would stop before the number of
# iterations whose time is asked for; with this lambda it does not.
PROX = 10.0
RATE = 0.01
PROBES = (1, 4)


@dataclass(frozen=True)
class Method:
    """
    Args:
        make: returns the meta-gradient with the given number of inner steps.
        grows: it keeps every step's graph, so that its peak is predicted before it is run.
        same_as: the method whose gradient it must equal, run beside it.
        everywhere: measured at all sizes, not only on the first network with few steps and 1 task.
    """

    make: Callable[[int], MetaGradient]
    grows: bool = False
    same_as: str | None = None
    everywhere: bool = False


def _implicit(iterations: int, **options: Any) -> Callable[[int], MetaGradient]:
    return lambda steps: Implicit(_descent(steps), CG(iterations, rtol=0.0), **options)


def _descent(steps: int) -> GradientDescent:
    return GradientDescent(steps, RATE)


METHODS: dict[str, Method] = {
    "unrolled, higher": Method(
        lambda steps: Unrolled(_descent(steps), "higher"), grows=True, everywhere=True
    ),
    "unrolled, batched": Method(
        lambda steps: Unrolled(_descent(steps), "batched"), grows=True, everywhere=True
    ),
    "checkpointed": Method(
        lambda steps: Unrolled(_descent(steps), "batched", checkpoint="sqrt"),
        same_as="unrolled, batched",
        everywhere=True,
    ),
    "mixed mode": Method(
        lambda steps: Unrolled(_descent(steps), "batched", mode="mixed"),
        same_as="unrolled, batched",
        everywhere=True,
    ),
    "truncated to 4": Method(lambda steps: Unrolled(_descent(steps), "batched", truncate=4)),
    "first-order": Method(lambda steps: FirstOrder(_descent(steps))),
    "implicit, 1 CG": Method(_implicit(1)),
    "implicit, 5 CG": Method(_implicit(5), everywhere=True),
    "implicit, 10 CG": Method(_implicit(10)),
    "implicit, 5 CG, recomputed": Method(
        _implicit(5, linearisation="recomputed"), same_as="implicit, 5 CG", everywhere=True
    ),
    "Gauss-Newton, 1 CG": Method(_implicit(1, curvature="gauss_newton")),
    "Gauss-Newton, 5 CG": Method(_implicit(5, curvature="gauss_newton")),
    "Gauss-Newton, 10 CG": Method(_implicit(10, curvature="gauss_newton")),
    "Gauss-Newton, 5 CG, recomputed": Method(
        _implicit(5, curvature="gauss_newton", linearisation="recomputed"),
        same_as="Gauss-Newton, 5 CG",
    ),
}


REPORTED = ("unrolled, batched", "implicit, 5 CG", "implicit, 5 CG, recomputed")
"""The methods that the report compares the others with."""


def find_method(name: str) -> Method:
    """Return the method of `METHODS`, or a further meta-gradient by its name (`named_metagrad`)."""
    if name in METHODS:
        return METHODS[name]
    return Method(lambda steps: named_metagrad(name, _descent(steps)))


@dataclass(frozen=True)
class Network:
    """A model, and the tasks that it is given: 28x28 images, as many queries as shots."""

    title: str
    model: Callable[[], nn.Module]
    ways: int
    shots: int


NETWORKS: dict[str, Network] = {
    "conv4": Network("Conv4-64, 20-way 5-shot", lambda: Conv4(20), 20, 5),
    "resnet12": Network(
        "ResNet-12 of half width, 5-way 1-shot",
        lambda: ResNet12(5, in_channels=1, widths=(32, 80, 160, 320)),
        5,
        1,
    ),
    "conv4_pooled": Network(
        "max-pooled Conv4-64, 20-way 5-shot", lambda: Conv4(20, strided=False), 20, 5
    ),
    "small": Network("Conv4-16, 5-way 5-shot", lambda: Conv4(5, channels=16), 5, 5),
}


def work(network: str, tasks: int, device: torch.device, method: str, steps: int) -> Any:
    """The measurement as a call without arguments, all that it starts from allocated."""
    problem, meta, batch = setting(network, tasks, device)
    if method != ONE_GRADIENT:
        metagrad = find_method(method).make(steps)
        return lambda: metagrad(problem, meta, batch)
    constant = detached(meta)
    params = {name: p.clone() for name, p in problem.init(constant, batch).items()}
    return lambda: value_and_grad(lambda p: problem.inner_objective(p, constant, batch), params)


@lru_cache(maxsize=1)
def setting(
    network: str, tasks: int, device: torch.device, prox: float = PROX
) -> tuple[FewShot, dict[str, Tensor], TaskBatch]:
    """A problem, its meta-parameters and tasks of random images: neither memory nor time depends on
    what is seen."""
    torch.manual_seed(0)
    how = NETWORKS[network]
    model = how.model()
    n = how.ways * how.shots
    labels = torch.arange(how.ways).repeat_interleave(how.shots).repeat(tasks, 1)
    support, query = torch.rand(2, tasks, n, 1, 28, 28)
    batch = TaskBatch(support, labels, query, labels).to(device)
    model.to(device)
    return FewShot(model, prox), dict(model.named_parameters()), batch


def parameter_bytes(network: str, tasks: int, device: torch.device) -> int:
    """Return the bytes of the adapted parameters of all tasks, or of one vector of a solve."""
    _, meta, _ = setting(network, tasks, device)
    return tasks * sum(p.numel() * p.element_size() for p in meta.values())


def expected_peak(network: str, tasks: int, device: torch.device, method: str, steps: int) -> float:
    """Bytes, on the line through the peaks of few inner steps; 0 where nothing grows."""
    if method == ONE_GRADIENT or not find_method(method).grows or steps <= max(PROBES):
        return 0.0
    slope, intercept = _line(network, tasks, device, method)
    return intercept + slope * steps


@cache
def _line(network: str, tasks: int, device: torch.device, method: str) -> tuple[float, float]:
    peaks = [peak_bytes(work(network, tasks, device, method, steps), device)[1] for steps in PROBES]
    slope, intercept = np.polyfit(PROBES, peaks, 1)
    return float(slope), float(intercept)
