"""The study of speed on tiny workloads: what its rows mean, not the seconds in them."""

from __future__ import annotations

import importlib.util
import signal
import warnings
from contextlib import closing
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny_workloads import CPU, TINY

from metalearn.studies.frame.findings import render_findings
from metalearn.studies.frame.timing import clocked, rounds
from metalearn.studies.speed import floor as speed_floor
from metalearn.studies.speed import overhead as speed_overhead
from metalearn.studies.speed import report as speed_report
from metalearn.studies.speed import study as speed
from metalearn.studies.speed.competitors import BATCHED, COMPETITORS, Competitor, ours
from metalearn.studies.speed.process import Contender, Failed, Worker, full_precision
from metalearn.studies.speed.study import SpeedStudy

STUDY = SpeedStudy(
    workloads=["imaml-5w1s", "maml-5w1s-q15"],
    rounds=2,
    timing_s=0.0,
    differing=True,
    tasks=[1, 3],
    ways=[],
    inner_steps=[],
    cg_iterations=[1],
    widths=[],
    curve_rounds=2,
    overhead_steps=0,
    keep_memory="none",
    copies=16,
)


@pytest.fixture(autouse=True)
def others_deprecations():
    """Hide the deprecation warnings of other libraries, as the study does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_rounds_rotate_and_stop_in_time():
    order: list[str] = []
    runs = {name: clocked(lambda name=name: order.append(name), CPU) for name in "abc"}
    times = rounds(runs, 3, 100.0)
    assert "".join(order) == "abcbcacab"
    assert all(len(t.wall) == len(t.cpu) == 3 for t in times.values())
    assert len(rounds(runs, 9, 0.0)["a"].wall) == 2


def test_a_gpu_is_waited_for_before_and_after_each_run(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    rounds({"run": clocked(lambda: events.append("run"), torch.device("cuda"))}, 2, 0.0)
    assert events == ["wait", "run", "wait"] * 2


class Here:
    """A worker without a process: what a test replaces reaches it."""

    def __init__(self, threads, *contender):
        self.name = contender[0]
        contender = Contender(*contender)
        self.facts, self.seconds = contender.facts, contender.seconds

    def close(self):
        pass


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setitem(speed.WORKLOADS, "imaml-5w1s", replace(TINY["imaml"], activation="relu"))
        patch.setitem(speed.WORKLOADS, "maml-5w1s-q15", replace(TINY["maml"], activation="relu"))
        for method, workload in TINY.items():
            patch.setitem(speed.CURVES, method, workload)
        patch.setitem(speed_floor.SIDE, "cpu", 64)
        patch.setattr(speed, "Worker", Here)
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda n: None if n == "torchopt" else find(n))
        return pd.DataFrame(
            [{**cell, **row} for cell in STUDY.cells() for row in STUDY.measure(cell, CPU)]
        )


def test_a_row_tells_who_was_how_fast(rows):
    part = speed_report.competitors(rows, "maml-5w1s-q15")
    assert {"ours", "ours, captured", "ours, by higher", "higher", "vmap"} <= set(part.competitor)
    lead = part[part.lead.astype(bool)]
    assert len(lead) == 1 and lead.library.item() == "" and lead.differs.item() == ""
    own = part[(part.library == "") & (part.differs == "") & (part.competitor != "ours, captured")]
    assert lead.seconds.item() == own.seconds.min()
    counted = part[part.differs == ""]
    assert (counted.tasks_checked == 2).all() and (counted.error_task < 1e-4).all()
    # Of what takes the task axis wrongly, the batch would not be the mean of its tasks.
    assert (counted.error_mean < 1e-5).all()
    assert (part[part.differs != ""].tasks_checked == 0).all()
    # The arithmetic at one rate for all workloads: ratios of it are ratios of the seconds.
    both = pd.concat([part, speed_report.competitors(rows, "imaml-5w1s")])
    seconds = both.over_floor * both.floor_operations / rows.product_rate.max()
    assert seconds.to_numpy() == pytest.approx(both.seconds.to_numpy())


def test_ours_wrong_is_said_and_given_no_verdict(rows):
    wrong = rows.copy()
    ours_there = (wrong.workload == "maml-5w1s-q15") & wrong.competitor.str.startswith("ours")
    wrong.loc[ours_there, "error_smooth"] = 0.3
    assert speed_report.lead(speed_report.competitors(wrong, "maml-5w1s-q15")) is None
    targets = STUDY.tables(wrong)["Targets, and what was reached"].texts().set_index("workload")
    verdicts = targets[["peer target met", "floor target met"]]
    assert verdicts.loc["maml-5w1s-q15"].tolist() == ["", ""]
    assert set(verdicts.loc["imaml-5w1s"]) <= {"yes", "no"}
    (found,) = (w for w in STUDY.facts(wrong)["workloads"] if w["name"] == "maml-5w1s-q15")
    assert found["ours"] is None and "ours" in [row["competitor"] for row in found["wrong"]]
    (finding,) = (f for f in render_findings(STUDY, wrong) if f.startswith("maml-5w1s-q15"))
    assert "target" not in finding


def measured_here(monkeypatch, worker=Here):
    monkeypatch.setattr(speed, "Worker", worker)
    monkeypatch.setitem(speed.WORKLOADS, "maml-5w1s-q15", TINY["maml"])
    monkeypatch.setitem(speed_floor.SIDE, "cpu", 64)
    cell = {"part": "workload", "workload": "maml-5w1s-q15"}
    return pd.DataFrame([{**cell, **row} for row in STUDY.measure(cell, CPU)])


def test_nothing_is_compared_with_ours_where_ours_is_wrong(monkeypatch):
    def wrong(setting):
        run = ours(BATCHED["maml"])(setting)
        return lambda: [1.01 * g for g in run()]

    some = {"ours": Competitor(wrong), "vmap": COMPETITORS["maml"]["vmap"]}
    monkeypatch.setitem(COMPETITORS, "maml", some)
    found = measured_here(monkeypatch)
    assert not found.lead.any() and "times_ours" not in found
    (facts,) = STUDY.facts(found)["workloads"]
    assert facts["ours"] is None and [row["competitor"] for row in facts["wrong"]] == ["ours"]
    assert STUDY.tables(found) and STUDY.figures(found) and render_findings(STUDY, found)


def test_a_peer_that_fails_is_left_out_with_the_reason(monkeypatch):
    class Failing(Here):
        def __init__(self, threads, *contender):
            super().__init__(threads, *contender)
            if self.name == "vmap":
                raise Failed("vmap", "failed (ImportError: no such symbol)")
            if self.name == "higher":
                self.seconds = self.end

        def end(self):
            raise Failed("higher", "had its process ended")

    some = {name: COMPETITORS["maml"][name] for name in ("ours", "higher", "vmap")}
    some["another"] = Competitor(ours(BATCHED["maml"]), "no_such_library")
    monkeypatch.setitem(COMPETITORS, "maml", some)
    found = measured_here(monkeypatch, Failing)
    assert list(found.competitor[~found.absent]) == ["ours"]
    assert [tuple(a.values()) for a in STUDY.facts(found)["absent"]] == [
        ("no_such_library", "is not installed", ["another"]),
        ("torch", "failed (ImportError: no such symbol)", ["vmap"]),
        ("higher", "had its process ended", ["higher"]),
    ]

    class Ours(Here):
        def facts(self, copies):
            raise Failed("ours", "had its process ended")

        def __init__(self, threads, *contender):
            self.name = contender[0]

    with pytest.raises(Failed, match="ours had its process ended"):
        measured_here(monkeypatch, Ours)


def test_a_process_finds_what_is_found_here():
    about = "ours", TINY["maml"], CPU, False
    with closing(Worker(1, *about)) as worker:
        there, seconds = worker.facts(2), worker.seconds()
    here = Contender(*about).facts(2)
    for found, expected in zip(there.gradient, here.gradient, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(there.task_gradients) == TINY["maml"].tasks
    assert there.operations == here.operations and min(there.peak_bytes, *seconds) > 0


def test_a_process_says_why_it_failed():
    with pytest.raises(Failed, match=r"nobody failed \(KeyError: 'nobody'\)"):
        Worker(1, "nobody", TINY["maml"], CPU, False)
    with (
        closing(Worker(1, "ours", TINY["maml"], CPU, False)) as worker,
        pytest.raises(Failed, match="ours had its process ended"),
    ):
        worker._result(signal.raise_signal, signal.SIGKILL)


def test_products_are_made_in_float32():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = True
        full_precision()
        assert not any(switch.allow_tf32 for switch in switches)
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.allow_tf32 = was


def test_findings_begin_with_the_conditions_of_the_timing(rows):
    conditions = {
        kept: render_findings(STUDY, rows.assign(keep_memory=kept))[0]
        for kept in ("all", "ours", "none")
    }
    assert len(set(conditions.values())) == 3
    assert "TF32" not in conditions["all"]
    assert "TF32" in render_findings(STUDY, rows.assign(device="cuda"))[0]


def curve(**variants):
    """Make the rows of a curve from each variant's (low, median, high) ratio at 1 and 2 tasks."""
    rows = [
        {"part": "curve", "method": "maml", "axis": "tasks", "value": value, "competitor": name}
        | dict(zip(("times_ours_low", "times_ours", "times_ours_high"), ratios, strict=True))
        for name, points in variants.items()
        for value, ratios in enumerate(points, 1)
    ]
    return pd.DataFrame(rows).replace({"one_by_one": "one by one"})


