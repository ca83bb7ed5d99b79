"""The study of memory at a tiny size: what its rows mean, not their digits."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.frame.published import memory as published
from metalearn.studies.memory import report as memory_report
from metalearn.studies.memory.methods import METHODS, ONE_GRADIENT, REPORTED
from metalearn.studies.memory.study import MemoryStudy
from metalearn.system.memory import format_bytes

CPU = torch.device("cpu")
TINY = MemoryStudy(
    parts=["steps", "long", "batch"],
    network="small",
    steps=[1, 6],
    long_steps=[4],
    second="conv4",
    second_steps=[1],
    batch=2,
    batch_steps=[2],
    repeats=1,
    timing_s=0.0,
    limit_gb=1.0,
)


# The other methods differ in CG iterations from one of these.
SOME = {
    ONE_GRADIENT,
    *(name for name, method in METHODS.items() if method.everywhere),
    "truncated to 4",
    "Gauss-Newton, 5 CG, recomputed",
}


def measured(study, methods):
    cells = [cell for cell in study.cells() if cell["method"] in methods]
    return pd.DataFrame({**cell, **row} for cell in cells for row in study.measure(cell, CPU))


@pytest.fixture(scope="module")
def rows():
    return measured(TINY, SOME)


def peaks(rows, method, tasks=1):
    part = rows[(rows.method == method) & (rows.tasks == tasks)]
    return part.set_index("steps").peak_bytes


def test_every_method_is_measured_and_the_main_ones_everywhere():
    parts = ["steps", "long", "second", "batch"]
    cells = replace(TINY, parts=parts).cells()
    for method in METHODS:
        own = [(c["network"], c["tasks"], c["steps"]) for c in cells if c["method"] == method]
        few = [("small", 1, 1), ("small", 1, 6)]
        more = [("small", 1, 4), ("conv4", 1, 1), ("small", 2, 2)]
        assert own == few + more * METHODS[method].everywhere


def test_implicit_gradients_are_flat_and_about_two_inner_gradients(rows):
    one = peaks(rows, ONE_GRADIENT).iloc[0]
    for method in SOME:
        if method.startswith(("implicit", "Gauss-Newton")):
            found = peaks(rows, method)
            assert found.max() <= 1.02 * found.min(), method
            assert found.max() <= 2.15 * one, method


def test_unrolled_is_linear_checkpointed_below_it_and_truncated_bounded(rows):
    fit = memory_report.line(rows[(rows.method == "unrolled, higher") & (rows.tasks == 1)])
    assert fit.slope > 0 and fit.r_squared >= 0.999
    whole = peaks(rows, "unrolled, batched")
    assert peaks(rows, "checkpointed")[6] <= 0.75 * whole[6]
    assert peaks(rows, "mixed mode")[6] <= 0.75 * whole[6]
    assert peaks(rows, "truncated to 4")[6] <= 1.02 * whole[4]


def test_gradients_that_must_be_equal_are(rows):
    compared = rows.dropna(subset="same_as")
    assert set(compared.method) == {name for name, m in METHODS.items() if m.same_as} & SOME
    # Float32: the same operations, but for forward mode, which rounds in another order.
    limit = compared.method.map({"mixed mode": 1e-5}).fillna(1e-6)
    assert (compared.gradient_difference <= limit).all()


def test_cg_makes_the_iterations_whose_time_is_taken(rows):
    for method, part in rows.dropna(subset="cg_iterations").groupby("method"):
        assert part.cg_iterations.nunique() == 1
        assert f", {part.cg_iterations.iloc[0]:.0f} CG" in method


def test_recomputing_holds_the_graph_of_one_task(rows):
    lean, kept = (
        peaks(rows, name, tasks=2).iloc[0]
        for name in ("implicit, 5 CG, recomputed", "implicit, 5 CG")
    )
    assert lean < 0.8 * kept


def test_a_peak_above_the_limit_is_predicted_near_what_it_is(rows):
    whole = peaks(rows, "unrolled, higher")
    low = replace(TINY, limit_gb=(whole[4] + whole[6]) / 2e9)
    found = measured(low, {"unrolled, higher"})
    found = found[found.tasks == 1].set_index("steps")
    assert found.predicted.to_dict() == {1: False, 4: False, 6: True}
    assert found.peak_bytes[6] == pytest.approx(whole[6], rel=0.02)
    # Where the gradient that it must equal does not fit, it is measured alone.
    cell = {"network": "small", "tasks": 1, "method": "checkpointed", "steps": 6}
    (row,) = low.measure(cell, CPU)
    assert not row["predicted"] and "same_as" not in row


def test_the_report_is_made_from_rows_alone(rows):
    marked = rows.copy()
    marked.loc[(rows.method == "unrolled, higher") & (rows.steps == 6), "predicted"] = True
    tables = TINY.tables(marked)
    assert max(map(len, tables)) <= 110  # they name W&B's artifacts, which may have 128 characters
    first = next(iter(tables.values())).texts().set_index("method")
    assert first.loc["unrolled, higher", "6"].startswith("*")
    assert not first.loc["unrolled, higher", "4"].startswith("*")
    assert set(TINY.figures(marked)) == {"memory", "time"}
    told = TINY.facts(marked)["settings"][0]["predicted"]
    assert [(p["method"], p["steps"]) for p in told] == [("unrolled, higher", 6)]
    assert any("not run" in finding for finding in render_findings(TINY, marked))


@pytest.mark.parametrize("left_out", sorted(SOME.intersection(METHODS)))
def test_the_findings_need_only_the_methods_that_they_compare_with(rows, left_out):
    methods = [name for name in METHODS if name != left_out]
    if left_out in REPORTED:
        with pytest.raises(UsageError, match=f"no '{left_out}'"):
            replace(TINY, methods=methods)
    else:
        assert render_findings(TINY, rows[rows.method != left_out])


def test_findings_do_without_a_whole_graph_that_was_only_predicted(rows):
    predicted = rows.assign(predicted=rows.predicted | (rows.method == "unrolled, batched"))
    text = " ".join(render_findings(TINY, predicted))
    assert "not run" in text and "checkpointing at" not in text


def test_published_figures_stand_beside_ours_with_their_source_and_status(rows):
    table = published.beside(rows[rows.tasks == 1]).texts()
    assert table.source.all() and table.status.all()
    memory = table[table.what.str.startswith("memory") & (table["our method"] != "implicit, 5 CG")]
    one = memory[(memory["inner steps"] == "1") & (memory.method == "MAML")].iloc[0]
    assert one.ours == format_bytes(int(peaks(rows, "unrolled, higher")[1]))
    # The paper's figure is at 16 steps, which this size does not reach.
    assert memory[memory["inner steps"] == "16"].ours.tolist() == [""]
