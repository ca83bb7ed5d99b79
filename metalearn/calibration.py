"""In how many parts this machine takes a meta-batch fastest: measured, where it isn't given."""

from __future__ import annotations

import time
from typing import Any

import torch

from metalearn.batch_split import SplitGradient
from metalearn.metagrad import MetaGradient
from metalearn.problem import BilevelProblem, Meta
from metalearn.tree import leaves_of

ROUNDS = 3
GAIN = 0.97
"""Of the time in fewer parts: what is not clearly faster is noise, and fewer parts it stays."""


def fastest_parts(metagrad: MetaGradient, problem: BilevelProblem, meta: Meta, task: Any) -> int:
    """All tasks at once, in halves, in quarters, down to one at a time: the fastest.

    Small tasks gain from being carried together, as each operation costs the same few microseconds
    for all of them; large ones lose by it what a cache could have held. Parts are doubled as long
    as that pays, so that a handful of meta-gradients tells. The least of `ROUNDS` times counts.

    The choice is the machine's, and sums over parts are rounded otherwise than whole ones: a run
    that has to equal another one bit for bit is given its parts.
    """
    best, least = 1, _seconds(SplitGradient(metagrad), problem, meta, task)
    parts = 2
    while parts <= len(task):
        seconds = _seconds(SplitGradient(metagrad, parts), problem, meta, task)
        if seconds > GAIN * least:
            break
        best, least = parts, seconds
        parts = min(2 * parts, len(task)) if parts < len(task) else parts + 1
    return best


def _seconds(metagrad: SplitGradient, problem: BilevelProblem, meta: Meta, task: Any) -> float:
    device = leaves_of(meta)[0].device
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        metagrad(problem, meta, task)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)
