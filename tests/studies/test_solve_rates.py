"""The study of convergence rates: its cells, measurements and report."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.rates.curves import CURVES
from metalearn.studies.rates.measure import fitted_slope
from metalearn.studies.rates.report import slopes
from metalearn.studies.rates.study import RatesStudy

TINY = {
    **{"curves": ["soba_minibatch", "f2sa", "saba_moving"], "problems": ["quadratic", "logistic"]},
    **{"steps": 16, "replicas": 4, "batch": 4, "examples": 32, "seed": 0},
}


def made_up() -> pd.DataFrame:
    """Points exactly on a slope: SOBA's is that of theory, SABA's is above its bound."""
    found = []
    for curve, slope, theory in (("soba_minibatch", -0.5, -0.5), ("saba_moving", -0.5, -1.0)):
        for x in (10.0, 20.0, 40.0):
            cell = {"curve": curve, "problem": "quadratic"}
            found.append({**cell, "x": x, "error": x**slope, "theory": theory})
    return pd.DataFrame(found)


def test_a_moving_meta_is_measured_on_the_quadratic_alone():
    cells = [(c["curve"], c["problem"]) for c in RatesStudy(**TINY).cells()]
    assert ("saba_moving", "logistic") not in cells and ("saba_moving", "quadratic") in cells
    assert len(cells) == 5
    whole = RatesStudy(**TINY | {"curves": list(CURVES)}).cells()
    assert {c["curve"] for c in whole} == set(CURVES)


def test_rows_are_points_with_the_slope_of_theory():
    study = RatesStudy(**TINY)
    rows = study.measure({"curve": "soba_minibatch", "problem": "logistic"}, torch.device("cpu"))
    assert all(row["error"] > 0 and row["theory"] == -0.5 for row in rows)
    assert [row["x"] for row in rows] == sorted(row["x"] for row in rows)


def test_the_report_tells_slopes_that_keep_a_bound_from_others():
    rows, study = made_up(), RatesStudy(**TINY)
    found = {one["name"]: one["slope"] for one in slopes(rows)}
    assert found == pytest.approx({"soba_minibatch": -0.5, "saba_moving": -0.5})
    (table,) = study.tables(rows).values()
    assert list(table.texts()["slope by theory"]) == ["-0.500", "at most -1.000"]
    text = " ".join(render_findings(study, rows))
    assert "at most 0.0 % of it, over 1 curve" in text
    assert "at or below it in 0 of 1 curve" in text
    assert set(study.figures(rows)) == {"rates_minibatches", "rates_moving"}


def test_a_slope_is_that_of_the_points():
    points = [(x, 3 * math.exp(-0.2 * x)) for x in (1.0, 2.0, 5.0)]
    assert fitted_slope(points, log=False) == pytest.approx(-0.2)
    assert fitted_slope([(x, 7 / x) for x in (1.0, 2.0, 8.0)], log=True) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 5}, "steps=5: expected at least 16, for a slope"),
        ({"examples": 7}, "examples=7: expected at least two batches of batch=4"),
        ({"curves": ["bome"], "problems": ["logistic"]}, "expected quadratic, the only problem"),
        ({"curves": ["adam"]}, "adam"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        RatesStudy(**TINY | options)
