"""A competitor in a process of its own, as its users run it."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metalearn.bench.speed_competitors import COMPETITORS, Ours
from metalearn.bench.speed_floor import counted
from metalearn.bench.speed_workloads import Gradient, Workload, setting
from metalearn.bench.timing import clocked
from metalearn.memory import keep_freed_memory, peak_bytes


@dataclass(frozen=True)
class Facts:
    """What is known of a competitor besides its speed.

    Args:
        gradient: its meta-gradient, and `smooth_gradient` that of `workload.smooth()`.
        parts: in which it takes the batch.
        operations: of the whole batch, as `torch.utils.flop_counter` counts them.
    """

    gradient: list[np.ndarray]
    smooth_gradient: list[np.ndarray]
    parts: int
    peak_bytes: int
    operations: int


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
        self._make = COMPETITORS[workload.method][name].make
        self._workload, self._device = workload, device
        self._run = self._make(setting(workload, device))
        self.seconds = clocked(self._run, device)

    def facts(self) -> Facts:
        start = setting(self._workload, self._device)
        return Facts(
            gradient=_on_cpu(self._run()),
            smooth_gradient=_on_cpu(self._make(setting(self._workload.smooth(), self._device))()),
            parts=self._run.split.parts if isinstance(self._run, Ours) else 1,
            peak_bytes=peak_bytes(self._run, self._device)[1],
            operations=self._workload.tasks * counted(self._make(start.of(0))),
        )


class Worker:
    """A `Contender` in a process of its own: what that keeps, others neither gain nor suffer by.

    Args:
        threads: of PyTorch there.
        contender: `Contender`'s arguments.
    """

    def __init__(self, threads: int, *contender: Any) -> None:
        # Forked by a server that has imported torch and started no thread: neither a fork of this
        # process, whose threads would be missing, nor seconds of imports for each.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        self._pool.submit(_begin, threads, contender).result()

    def facts(self) -> Facts:
        return self._pool.submit(_facts).result()

    def seconds(self) -> tuple[float, float]:
        """Of one meta-gradient: on the wall, and of its process on all cores."""
        return self._pool.submit(_seconds).result()

    def close(self) -> None:
        self._pool.shutdown()


_contenders: list[Contender] = []
"""In a worker's process: the one that it is for."""


def _begin(threads: int, contender: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")  # peers' own, of what torch deprecates
    torch.set_num_threads(threads)
    _contenders.append(Contender(*contender))
    gc.freeze()  # what is there need not be looked through at each collection


def _facts() -> Facts:
    return _contenders[0].facts()


def _seconds() -> tuple[float, float]:
    return _contenders[0].seconds()


def _on_cpu(gradient: Gradient) -> list[np.ndarray]:
    return [g.detach().cpu().numpy() for g in gradient]
