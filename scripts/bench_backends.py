"""Time and memory of one meta-gradient, every way to differentiate, in one run side by side.

Strided Conv4-64 on random 28x28 images, 5-way 1-shot, 16 tasks. Rounds are interleaved; the median
and the ratio to the first row, taken round by round, are printed.
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from rich.console import Console
from rich.table import Table

from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.memory import format_bytes, peak_bytes
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch

ROUNDS = 5


def main() -> None:
    torch.manual_seed(0)
    model = Conv4(5)
    meta = dict(model.named_parameters())

    def half() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(16, 5, 1, 28, 28), torch.arange(5).repeat(16, 1)

    task = TaskBatch(*half(), *half())
    five, sixteen = GradientDescent(5, 0.1), GradientDescent(16, 0.1)
    ways: dict[str, tuple[FewShot, MetaGradient]] = {
        "MAML, 5 steps, higher": (FewShot(model), Unrolled(five, "higher")),
        "MAML, 5 steps, batched": (FewShot(model), Unrolled(five, "batched")),
        "first-order MAML, 5 steps": (FewShot(model), FirstOrder(five)),
        "iMAML, 16 steps, 5 CG": (FewShot(model, 2.0), Implicit(sixteen, CG(5, rtol=0.0))),
        "iMAML, Gauss-Newton": (
            FewShot(model, 2.0),
            Implicit(sixteen, CG(5, rtol=0.0), curvature="gauss_newton"),
        ),
    }
    peaks = {
        name: peak_bytes(lambda p=problem, g=gradient: g(p, meta, task), torch.device("cpu"))[1]
        for name, (problem, gradient) in ways.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (problem, gradient) in ways.items():
            began = time.perf_counter()
            gradient(problem, meta, task)
            times[name].append(time.perf_counter() - began)

    first = next(iter(ways))
    table = Table(title=f"one meta-gradient of 16 tasks, {torch.get_num_threads()} threads")
    for column in ("way", "s (median)", f"over {first}", "peak memory"):
        table.add_column(column)
    for name in ways:
        ratios = [a / b for a, b in zip(times[name], times[first], strict=True)]
        table.add_row(
            name,
            f"{statistics.median(times[name]):.3f}",
            f"{statistics.median(ratios):.2f}",
            format_bytes(peaks[name]),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
