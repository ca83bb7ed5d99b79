"""Loops read no number from a tensor, for which a GPU's queue would have to end first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import few_shot

from metalearn.inner import Adam, GradientDescent, GradientMethod
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch


class Reads(TorchDispatchMode):
    """Count the numbers that Python reads from tensors."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def reads(run: Callable[[], object]) -> int:
    counted = Reads()

    def count(name: str) -> Callable[..., Any]:
        own = getattr(Tensor, name)

        def read(*args: Any, **options: Any) -> Any:
            counted.count += 1
            return own(*args, **options)

        return read

    with pytest.MonkeyPatch.context() as patch, counted:
        for name in ("tolist", "numpy"):  # they are no operations of PyTorch
            patch.setattr(Tensor, name, count(name))
        run()
    return counted.count


def test_reads_are_counted() -> None:
    x = torch.ones(3)
    assert reads(lambda: x.sum().item()) == 1
    assert reads(lambda: bool(x.any())) == 1
    assert reads(lambda: x.tolist()) == 1
    assert reads(lambda: x.numpy()) == 1


@pytest.mark.parametrize("make", [GradientDescent, Adam])
@pytest.mark.parametrize("method", ["unrolled", "first-order", "implicit"])
def test_inner_steps_read_no_number(method: str, make: type[GradientMethod]) -> None:
    def with_steps(steps: int) -> MetaGradient:
        inner = make(steps, 0.01)
        if method == "unrolled":
            return Unrolled(inner, "batched")
        return FirstOrder(inner) if method == "first-order" else Implicit(inner, CG(3, rtol=0.0))

    problem, meta, task = few_shot(regression=False, prox=1.0 if method == "implicit" else 0.0)
    many, few = (reads(lambda n=n: with_steps(n)(problem, meta, task)) for n in (12, 2))
    assert many == few


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cg_waits_for_the_gpu_at_every_eighth_iteration_alone() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = Conv4(5, channels=8).to(device)
    y = torch.arange(5, device=device).repeat(2, 1)
    x = torch.rand(2, 5, 1, 28, 28, device=device)
    problem, task = FewShot(model, prox=10.0), TaskBatch(x, y, x, y)

    def waits(iterations: int) -> int:
        method = Implicit(GradientDescent(2, 0.01), CG(iterations, rtol=0.0))
        method(problem, problem.begin(), task)  # lazy set-up waits too
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                method(problem, problem.begin(), task)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(w.message) for w in seen)

    assert waits(24) - waits(8) <= 2
