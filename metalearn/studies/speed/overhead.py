"""The time of a training run outside its meta-gradients."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from metalearn import config
from metalearn.inner import InnerSolver
from metalearn.metagrad import MetaGradient, MetaGradientResult
from metalearn.problem import BilevelProblem, Meta
from metalearn.studies.frame import Row
from metalearn.system.machine import now
from metalearn.training import checkpoint
from metalearn.training.loop import train
from metalearn.tree import leaves_of

SKIPPED = 3
"""The number of first calls to skip: one measures memory, and the next ones warm up."""


@dataclass(frozen=True)
class Stopwatch(MetaGradient):
    """A meta-gradient that calls another one and logs when each call begins and ends.

    Args:
        metagrad: the other meta-gradient.
        log: the path of the file to append to.
    """

    metagrad: MetaGradient
    log: str

    @property
    def inner(self) -> InnerSolver:  # type: ignore[override]
        return self.metagrad.inner

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **solver_state: Any
    ) -> MetaGradientResult:
        device = leaves_of(meta)[0].device
        began = now(device)
        result = self.metagrad(problem, meta, task, **solver_state)
        with open(self.log, "a") as file:
            print(began, now(device), file=file)
        return result


def overhead(steps: int, device: torch.device) -> list[Row]:
    """Train for `steps` meta-steps, and return the seconds of each piece of a meta-step.

    The run is iMAML on 16 tasks of 5 ways and 1 shot, with Conv4-64, letters with rotations (5,948
    classes) and W&B offline. The pieces:

    - "gradient": the meta-gradient.
    - "around it": the time from the end of a gradient to the beginning of the next.
    - "sampling and moving": the part of "around it" that the rows of the run give.
    - "checkpoints": the time to save one, divided by `checkpoint_every`; a part of "around it".
    - "the rest": the optimiser, guards, figures, logging and progress; a part of "around it".

    No validation runs in between.
    """
    with TemporaryDirectory() as folder, _quiet():
        run_dir, log = Path(folder) / "run", Path(folder) / "log"
        options = config.compose(
            "train",
            [
                *("metagrad=imaml", "tasks=glyphs", "tasks.rotations=true", "meta_batch=16"),
                *(f"steps={steps}", f"validation.every={steps}", f"device={device.type}"),
                *("validation.tasks=2", "test.tasks=2", f"threads={torch.get_num_threads()}"),
            ],
        )
        OmegaConf.resolve(options)  # the problem's options name those of the wrapped metagrad
        options.metagrad = {
            "_target_": f"{__name__}.Stopwatch",
            "metagrad": options.metagrad,
            "log": str(log),
        }
        train(options, run_dir)
        calls = np.array([line.split() for line in log.read_text().splitlines()], dtype=float)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        state = checkpoint.load(run_dir / "last.pt")
        began = time.perf_counter()
        for _ in range(5):
            checkpoint.save(run_dir / "again.pt", state)
        save = (time.perf_counter() - began) / 5

    calls = calls[SKIPPED:]
    gradient = float(np.mean(calls[:, 1] - calls[:, 0]))
    between = calls[1:, 0] - calls[:-1, 1]
    around = float(np.mean(between))
    sampling = float(np.mean([row["sample_s"] for row in rows[SKIPPED:]]))
    checkpoints = save / options.checkpoint_every
    parts = {
        "gradient": gradient,
        "around it": around,
        "sampling and moving": sampling,
        "checkpoints": checkpoints,
        "the rest": around - sampling - checkpoints,
    }
    step = gradient + around
    return [{"piece": name, "seconds": s, "share": s / step} for name, s in parts.items()]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
