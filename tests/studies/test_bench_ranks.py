"""The study of several ranks: what it makes of seconds, and one small run."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.ranks.study import RanksStudy

OPTIONS = {"ranks": [1, 2], "methods": ["maml_batched"], "meta_batch": 2, "steps": 7, "rounds": 2}
CPU = torch.device("cpu")


def test_measure_takes_ratios_round_by_round(monkeypatch):
    # The second round finds the machine twice as slow: it moves no ratio.
    seconds = iter([1.0, 0.5, 0.8, 1.0, 1.6, 2.0])
    losses = {(1, 1): 0.5, (2, 1): 0.45, (1, 2): 0.51}
    monkeypatch.setattr(
        RanksStudy, "_train", lambda self, method, *way: (next(seconds), losses[way])
    )
    study = RanksStudy(**OPTIONS)
    (cell,) = study.cells()
    rows = pd.DataFrame([{**cell, **row} for row in study.measure(cell, CPU)])
    assert list(zip(rows.ranks, rows.threads, strict=True)) == [(1, 1), (2, 1), (1, 2)]
    assert list(rows.speed_up) == [1.0, 2.0, 1.25]
    (facts,) = study.facts(rows)["methods"]
    shared, threaded = facts["shared"], facts["threaded"]
    assert (shared["ranks"], shared["speed_up"]) == (2, 2.0)
    assert (threaded["threads"], threaded["speed_up"]) == (2, 1.25)
    assert shared["loss_change"] == pytest.approx(0.1)
    assert threaded["loss_change"] == pytest.approx(0.02)
    assert len(render_findings(study, rows)) == 2
    (table,) = study.tables(rows).values()
    assert table.texts()["times as fast"].str.split().str[0].tolist() == ["1.00", "2.00", "1.25"]
    assert set(study.figures(rows)) == {"speed_up"}


@pytest.mark.slow
def test_processes_train_the_same_run():
    study = RanksStudy(**OPTIONS)
    (alone, loss), (shared, same) = (study._train("maml_batched", n, 1) for n in (1, 2))
    assert min(alone, shared) > 0 and same == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ranks": [2, 4]}, "expected 1 and larger numbers"),
        ({"ranks": [1]}, "expected 1 and larger numbers"),
        ({"ranks": [0, 1]}, "ranks[0]=0: expected at least 1"),
        ({"ranks": [1, 3]}, "up to meta_batch=2"),
        ({"methods": []}, "methods=[]: expected"),
        ({"steps": 6}, "steps=6: expected a number above 6"),
        ({"rounds": 1}, "rounds=1: expected at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        RanksStudy(**(OPTIONS | options))


def test_another_device_is_refused():
    with pytest.raises(UsageError, match="device=cuda: expected cpu"):
        RanksStudy(**OPTIONS).measure({"method": "imaml"}, torch.device("cuda"))
