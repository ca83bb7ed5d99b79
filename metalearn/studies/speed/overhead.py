"""What training spends around its meta-gradients: a real run, timed between their calls."""

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
"""Calls at the beginning: that which measures memory, and those in which all is still cold."""


@dataclass(frozen=True)
class Stopwatch(MetaGradient):
    """Another meta-gradient, which notes in a file when each call began and ended."""

    way: MetaGradient
    notes: str

    @property
    def inner(self) -> InnerSolver:  # type: ignore[override]
        return self.way.inner

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **carry: Any
    ) -> MetaGradientResult:
        device = leaves_of(meta)[0].device
        began = now(device)
        result = self.way(problem, meta, task, **carry)
        with open(self.notes, "a") as file:
            print(began, now(device), file=file)
        return result


def overhead(steps: int, device: torch.device) -> list[Row]:
    """Seconds of a meta-step by what it does: `steps` of iMAML on 16 tasks of 5 ways and 1 shot,
    Conv4-64, letters with rotations (5,948 classes), W&B offline, all as training has it.

    "gradient", and "around it": all else from the end of one to the beginning of the next, a
    checkpoint every `checkpoint_every` steps among it. Of that "sampling and moving" by the run's
    own rows, "checkpoints" by saving its last one as often; the rest is the optimiser's step,
    guards, figures, logging and progress. Validation is left out.
    """
    with TemporaryDirectory() as folder, _quiet():
        run_dir, notes = Path(folder) / "run", Path(folder) / "notes"
        options = config.compose(
            "train",
            [
                *("metagrad=imaml", "tasks=glyphs", "tasks.rotations=true", "meta_batch=16"),
                *(f"steps={steps}", f"validation.every={steps}", f"device={device.type}"),
                *("validation.tasks=2", "test.tasks=2", f"threads={torch.get_num_threads()}"),
            ],
        )
        way = options.metagrad
        options.metagrad = {"_target_": f"{__name__}.Stopwatch", "way": way, "notes": str(notes)}
        train(options, run_dir)
        calls = np.array([line.split() for line in notes.read_text().splitlines()], dtype=float)
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
