"""The soak: a long training of a tiny model, watched from outside for leaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pandas as pd
from annotated_types import Ge
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import (
    STRICT,
    Count,
    Some,
    one_of,
    one_sentence,
)
from metalearn.errors import TrainingStopped, UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table
from metalearn.studies.soak import report as soak_report

if TYPE_CHECKING:
    import torch

RUNS: Mapping[str, Sequence[str]] = {
    "sinusoid": (
        *("tasks=sinusoid", "model=mlp_sinusoid", "model.sizes=[1,16,1]"),
        *("metagrad=maml_batched", "metagrad.inner.steps=2"),
    ),
    "glyphs": (
        *("tasks=glyphs", "model=mlp", "model.sizes=[784,8,5]"),
        *("metagrad=imaml", "metagrad.inner.steps=2", "metagrad.linear_solver.max_iters=2"),
    ),
}
"""The overrides of `metalearn train` for each run, but for the number of steps."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class SoakStudy:
    """The memory and the file handles of a training, from its beginning to its end.

    Each run is a process of its own: `metalearn train` with checkpoints, validations and an
    offline W&B run. /proc tells its memory and handles.

    Args:
        runs: names of `RUNS`.
        steps: the meta-steps of each run.
        meta_batch: the tasks of a meta-step.
        points: the number of measurements of a run, at evenly spaced meta-steps.

    Raises:
        UsageError: a run is unknown, there are fewer than 8 points or fewer steps than points, or
            the system has no /proc.
    """

    title: ClassVar[str] = "Soak: memory and file handles of a long training"
    growing: ClassVar = ("runs",)

    runs: Some[Annotated[str, one_of(RUNS)]]
    steps: int
    meta_batch: Count
    points: Annotated[int, Ge(8)]

    def __post_init__(self) -> None:
        if self.points > self.steps:
            raise UsageError(
                f"points={self.points}: expected at most steps={self.steps}. Give more steps."
            )
        if not Path("/proc/self/statm").exists():
            raise UsageError(
                "The soak reads /proc, which this system does not have. Run it on Linux."
            )

    def cells(self) -> list[Cell]:
        return [{"run": name} for name in self.runs]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            with self._training(str(cell["run"]), device, folder) as process:
                rows = self._watch(process, folder / "metrics.jsonl")
            if process.returncode:
                output = (Path(scratch) / "output.txt").read_text().strip().splitlines()
                raise TrainingStopped(f"training ended with {process.returncode}: {output[-1:]}")
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            times = [json.loads(line)["step_s"] for line in lines]
        begins = [0, *(row["step"] for row in rows)]  # strictly increasing
        for begin, row in zip(begins, rows, strict=False):
            part = times[begin : row["step"]]
            row["step_s"] = sum(part) / len(part)
        return list(rows)

    @contextmanager
    def _training(
        self, name: str, device: torch.device, folder: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        overrides = [*RUNS[name], f"steps={self.steps}", f"meta_batch={self.meta_batch}"]
        overrides += [f"validation.every={self.steps // 8}", "validation.tasks=8", "test.tasks=8"]
        overrides += [f"run_dir={folder}", f"device={device}", "threads=1", "wandb=offline"]
        with (folder.parent / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "metalearn.__main__", "train", *overrides],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
                process.wait()
            finally:
                process.kill()
                process.wait()

    def _watch(self, process: subprocess.Popen[bytes], metrics: Path) -> list[dict[str, int]]:
        """Measure the process at each point, before its last meta-step ends.

        On a machine that is busy elsewhere, several points may pass between two looks. One
        measurement then stands for them, so that every row has meta-steps of its own.
        """
        rows: list[dict[str, int]] = []
        passed = 0
        while process.poll() is None and passed < self.points - 1:
            step = _last_step(metrics)
            if step * self.points // self.steps == passed or step == self.steps:
                time.sleep(0.005)
                continue
            try:
                rows.append({"step": step, **_measure_process(process.pid)})
            except (FileNotFoundError, ProcessLookupError):
                break  # the process ended in between
            passed = step * self.points // self.steps
        return rows

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return soak_report.tables(rows, self.steps)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return soak_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return {"steps": self.steps, **soak_report.facts(rows)}


def _last_step(metrics: Path) -> int:
    """Return the meta-step of the last whole row, 0 before the first one."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0


def _measure_process(pid: int) -> dict[str, int]:
    """Return the resident bytes of a process and of its children, and its open handles."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    tracker_bytes = 0
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended in between
            tracker_bytes += _resident(int(child))
    return {
        "memory_bytes": _resident(pid),
        "tracker_bytes": tracker_bytes,
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
    }


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
