"""The study of speed on tiny workloads: what its rows mean, not the seconds in them."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from metalearn.bench import speed, speed_floor, speed_overhead, speed_report
from metalearn.bench.speed import SpeedStudy
from metalearn.bench.speed_competitors import COMPETITORS, WAYS, ours
from metalearn.bench.speed_workloads import Workload, exact, relative_error, rounding, setting
from metalearn.bench.timing import clocked, rounds

CPU = torch.device("cpu")
TINY = {
    "imaml": Workload("imaml", 2, 3, 1, 2, 3, 2, channels=4, activation="silu"),
    "maml": Workload("maml", 2, 3, 1, 2, 3, channels=4, activation="silu"),
}
EVERY = [(method, name) for method in COMPETITORS for name in COMPETITORS[method]]
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
)


@pytest.fixture(autouse=True)
def others_deprecations():
    """What other libraries call of torch's is their own; the study does not show it either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(("method", "name"), EVERY)
def test_a_competitor_computes_the_exact_gradient_or_says_that_it_differs(method, name):
    competitor = COMPETITORS[method][name]
    if not competitor.installed:
        pytest.skip(f"{competitor.library} is not installed")
    start = setting(TINY[method], CPU).double()
    error = relative_error(competitor.make(start)(), exact(start))
    # In float64 and without kinks rounding alone is left; what differs does so by far more.
    assert (error > 1e-6) if competitor.differs else (error < 1e-10)


@pytest.mark.parametrize("method", ["imaml", "maml"])
def test_competitors_can_be_called_again(method):
    for name, competitor in COMPETITORS[method].items():
        if competitor.installed and not competitor.differs:
            run = competitor.make(setting(TINY[method], CPU))
            first = [g.double() for g in run()]
            assert relative_error(run(), first) < 1e-6, name


def test_rounding_moves_the_gradient_by_little_where_it_is_smooth():
    start = setting(TINY["maml"], CPU)
    assert 1e-9 < rounding(start, exact(start)) < 1e-4


def test_the_floor_counts_a_gradient_as_the_counter_does():
    w = replace(TINY["maml"], tasks=1, channels=8)
    s = setting(w, CPU)
    first, whole = speed_floor._forward(w, w.ways * w.shots)

    def gradient():
        loss = F.cross_entropy(s.model(s.task.support_x[0]), s.task.support_y[0])
        torch.autograd.grad(loss, list(s.model.parameters()))

    assert speed_floor.counted(gradient) == 3 * whole - first


@pytest.mark.parametrize("method", ["imaml", "maml"])
def test_the_floor_is_below_what_the_engine_does_and_not_far(method):
    start = setting(replace(TINY[method], channels=16), CPU).of(0)
    needed = speed_floor.operations(start.workload)
    # Above it are a residual's product, and the inner gradient's norm at the end.
    assert needed <= speed_floor.counted(ours(WAYS[method])(start)) <= 1.5 * needed


@pytest.mark.parametrize("field", ["tasks", "steps"])
def test_the_floor_is_linear_in_what_repeats(field):
    few, more, most = (
        speed_floor.operations(replace(TINY["imaml"], **{field: n})) for n in (1, 2, 3)
    )
    assert most - more == more - few > 0


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


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setitem(speed.WORKLOADS, "imaml-5w1s", replace(TINY["imaml"], activation="relu"))
        patch.setitem(speed.WORKLOADS, "maml-5w1s-q15", replace(TINY["maml"], activation="relu"))
        for method, workload in TINY.items():
            patch.setitem(speed.CURVES, method, workload)
        patch.setitem(speed_floor.SIDE, "cpu", 64)
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda n: None if n == "torchopt" else find(n))
        return pd.DataFrame(
            [{**cell, **row} for cell in STUDY.cells() for row in STUDY.measure(cell, CPU)]
        )


def test_a_row_tells_who_was_how_fast(rows):
    part = speed_report.timed(rows, "maml-5w1s-q15")
    assert {"ours", "ours, by higher", "higher", "vmap"} <= set(part.competitor)
    lead = part[part.lead.astype(bool)]
    assert len(lead) == 1 and lead.library.item() == "" and lead.differs.item() == ""
    assert lead.times_ours.item() == 1.0
    own = part[(part.library == "") & (part.differs == "")]
    assert lead.seconds.item() == own.seconds.min()
    assert (part.seconds_low <= part.seconds).all() and (part.seconds <= part.seconds_high).all()
    assert (part.over_floor > 0).all() and (part.peak_bytes > 0).all()


def test_only_equal_gradients_of_others_count(rows):
    part = speed_report.timed(rows, "maml-5w1s-q15").reset_index(drop=True)
    part.loc[part.library == "", "seconds"] = 1.0
    part.loc[part.library != "", "seconds"] = 3.0
    part.loc[part.competitor == "vmap, torch's norm", "seconds"] = 0.1  # differs
    part.loc[part.competitor == "higher", "seconds"] = 0.2
    part.loc[part.competitor == "higher", "error_smooth"] = 1e-2  # was wrong
    part.loc[part.competitor == "vmap", "seconds"] = 1.5
    part.loc[part.competitor == "learn2learn", "seconds"] = 2.0
    assert speed_report.fastest(part).competitor == "vmap"
    assert speed_report.fastest(part, libraries_only=True).competitor == "learn2learn"


def test_what_is_not_installed_is_left_out_with_one_line(rows):
    gone = rows[rows.absent.fillna(False).astype(bool)]
    assert set(gone.library) == {"torchopt"}
    said = [f for f in STUDY.findings(rows) if "not installed" in f]
    assert len(said) == 1 and "torchopt" in said[0]


def test_the_report_is_made_from_rows_alone(rows, tmp_path):
    rows.to_csv(tmp_path / "rows.csv", index=False)
    read = pd.read_csv(tmp_path / "rows.csv")
    tables = STUDY.tables(read)
    assert max(map(len, tables)) <= 110
    assert len(tables["Targets, and what was reached"]) == 2
    assert len(tables["iMAML: seconds against tasks in a batch"]) == 2
    assert set(STUDY.figures(read)) == {
        *("time_imaml", "time_maml", "scaling_imaml", "scaling_maml")
    }
    findings = STUDY.findings(read)
    assert sum("the target of 2.0" in f for f in findings) == 2
    assert any("tasks in a batch from 1 to 3" in f for f in findings)


def test_a_curve_is_left_out_by_an_empty_axis():
    axes = {(c["axis"], c["method"]) for c in STUDY.cells() if c["part"] == "curve"}
    # MAML solves nothing.
    assert axes == {("tasks", "imaml"), ("tasks", "maml"), ("cg_iterations", "imaml")}


@pytest.mark.slow
def test_the_time_around_the_gradient_is_that_of_a_run():
    found = {row["piece"]: row["seconds"] for row in speed_overhead.overhead(7, CPU)}
    assert found["gradient"] > found["around it"] > found["sampling and moving"] > 0
    parts = found["sampling and moving"] + found["checkpoints"] + found["the rest"]
    assert parts == pytest.approx(found["around it"])