def test_curve_facts_tell_where_the_batch_is_slower_beyond_the_quartiles():
    one = [(0.9, 0.96, 1.05), (1.6, 1.7, 1.8)]
    found = speed_report._curve_facts("maml", "tasks", curve(one_by_one=one))
    assert (found["best"].value, found["best"].times_ours) == (2, 1.7)
    assert found["slower"] == []
    both = curve(one_by_one=one, higher=[(0.7, 0.72, 0.75), (1.2, 1.24, 1.3)])
    (slower,) = speed_report._curve_facts("maml", "tasks", both)["slower"]
    assert (slower["than"], slower["values"]) == ("higher", [1])
    assert slower["times"] == pytest.approx(1 / 0.72)


def test_only_equal_gradients_of_others_count(rows):
    part = speed_report.competitors(rows, "maml-5w1s-q15").reset_index(drop=True)
    part.loc[part.library == "", "seconds"] = 1.0
    part.loc[part.library != "", "seconds"] = 3.0
    part.loc[part.competitor == "vmap, torch's norm", "seconds"] = 0.1  # differs
    part.loc[part.competitor == "higher", "seconds"] = 0.2
    part.loc[part.competitor == "higher", "error_smooth"] = 1e-2  # was wrong
    part.loc[part.competitor == "vmap", "seconds"] = 1.5
    part.loc[part.competitor == "learn2learn", "seconds"] = 2.0
    assert speed_report.fastest(part).competitor == "vmap"
    assert speed_report.fastest(part, libraries_only=True).competitor == "learn2learn"


