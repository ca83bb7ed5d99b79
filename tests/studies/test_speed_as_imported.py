"""The study of speed with each peer timed twice: with the memory it frees kept, and as imported."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pytest
import torch

from metalearn.studies.frame.findings import render_findings
from metalearn.studies.speed import floor as speed_floor
from metalearn.studies.speed import report as speed_report
from metalearn.studies.speed import study as speed
from metalearn.studies.speed.competitors import COMPETITORS
from metalearn.studies.speed.process import Contender, Failed
from metalearn.studies.speed.study import SpeedStudy
from metalearn.studies.speed.workloads import Workload

CPU = torch.device("cpu")
NAME = "maml-5w1s-q15"
SECONDS = {("ours", True): 1.0, ("vmap", True): 2.0, ("vmap", False): 3.0}
"""The times that stand for measured ones, by competitor and by whether its process keeps memory."""


def study(keep_memory: str) -> SpeedStudy:
    none: dict[str, Any] = dict.fromkeys(
        ("tasks", "ways", "inner_steps", "cg_iterations", "widths"), ()
    )
    return SpeedStudy(
        workloads=[NAME],
        rounds=2,
        timing_s=0.0,
        differing=False,
        curve_rounds=2,
        overhead_steps=0,
        keep_memory=keep_memory,
        copies=1,
        **none,
    )


class Timed:
    """A worker in this process, whose times are those of `SECONDS`."""

    def __init__(self, threads: int, name: str, w: Workload, device: torch.device, keep: bool):
        self.name = name
        self._seconds = SECONDS[name, keep]
        self.facts = Contender(name, w, device, False).facts

    def seconds(self) -> tuple[float, float]:
        return self._seconds, self._seconds

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def a_tiny_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: COMPETITORS["maml"][name] for name in ("ours", "vmap")}
    monkeypatch.setitem(COMPETITORS, "maml", some)
    tiny = Workload("maml", 2, 3, 1, 2, 3, channels=4, activation="silu")
    monkeypatch.setitem(speed.WORKLOADS, NAME, tiny)
    monkeypatch.setitem(speed_floor.SIDE, "cpu", 64)
    monkeypatch.setattr(speed, "Worker", Timed)


def measured(keep_memory: str) -> pd.DataFrame:
    made = study(keep_memory)
    (cell,) = made.cells()
    return pd.DataFrame([{**cell, **row} for row in made.measure(cell, CPU)])


def kinds(rows: pd.DataFrame) -> list[tuple[str, str, float]]:
    return list(zip(rows.competitor, rows.keep_memory, rows.times_ours, strict=True))


@pytest.mark.parametrize(
    ("keep_memory", "expected"),
    [
        ("all", [("ours", "all", 1.0), ("vmap", "all", 2.0)]),
        ("ours", [("ours", "ours", 1.0), ("vmap", "ours", 3.0)]),
        ("both", [("ours", "all", 1.0), ("vmap", "all", 2.0), ("vmap", "ours", 3.0)]),
    ],
)
def test_a_row_says_who_kept_the_memory(keep_memory, expected):
    assert kinds(measured(keep_memory)) == expected


@pytest.mark.parametrize("stored", [False, True])
def test_both_ratios_are_in_one_table(stored):
    rows = measured("both")
    if stored:  # as `measure=false` reads them
        rows = pd.read_csv(io.StringIO(rows.convert_dtypes().to_csv(index=False)))
    targets, workload = (table.texts() for table in study("both").tables(rows).values())
    assert list(targets[["peer / ours", "peer as imported / ours"]].iloc[0]) == ["2.00", "3.00"]
    assert list(workload["variant"]) == ["ours", "vmap", "vmap, as imported"]
    assert list(workload["times ours"].str.split().str[0]) == ["1.00", "2.00", "3.00"]
    findings = " ".join(render_findings(study("both"), rows))
    assert "As imported, the fastest peer (vmap) takes 3.00 times as long" in findings
    assert set(study("both").figures(rows)) == {"time_maml"}


def test_a_study_of_one_kind_has_the_tables_of_before():
    for keep_memory in ("all", "ours"):
        rows = measured(keep_memory)
        tables = study(keep_memory).tables(rows).values()
        text = " ".join(table.to_markdown() for table in tables)
        assert "as imported" not in text + " ".join(render_findings(study(keep_memory), rows))
        assert speed_report.competitors(rows, NAME, imported=True).empty


def test_a_peer_that_fails_in_one_of_its_processes_is_left_out_of_both(monkeypatch):
    class Failing(Timed):
        def seconds(self) -> tuple[float, float]:
            if self._seconds == SECONDS["vmap", False]:
                raise Failed("vmap", "had its process ended")
            return super().seconds()

    monkeypatch.setattr(speed, "Worker", Failing)
    rows = measured("both")
    assert list(rows.competitor[~rows.absent]) == ["ours"]
    assert list(rows.competitor[rows.absent]) == ["vmap"]
