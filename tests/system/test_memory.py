from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.profiler import ProfilerActivity, profile

from metalearn.system import memory
from metalearn.system.memory import format_bytes, peak_bytes

CPU = torch.device("cpu")
MB = 250_000  # float32 elements in 10^6 bytes


def peak(function: Callable[[], object], device: torch.device = CPU) -> int:
    return peak_bytes(function, device)[1]


def together() -> None:
    a, b = torch.empty(100 * MB), torch.empty(100 * MB)
    del a, b


def one_after_the_other() -> None:
    for _ in range(3):
        torch.empty(10 * MB)


def freed_inside() -> None:
    a = torch.empty(30 * MB)
    del a
    b, c = torch.empty(10 * MB), torch.empty(15 * MB)
    del b, c


def views() -> None:
    a = torch.empty(10 * MB)
    a.view(10, MB).T[2:].expand(4, -1, -1).detach()


def backward() -> None:
    x = torch.ones(MB, requires_grad=True)
    x.exp().sum().backward()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (together, 200_000_000),
        (one_after_the_other, 10_000_000),
        (freed_inside, 30_000_000),
        (views, 10_000_000),
        (lambda: None, 0),
    ],
)
def test_exact(function: Callable[[], object], expected: int) -> None:
    assert peak(function) == expected
    assert peak(function) == expected


def test_backward() -> None:
    # x, exp(x) and the gradient of x, and beside them the sum and its gradient: 4 bytes each.
    assert peak(backward) == peak(backward) == 3_000_008


class Nested(torch.autograd.Function):
    """A backward pass that runs another one inside it, `depth` deep; the innermost allocates."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, depth: int) -> torch.Tensor:
        ctx.depth = depth
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.depth == 0:
            torch.empty(10 * MB)
        else:
            with torch.enable_grad():
                y = Nested.apply(torch.zeros(1, requires_grad=True), ctx.depth - 1)
            y.backward()
        return grad, None


def test_backward_in_other_threads() -> None:
    # Autograd moves to a new thread once backward passes are 60 deep.
    def deep() -> None:
        Nested.apply(torch.zeros(1, requires_grad=True), 150).backward()

    first = peak(deep)
    assert 10_000_000 < first < 10_010_000
    assert peak(deep) == first


def test_many_events() -> None:
    def many() -> None:
        x = torch.zeros(10)
        for _ in range(51_000):
            x = torch.empty(10)
        del x

    assert peak(many) == 80  # the old one is let go after the new one is made


def descent(optimiser: type[torch.optim.Optimizer], graph: bool) -> Callable[[], object]:
    """Return 20 steps that keep a tensor of each, or their graphs too."""

    def take() -> list[torch.Tensor]:
        torch.manual_seed(0)
        w, kept = torch.zeros(300, requires_grad=True), []
        step = optimiser([w], lr=0.1)
        for i in range(20):
            loss = ((w - 1).exp() + w.sin() * torch.randn(300)).square().sum()
            (w.grad,) = torch.autograd.grad(loss, w, create_graph=graph)
            kept.append(w.grad if graph else torch.empty(10 * i))
            step.step()
        return kept[::2]

    return take


class StepInBackward(torch.autograd.Function):
    """A backward pass with steps of an optimiser inside it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            descent(Adam, graph=False)()
        return grad * 2


def step_in_backward() -> None:
    x = torch.ones(500, requires_grad=True)
    for _ in range(3):
        StepInBackward.apply(x.exp()).sum().backward()
        descent(SGD, graph=False)()


@pytest.mark.parametrize(
    "program",
    [
        backward,
        *(descent(kind, graph) for kind in (SGD, Adam) for graph in (False, True)),
        step_in_backward,
    ],
)
def test_windows_have_the_peak_of_one_record(program, monkeypatch):
    def one_record() -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            program()
        windows = memory._Windows()
        windows.read(record.profiler.kineto_results)
        return windows.peak

    program()  # makes what PyTorch keeps
    expected = one_record()
    found = []
    for steps in (1, 3, 1000):
        monkeypatch.setattr(memory, "STEPS_OF_A_WINDOW", steps)
        found.append(peak(program))
    assert found == [expected] * 3 and expected > 1000


def test_memory_from_before_the_call_is_not_counted() -> None:
    before = [torch.empty(50 * MB)]

    def release_then_allocate() -> None:
        before.clear()
        torch.empty(10 * MB)

    assert peak(release_then_allocate) == 10_000_000


def test_memory_from_an_earlier_measured_call_is_not_counted() -> None:
    kept: list[torch.Tensor] = []

    def replace() -> None:
        kept.clear()
        kept.append(torch.empty(10 * MB))
        torch.empty(MB)

    assert [peak(replace) for _ in range(3)] == [11_000_000] * 3


def test_result_and_errors() -> None:
    result, _ = peak_bytes(lambda: "result", CPU)
    assert result == "result"
    with pytest.raises(ZeroDivisionError):
        peak(lambda: 1 // 0)
    assert peak(views) == 10_000_000  # the profiler was put away
    with pytest.raises(ValueError, match="not on 'meta'"):
        peak(views, torch.device("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    device = torch.device("cuda")

    def both() -> None:
        a, b = torch.empty(10 * MB, device=device), torch.empty(10 * MB, device=device)
        del a, b

    before = torch.empty(5 * MB, device=device)
    assert 20_000_000 <= peak(both, device) <= 20_000_000 + 2 * 512
    del before


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (82_100_000, "82.1 MB"),
        (200_000_000, "200.0 MB"),
        (999_960_000, "1.0 GB"),
        (3_000_000_000_000_000, "3000.0 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_format_bytes(n: int, text: str) -> None:
    assert format_bytes(n) == text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
@pytest.mark.parametrize(
    ("before", "keep"), [("", True), ("memory.keep_freed_memory(False)", False), (None, False)]
)
def test_first_meta_gradient_keeps_freed_memory_unless_told_not_to(before, keep):
    code = f"""
import torch
from pathlib import Path
from metalearn import FewShot, FirstOrder, GradientDescent, TaskBatch
from metalearn.system import memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
{before or ""}
x, y = torch.randn(1, 4, 3), torch.tensor([[0, 0, 1, 1]])
problem = FewShot(torch.nn.Linear(3, 2))
FirstOrder(GradientDescent(1, 0.1))(problem, problem.begin(), TaskBatch(x, y, x, y))
large = torch.ones(50_000_000)
held = resident()
del large
print(held - resident() < 100_000_000)
"""
    environment = {k: v for k, v in os.environ.items() if k != memory.KEEP_MEMORY}
    if before is None:
        environment[memory.KEEP_MEMORY] = "0"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(keep)
