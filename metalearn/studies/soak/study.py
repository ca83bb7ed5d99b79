"""The soak: a long training of a tiny model, watched from outside for what it leaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from metalearn.errors import UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.plot import canvas, label_lines

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
"""What `metalearn train` is given for each, beside the steps."""

WATCHED = {
    "memory_bytes": "memory of the training process",
    "tracker_bytes": "memory of W&B's process",
    "handles": "open file handles",
}
FLAT = 0.02
"""The most that a mean over the last quarter may differ from that over the first, of it."""


@dataclass(frozen=True)
class SoakStudy:
    """Whether a training's memory and file handles are the same at its end as at its beginning.

    Each run is a process of its own, `metalearn train` as a user would start it, with checkpoints,
    validations and an offline W&B run; what it holds is read from /proc.

    Args:
        runs: names of RUNS.
        steps: meta-steps of each.
        meta_batch: tasks of a meta-step.
        points: how often a run is looked at, at evenly spaced meta-steps.

    Raises:
        UsageError: an unknown run, fewer than 8 points or fewer steps than points, or a system
            without /proc.
    """

    title: ClassVar[str] = "Soak: memory and file handles of a long training"

    runs: Sequence[str]
    steps: int
    meta_batch: int
    points: int

    def __post_init__(self) -> None:
        if not self.runs or (odd := sorted(set(self.runs) - RUNS.keys())):
            named = odd[0] if self.runs else "[]"
            raise UsageError(f"runs has {named}; expected names among {', '.join(RUNS)}")
        if not 8 <= self.points <= self.steps or self.meta_batch < 1:
            raise UsageError(
                f"steps={self.steps}, points={self.points}, meta_batch={self.meta_batch}; expected "
                "at least 8 points, as many steps and a task"
            )
        if not Path("/proc/self/statm").exists():
            raise UsageError("the soak reads /proc, which this system has not; run it on Linux")

    def cells(self) -> list[Cell]:
        return [{"run": name} for name in self.runs]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            with self._training(str(cell["run"]), device, folder) as process:
                rows = self._watch(process, folder / "metrics.jsonl")
            if process.returncode:
                said = (Path(scratch) / "output.txt").read_text().strip().splitlines()
                raise RuntimeError(f"training ended with {process.returncode}: {said[-1:]}")
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            times = [json.loads(line)["step_s"] for line in lines]
        begins = [0, *(row["step"] for row in rows)]
        for begin, row in zip(begins, rows, strict=False):
            part = times[begin : row["step"]]
            row["step_s"] = sum(part) / len(part)
        return list(rows)

    @contextmanager
    def _training(
        self, name: str, device: torch.device, folder: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        words = [*RUNS[name], f"steps={self.steps}", f"meta_batch={self.meta_batch}"]
        words += [f"validation.every={self.steps // 8}", "validation.tasks=8", "test.tasks=8"]
        words += [f"run_dir={folder}", f"device={device}", "threads=1", "wandb=offline"]
        with (folder.parent / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "metalearn.__main__", "train", *words],
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
        """What the process holds at each point; none is taken after the last meta-step, when the
        summary is made."""
        rows: list[dict[str, int]] = []
        while process.poll() is None and len(rows) < self.points - 1:
            step = _last_step(metrics)
            if step * self.points < self.steps * (len(rows) + 1) or step == self.steps:
                time.sleep(0.005)
                continue
            try:
                rows.append({"step": step, **_held(process.pid)})
            except FileNotFoundError:
                break  # it has ended since
        return rows

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        compared = []
        for run, part in rows.groupby("run", sort=False):
            for column, what in WATCHED.items():
                first, last, change = _quarters(part[column])
                scale = 1 if column == "handles" else 1e6
                compared.append(
                    {
                        "run": run,
                        "what": what + ("" if column == "handles" else ", MB"),
                        "first quarter": first / scale,
                        "last quarter": last / scale,
                        "change %": 100 * change,
                    }
                )
        return {f"Means over quarters of {self.steps:,} meta-steps": pd.DataFrame(compared)}

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        figure, (memory, handles) = canvas(2)
        for run, part in rows.groupby("run", sort=False):
            at = part.step / 1000
            (line,) = memory.plot(at, part.memory_bytes / 1e6, label=str(run))
            own, label = part.tracker_bytes / 1e6, f"{run}, W&B's process"
            memory.plot(at, own, "--", color=line.get_color(), label=label)
            handles.plot(at, part.handles, color=line.get_color(), label=str(run))
        memory.set(title="Resident memory", xlabel="thousand meta-steps", ylabel="MB")
        handles.set(title="Open file handles", xlabel="thousand meta-steps")
        for axes in (memory, handles):
            axes.set_ylim(bottom=0)
            label_lines(axes)
        return {"soak": figure}

    def findings(self, rows: pd.DataFrame) -> list[str]:
        found = []
        for run, part in rows.groupby("run", sort=False):
            changes = {name: _quarters(part[name])[2] for name in WATCHED}
            flat = all(abs(changes[name]) <= FLAT for name in ("memory_bytes", "handles"))
            memory, tracker, handles = (100 * changes[name] for name in WATCHED)
            found.append(
                f"{run}: from the first to the last quarter of {self.steps:,} meta-steps resident "
                f"memory changed by {memory:+.2f} % and open file handles by {handles:+.2f} %: "
                f"{'flat' if flat else 'not flat'} within {100 * FLAT:g} % (W&B's own process: "
                f"{tracker:+.1f} %)."
            )
        return found


def _quarters(values: pd.Series[float]) -> tuple[float, float, float]:
    """Means over the first and the last quarter, and the change relative to the first."""
    n = len(values) // 4
    first, last = float(values.iloc[:n].mean()), float(values.iloc[-n:].mean())
    return first, last, (last - first) / first if first else 0.0


def _last_step(metrics: Path) -> int:
    """The meta-step of the last whole row; 0 before there is one."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0


def _held(pid: int) -> dict[str, int]:
    """Resident memory of a process and of its children, in bytes, and its open handles."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {
        "memory_bytes": _resident(pid),
        "tracker_bytes": sum(_resident(int(child)) for child in children),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
    }


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
