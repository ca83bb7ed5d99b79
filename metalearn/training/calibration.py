"""The number of parts in which this machine takes a meta-batch fastest."""

from __future__ import annotations

from typing import Any

from metalearn.metagrad import MetaGradient
from metalearn.parallel.batches import SplitGradient
from metalearn.problem import BilevelProblem, Meta
from metalearn.system.machine import now
from metalearn.tree import leaves_of

ROUNDS = 3
GAIN = 0.97
"""The share of the time in fewer parts that more parts must stay below, to be more than noise."""


def fastest_parts(metagrad: MetaGradient, problem: BilevelProblem, meta: Meta, task: Any) -> int:
    """All tasks at once, in halves, in quarters, down to one at a time: the fastest.

    Small tasks gain from being carried together, as each operation costs the same few microseconds
    for all of them; large ones lose by it what a cache could have held. Parts are doubled as long
    as that pays, so that a handful of meta-gradients tells. The least of `ROUNDS` times counts.

    The choice is the machine's, and sums over parts are rounded otherwise than whole ones: a run
    that has to equal another one bit for bit is given its parts.
    """
    best, least = 1, _seconds(SplitGradient(metagrad), problem, meta, task)
    while best < len(task):
        parts = min(2 * best, len(task))
        seconds = _seconds(SplitGradient(metagrad, parts), problem, meta, task)
        if seconds > GAIN * least:
            break
        best, least = parts, seconds
    return best


def _seconds(metagrad: SplitGradient, problem: BilevelProblem, meta: Meta, task: Any) -> float:
    device = leaves_of(meta)[0].device
    times = []
    for _ in range(ROUNDS):
        began = now(device)
        metagrad(problem, meta, task)
        times.append(now(device) - began)
    return min(times)
