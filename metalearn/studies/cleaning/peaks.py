"""The peak memory of a hypergradient against the number of inner steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from metalearn.bilevel import TruncatedUnrolling
from metalearn.inner import GradientDescent
from metalearn.metagrad import Unrolled
from metalearn.problem import FullBatch
from metalearn.studies.cleaning.data import Noisy
from metalearn.studies.cleaning.methods import METHODS, SINGLE_LOOP, Setting
from metalearn.studies.cleaning.training import descent_of
from metalearn.system.memory import peak_bytes

UNROLLED, RECOMPUTED = "unrolled", "unrolled, steps recomputed"
GROWING = (UNROLLED, RECOMPUTED)
"""The methods whose memory grows with the inner steps."""
PROBES = (10, 20, 40)
"""The inner steps at which the growth is measured."""


def work(setting: Setting, data: Noisy, name: str, steps: int, batch: int) -> Callable[[], Any]:
    """Return a hypergradient after `steps` inner steps as a call without arguments.

    "unrolled" keeps autograd's graph of all steps, on one batch. "unrolled, steps recomputed"
    keeps the params of all steps. For a single-loop method, the call takes `steps` outer steps.
    """
    if name in GROWING:
        method: Any = TruncatedUnrolling(steps, steps)
    else:
        method = METHODS[name].make(setting, steps)
    fixed = name == "SABA"
    descent = descent_of(setting, data, method, batch, seed=0, fixed=fixed, learn=False)
    if name == UNROLLED:
        whole = FullBatch(descent.problem, descent.inner_batch(), descent.outer_batch())
        metagrad = Unrolled(GradientDescent(steps, setting.lr), "batched")
        return partial(metagrad, whole, descent.meta, range(1))
    outer_steps = steps if name in SINGLE_LOOP else 1

    def take() -> None:
        for _ in range(outer_steps):
            descent.step()

    return take


def measure_peak(
    setting: Setting,
    data: Noisy,
    name: str,
    steps: int,
    batch: int,
    limit: int,
    device: torch.device,
) -> dict[str, Any]:
    """Return the peak of a hypergradient in bytes, above the memory of the descent.

    Args:
        limit: the most inner steps of a method of `GROWING` that are run. Above, the peak is
            predicted by the line through those at `PROBES`.
    """

    def peak(count: int) -> int:
        return peak_bytes(work(setting, data, name, count, batch), device)[1]

    if name not in GROWING or steps <= limit:
        return {"peak_bytes": peak(steps), "predicted": False}
    slope, intercept = np.polyfit(PROBES, [peak(count) for count in PROBES], 1)
    predicted = round(float(intercept + slope * steps))
    return {"peak_bytes": predicted, "predicted": True, "slope": float(slope)}
