"""The table of properties at a tiny size, and the counts that it is made of."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from metalearn.inner import GradientDescent
from metalearn.metagrad import FirstOrder
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.gradient.problems import Logistic
from metalearn.studies.properties.implementation import (
    autodiff_used,
    custom_derivatives,
    functions_run,
    lines_of,
)
from metalearn.studies.properties.study import PropertiesStudy
from metalearn.tree import half_squared_distance

CPU = torch.device("cpu")
TINY = {
    "network": "small",
    "memory_steps": [1, 2, 4],
    "seeds": [0],
    "size": 8,
    "conditions": [10],
    "condition": 10,
    "steps": [1, 4, 16, 200],
    "forward_steps": 4,
    "compute_steps": 3,
    "rtol": 1e-6,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    study = PropertiesStudy(**TINY, results=str(tmp_path_factory.mktemp("empty")))
    return study, pd.DataFrame(
        {**cell, **row} for cell in study.cells() for row in study.measure(cell, CPU)
    )


def test_memory_grows_with_unrolled_steps_alone(found):
    peaks = found[1][found[1].part == "memory"].set_index(["method", "steps"]).peak_bytes
    assert peaks["unrolled", 1] < peaks["unrolled", 2] < peaks["unrolled", 4]
    assert peaks["implicit", 4] <= 1.02 * peaks["implicit", 1]


def test_products_are_counted_for_both(found):
    part = found[1][found[1].part == "compute"]
    unrolled, implicit = (part[part.method == m] for m in ("unrolled", "implicit"))
    assert (unrolled["products"] == 3).all()  # one for each inner step
    # One for each iteration, one for the last residual, one for the mixed derivatives.
    assert (implicit["products"] == implicit.cg_iterations + 2).all()


def test_errors_fall_with_convergence_and_unrolled_is_exact_for_its_steps(found):
    part = found[1][found[1].part == "convergence"].sort_values("steps")
    for _, own in part.groupby("method"):
        assert own.error.is_monotonic_decreasing
        assert own.error.iloc[0] > 0.01 and own.error.iloc[-1] < 1e-8
    unrolled = part[part.method == "unrolled"].dropna(subset="error_of_steps")
    assert unrolled.steps.tolist() == [1, 4]
    assert (unrolled.error_of_steps < 1e-12).all()  # float64, forward mode against reverse


def test_every_claim_names_its_rows(found):
    study, rows = found
    table = study.tables(rows)["The comparison"].texts()
    assert len(table) == 7
    for cell in table.evidence:
        assert cell.startswith("[rows.csv](rows.csv), part = ")
        assert (rows.part == cell.rpartition(" ")[2]).any()


def test_every_property_has_measurements_that_follow_the_rows(found):
    study, rows = found
    numbers = [c for c in rows.select_dtypes("number").columns if c != "steps"]
    other = rows.assign(**{c: 3.7 * rows[c] for c in numbers})
    tables = study.tables(rows)
    before, after = (made["The measurements"].texts() for made in (tables, study.tables(other)))
    changed = before[["unrolled", "implicit"]] != after[["unrolled", "implicit"]]
    by_property = changed.groupby(before.property).any()
    assert set(by_property.index) == set(tables["The comparison"].texts().property)
    assert by_property.all(axis=None)


def test_verdicts_follow_the_rows(found):
    study, rows = found
    facts = study.facts(rows)
    assert facts["verdicts"]["memory"] == "holds" and "memory" in facts["held"]
    assert facts["verdicts"]["products"] == "does not hold"
    grown = rows.copy()
    implicit = (grown.part == "memory") & (grown.method == "implicit")
    grown.loc[implicit, "peak_bytes"] *= grown.loc[implicit, "steps"]
    facts = study.facts(grown)
    assert facts["verdicts"]["memory"] == "does not hold" and "memory" not in facts["held"]


def test_findings_are_written_for_every_verdict(found):
    study, rows = found
    numbers = [c for c in rows.select_dtypes("number").columns if c not in ("steps", "products")]
    other = rows.assign(**{c: 1 + rows[c] * rows.steps.fillna(1) for c in numbers})
    verdicts = study.facts(other)["verdicts"]
    assert list(verdicts.values()).count("does not hold") >= 5
    failed = [name for name, verdict in verdicts.items() if verdict != "holds"]
    assert len(render_findings(study, other)) == 1 + len(failed)


def test_other_studies_are_pointed_to_where_they_lie(found, tmp_path):
    study, rows = found
    assert "table.md" not in str(study.tables(rows)["The comparison"].texts().evidence.tolist())
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "provenance.json").write_text(
        json.dumps({"title": "Memory", "command": "metalearn bench memory", "commit": "abcdef012"})
    )
    (folder / "findings.json").write_text(json.dumps(["It is flat.", "It is linear."]))
    (folder / "rows.csv").write_text("a\n1\n2\n")
    beside = PropertiesStudy(**TINY, results=str(tmp_path))
    rows = rows[rows.part != "evidence"]
    evidence = [
        {**c, **beside.measure(c, CPU)[0]} for c in beside.cells() if c["part"] == "evidence"
    ]
    assert [e["found"] for e in evidence] == [True, False, False]
    assert evidence[0]["commit"] == "abcdef0" and evidence[0]["measured"] == 2
    tables = beside.tables(pd.concat([rows, pd.DataFrame(evidence)]))
    assert "(../memory/table.md)" in tables["The comparison"].texts().evidence[0]
    others = tables["Studies beside this one that measure the same"].texts()
    assert others.finding.tolist() == ["It is flat.", "It is linear."]


def test_the_figure_is_made_from_rows_alone(found):
    assert set(found[0].figures(found[1])) == {"convergence"}


def test_lines_and_custom_derivatives_are_those_of_the_functions_that_ran():
    x = torch.ones(2, 3, requires_grad=True)
    functions = functions_run(lambda: half_squared_distance([x], [x]))
    assert {"half_squared_distance", "forward"} <= {code.co_name for code in functions}
    assert custom_derivatives(functions) == ["_HalfSquaredDistance"]
    (one,) = [code for code in functions if code.co_name == "half_squared_distance"]
    assert len(lines_of({one})) == 2  # a signature and a statement; the docstring is none
    assert not functions_run(lambda: None)


def test_functions_run_leaves_the_studies_out():
    problem = Logistic(10.0, 4, [0])
    files = {
        c.co_filename
        for c in functions_run(
            lambda: FirstOrder(GradientDescent(1, 0.1))(problem, problem.meta, problem.task)
        )
    }
    assert any("metagrad" in file for file in files)
    assert not any("studies" in file for file in files)


def test_calls_of_autograd_are_counted():
    x = torch.tensor(2.0, requires_grad=True)
    before = torch.autograd.grad

    def work():
        (first,) = torch.autograd.grad(x**3, [x], create_graph=True)
        torch.autograd.grad(first, [x], [torch.tensor(1.0)], retain_graph=True)

    assert autodiff_used(work) == {"calls": 2, "create_graph": 1, "retain_graph": 1, "weighted": 1}
    assert torch.autograd.grad is before
