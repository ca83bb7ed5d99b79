"""A competitor in a process of its own."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from metalearn.studies.frame.own_process import own_process
from metalearn.studies.frame.timing import clocked
from metalearn.studies.speed.competitors import COMPETITORS
from metalearn.studies.speed.floor import count_operations
from metalearn.studies.speed.workloads import Gradient, Workload, setting
from metalearn.system.memory import keep_freed_memory, peak_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """The measurements of a competitor besides its speed.

    Args:
        gradient: the meta-gradient of the workload.
        smooth_gradient: the meta-gradient of `workload.smooth()`.
        task_gradients: the gradient of each task, computed in a batch of copies of that task.
        operations: the operations of the whole batch, by `torch.utils.flop_counter`.
    """

    gradient: list[np.ndarray]
    smooth_gradient: list[np.ndarray]
    task_gradients: list[list[np.ndarray]]
    peak_bytes: int
    operations: int


def full_precision() -> None:
    """Make a GPU multiply in float32 instead of TF32, since errors are compared with float64."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class Contender:
    """One competitor, prepared in the calling process.

    Args:
        name: the name of the competitor in `COMPETITORS[workload.method]`.
        keep_memory: makes the process keep the memory it frees, as `metalearn train` does.
    """

    def __init__(
        self, name: str, workload: Workload, device: torch.device, keep_memory: bool
    ) -> None:
        keep_freed_memory(keep_memory)
        full_precision()
        competitor = COMPETITORS[workload.method][name]
        self._all_at_once = competitor.in_flight == "all"
        self._workload, self._device = workload, device
        self._make = competitor.prepare(setting(workload, device))
        self._run = self._make(setting(workload, device))
        self.seconds = clocked(self._run, device)

    def facts(self, copies: int) -> Facts:
        """Measure the facts.

        Args:
            copies: the most copies of a task in the batch that gives the gradient of that task.
                0 leaves the gradients of tasks out.
        """
        start = setting(self._workload, self._device)
        same = min(copies, self._workload.tasks if self._all_at_once else 1)
        alone = [start.filled(t, same) for t in range(self._workload.tasks if copies else 0)]
        return Facts(
            gradient=_on_cpu(self._run()),
            smooth_gradient=_on_cpu(self._make(setting(self._workload.smooth(), self._device))()),
            task_gradients=[_on_cpu(self._make(batch)()) for batch in alone],
            peak_bytes=peak_bytes(self._run, self._device)[1],
            operations=self._workload.tasks * count_operations(self._make(start.of(0))),
        )


class Failed(Exception):
    """The error of a competitor that cannot be timed. `reason` begins with a verb."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name, self.reason = name, reason


class Worker:
    """A `Contender` in a process of its own, whose state does not affect the others.

    Every call raises `Failed` if the competitor raises or its process ends.

    Args:
        threads: the threads of PyTorch in the process.
        contender: the arguments of `Contender`.
    """

    def __init__(self, threads: int, *contender: Any) -> None:
        self.name: str = contender[0]
        self._pool = own_process(__name__)
        try:
            self._result(_begin, threads, contender)
        except Failed:
            self.close()
            raise

    def facts(self, copies: int) -> Facts:
        return self._result(_facts, copies)

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of one meta-gradient: on the wall, and of the process on all cores."""
        return self._result(_seconds)

    def close(self) -> None:
        self._pool.shutdown()

    def _result(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return self._pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            reason = "had its process ended, as happens where memory runs out"
            raise Failed(self.name, reason) from error
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:200]
            raise Failed(self.name, f"failed ({type(error).__name__}: {first})") from error


_contenders: list[Contender] = []
"""The one contender of a worker's process."""


def _begin(threads: int, contender: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")  # deprecations of torch that peers use
    torch.set_num_threads(threads)
    _contenders.append(Contender(*contender))
    gc.freeze()  # no collection needs to scan these objects again


def _facts(copies: int) -> Facts:
    return _contenders[0].facts(copies)


def _seconds() -> tuple[float, float]:
    return _contenders[0].seconds()


def _on_cpu(gradient: Gradient) -> list[np.ndarray]:
    return [g.detach().cpu().numpy() for g in gradient]
