"""A competitor in a process of its own, as its users run it."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from metalearn.studies.frame.timing import clocked
from metalearn.studies.speed.competitors import COMPETITORS, parts_of
from metalearn.studies.speed.floor import counted
from metalearn.studies.speed.workloads import Gradient, Workload, setting
from metalearn.system.memory import keep_freed_memory, peak_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What is known of a competitor besides its speed.

    Args:
        gradient: its meta-gradient, `smooth_gradient` that of `workload.smooth()`.
        task_gradients: each task's own, made in a batch of that task over and over.
        parts: in which it takes the batch.
        operations: of the whole batch, as `torch.utils.flop_counter` counts them.
    """

    gradient: list[np.ndarray]
    smooth_gradient: list[np.ndarray]
    task_gradients: list[list[np.ndarray]]
    parts: int
    peak_bytes: int
    operations: int


def full_precision() -> None:
    """A GPU's products in float32, not TF32: for all alike, as errors are compared with float64."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class Contender:
    """One competitor, made ready in the process that calls it.

    Args:
        name: of the competitor, in `COMPETITORS[workload.method]`.
        keep_memory: the process keeps the memory it frees, as `metalearn train`'s does.
    """

    def __init__(
        self, name: str, workload: Workload, device: torch.device, keep_memory: bool
    ) -> None:
        if keep_memory:
            keep_freed_memory()
        full_precision()
        competitor = COMPETITORS[workload.method][name]
        self._all_at_once = competitor.in_flight == "all"
        self._workload, self._device = workload, device
        self._make = competitor.settled(setting(workload, device))
        self._run = self._make(setting(workload, device))
        self.seconds = clocked(self._run, device)

    def facts(self, copies: int) -> Facts:
        """`copies`: of a task in the batch that its own gradient is made in, if it takes so many at
        once; 0: no task's own is made."""
        start = setting(self._workload, self._device)
        same = min(copies, self._workload.tasks if self._all_at_once else 1)
        alone = [start.filled(t, same) for t in range(self._workload.tasks if copies else 0)]
        return Facts(
            gradient=_on_cpu(self._run()),
            smooth_gradient=_on_cpu(self._make(setting(self._workload.smooth(), self._device))()),
            task_gradients=[_on_cpu(self._make(batch)()) for batch in alone],
            parts=parts_of(self._run),
            peak_bytes=peak_bytes(self._run, self._device)[1],
            operations=self._workload.tasks * counted(self._make(start.of(0))),
        )


class Failed(Exception):
    """The competitor of that name cannot be timed; `reason`, which begins with a verb, says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name, self.reason = name, reason


class Worker:
    """A `Contender` in a process of its own: what that keeps, others neither gain nor suffer by.

    Args:
        threads: of PyTorch there.
        contender: `Contender`'s arguments.

    Every call raises `Failed` where the competitor does or its process is ended.
    """

    def __init__(self, threads: int, *contender: Any) -> None:
        # Forked by a server that has imported torch and started no thread: neither a fork of this
        # process, whose threads would be missing, nor seconds of imports for each.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.name: str = contender[0]
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        try:
            self._result(_begin, threads, contender)
        except Failed:
            self.close()
            raise

    def facts(self, copies: int) -> Facts:
        return self._result(_facts, copies)

    def seconds(self) -> tuple[float, float]:
        """Of one meta-gradient: on the wall, and of its process on all cores."""
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
"""In a worker's process: the one that it is for."""


def _begin(threads: int, contender: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")  # peers' own, of what torch deprecates
    torch.set_num_threads(threads)
    _contenders.append(Contender(*contender))
    gc.freeze()  # what is there need not be looked through at each collection


def _facts(copies: int) -> Facts:
    return _contenders[0].facts(copies)


def _seconds() -> tuple[float, float]:
    return _contenders[0].seconds()


def _on_cpu(gradient: Gradient) -> list[np.ndarray]:
    return [g.detach().cpu().numpy() for g in gradient]