def test_absent_libraries_are_named_once(rows):
    gone = rows[rows.absent.fillna(False).astype(bool)]
    assert set(gone.library) == {"torchopt"}
    (absent,) = STUDY.facts(rows)["absent"]
    assert (absent["library"], absent["reason"]) == ("torchopt", "is not installed")
    assert absent["competitors"] == list(dict.fromkeys(gone.competitor))


def test_the_report_is_made_from_rows_alone(rows, tmp_path):
    rows.to_csv(tmp_path / "rows.csv", index=False)
    read = pd.read_csv(tmp_path / "rows.csv")
    tables = STUDY.tables(read)
    assert max(map(len, tables)) <= 110
    assert len(tables["Targets, and what was reached"].rows) == 2
    curve = tables["iMAML: seconds against tasks in a batch, quartiles in brackets"].texts()
    assert curve["tasks in a batch"].tolist() == ["1", "3"]
    assert set(STUDY.figures(read)) == {
        *("time_imaml", "time_maml", "scaling_imaml", "scaling_maml")
    }
    facts = STUDY.facts(read)
    assert facts["keep_memory"] == "none" and not facts["on_gpu"] and not facts["overhead"]
    assert [w["name"] for w in facts["workloads"]] == ["imaml-5w1s", "maml-5w1s-q15"]
    maml = facts["workloads"][1]
    counts = {r["competitor"]: (r["tasks_same"], r["tasks_checked"]) for r in maml["agreeing"]}
    assert counts["ours"] == counts["higher"] == (2, 2)
    assert ("iMAML", "tasks in a batch", 1, 3) in [
        tuple(c[name] for name in ("method", "axis", "first", "last")) for c in facts["curves"]
    ]
    findings = render_findings(STUDY, read)
    assert not any("nan" in f or "inf" in f for f in findings)


def test_a_curve_is_left_out_by_an_empty_axis():
    axes = {(c["axis"], c["method"]) for c in STUDY.cells() if c["part"] == "curve"}
    # MAML solves nothing.
    assert axes == {("tasks", "imaml"), ("tasks", "maml"), ("cg_iterations", "imaml")}


@pytest.mark.slow
def test_the_time_around_the_gradient_is_that_of_a_run():
    found = {row["piece"]: row["seconds"] for row in speed_overhead.overhead(7, CPU)}
    assert found["gradient"] > found["around it"] > found["sampling and moving"] > 0
    assert found["checkpoints"] > 0 and found["the rest"] > 0
