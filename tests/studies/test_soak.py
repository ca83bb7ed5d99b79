"""The soak, small, and what it makes of rows that are flat or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.soak import study
from metalearn.studies.soak.study import SoakStudy

STUDY = SoakStudy(runs=["sinusoid"], steps=120, meta_batch=1, points=8)


def made_up(growth: float) -> pd.DataFrame:
    steps = range(100, 4100, 100)
    return pd.DataFrame(
        {
            "run": "sinusoid",
            "step": steps,
            "memory_bytes": [8e8 * (1 + growth * step / 4000) for step in steps],
            "tracker_bytes": 4e7,
            "handles": 9,
            "step_s": 0.01,
        }
    )


@pytest.mark.slow
def test_a_training_is_watched_from_outside():
    (cell,) = STUDY.cells()
    rows = pd.DataFrame(STUDY.measure(cell, torch.device("cpu")))
    assert 4 <= len(rows) <= STUDY.points
    assert (rows.step.diff()[1:] > 0).all() and rows.step.iloc[-1] < STUDY.steps
    assert (rows.memory_bytes > 1e8).all()  # PyTorch alone takes that
    assert (rows.tracker_bytes > 0).all()
    assert (rows.handles > 3).all()
    assert (rows.step_s > 0).all()


def test_points_that_pass_unseen_have_one_measurement(monkeypatch):
    seen = iter([0, 7, 50, 50, 51, 61, 110, 120, 120])  # points at 15, 30, 45 and so on
    monkeypatch.setattr(study, "_last_step", lambda metrics: next(seen, None))
    monkeypatch.setattr(study, "_measure_process", lambda pid: {"handles": pid})
    process = SimpleNamespace(pid=3, poll=lambda: None)
    rows = STUDY._watch(process, Path("metrics.jsonl"))
    assert rows == [{"step": step, "handles": 3} for step in (50, 61, 110)]


def test_a_child_that_ends_while_it_is_measured_is_left_out(monkeypatch):
    ours, read = os.getpid(), Path.read_text
    children = Path(f"/proc/{ours}/task/{ours}/children")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setattr(
        Path, "read_text", lambda path: f"{gone.pid} {ours}" if path == children else read(path)
    )
    found = study._measure_process(ours)
    assert found["tracker_bytes"] == pytest.approx(found["memory_bytes"], rel=0.05)


@pytest.mark.parametrize(("growth", "flat"), [(0.0, True), (0.01, True), (0.1, False)])
def test_facts_tell_what_grows(growth, flat):
    rows = made_up(growth)
    (run,) = STUDY.facts(rows)["runs"]
    # Means over the first and last quarter of a line lie 3/4 of its rise apart.
    change = 0.75 * growth / (1 + 0.1375 * growth)
    assert run["flat"] is flat
    assert run["memory_bytes"] == pytest.approx(change)
    assert run["tracker_bytes"] == run["handles"] == 0.0
    (finding,) = render_findings(STUDY, rows)
    assert f"{100 * change:+.2f} %" in finding and ("do not both" in finding) is not flat
    (table,) = STUDY.tables(rows).values()
    assert table.texts()["change %"][0] == f"{100 * change:+.2f}"
    assert set(STUDY.figures(rows)) == {"soak"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"runs": ["sinus"]}, r"runs\[0\]=sinus: expected"),
        ({"runs": []}, r"runs=\[\]: expected"),
        ({"steps": 7}, "at most steps=7"),
        ({"points": 7}, "points=7: expected at least 8"),
        ({"meta_batch": 0}, "meta_batch=0: expected at least 1"),
    ],
)
def test_options_that_are_none(options, sentence):
    fields = {"runs": ["sinusoid"], "steps": 100, "meta_batch": 1, "points": 10}
    with pytest.raises(UsageError, match=sentence):
        SoakStudy(**{**fields, **options})
