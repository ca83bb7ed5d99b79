"""The study of differences: every change composes, and stands beside its base."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from metalearn import config
from metalearn.config.build import build
from metalearn.studies.differences import report as differences_report
from metalearn.studies.differences.changes import BASES, CHANGES
from metalearn.studies.differences.study import DifferencesStudy
from metalearn.studies.frame.accuracy import own_rows
from metalearn.studies.frame.findings import render_findings

CPU = torch.device("cpu")
WORDS = ["tasks=glyphs", "tasks.dataset.drawings=4", "model.channels=4", "meta_batch=2"]
WORDS += ["metagrad.inner.steps=4"]


def composed(change):
    words = [f"experiment={BASES[change.base]}", "model.channels=4", *change.overrides]
    return config.compose("train", words)


def test_changes_compose_and_no_two_of_a_base_are_the_same_run():
    texts = {}
    for change in CHANGES:
        cfg = composed(change)
        build(cfg.metagrad)
        build(cfg.optimiser)
        cfg.name = ""
        texts[change.name] = change.base + OmegaConf.to_yaml(cfg, resolve=True)
    assert len(texts) == len(CHANGES)
    for a, b in itertools.combinations(texts, 2):
        assert texts[a] != texts[b], (a, b)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> DifferencesStudy:
    return DifferencesStudy(
        bases=["authors", "paper"],
        subjects=["outer eps"],
        seeds=[0, 1],
        base_seeds=[],
        steps=2,
        overrides=WORDS,
        validation_every=1,
        validation_tasks=4,
        test_tasks=8,
        inner_steps=[2],
        runs=str(tmp_path_factory.mktemp("runs")),
    )


@pytest.fixture(scope="module")
def rows(study: DifferencesStudy) -> pd.DataFrame:
    return pd.DataFrame(
        [{**cell, **row} for cell in study.cells() for row in study.measure(cell, CPU)]
    )


def test_changes_always_hold_the_bases(study):
    names = list(study.changes())
    assert names[0] == "authors" and "paper" in names
    assert set(study.changes().values()) <= set(CHANGES)
    assert {c.subject for c in study.changes().values()} == {"", "outer eps"}


def texts(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [table.texts() for table in differences_report.tables(rows).values()]


def test_tables_show_each_change_beside_its_base(rows, study):
    authors, paper, at_test = texts(rows)
    assert list(authors.change) == ["none", "outer eps"]
    assert list(paper.to) == ["", "0.001"]
    assert authors.difference[0] == ""
    test = own_rows(rows, "transductive")
    change = test[test.change == "authors: outer eps 1e-08"].set_index("seed").accuracy
    base = test[test.change == "authors"].set_index("seed").accuracy
    gain = 100 * (change - base).mean()
    assert authors.difference[1].startswith(f"{gain:+.2f} ± ")
    assert set(at_test["inner steps at test"]) == {"2", "4"}
    assert set(differences_report.figures(rows)) == {"authors", "paper"}
    assert set(authors["at meta-step"]) <= {"1", "2", "1 to 2"}
    for facts in differences_report.facts(rows)["bases"]:
        significant = [row["gain"] for row in (*facts["raised"], *facts["lowered"])]
        assert all(abs(gain.mean) > gain.interval for gain in significant)
        assert facts["within"] + len(significant) == facts["changes"] == 1
    assert any(" 1 change " in s or "significantly" in s for s in render_findings(study, rows))


def test_facts_split_the_changes_by_significance(rows, study):
    shifted = rows[rows.base == "paper"].copy()
    changed = (shifted.part == "test") & (shifted.change != "paper")
    for sign, part, verb in ((1, "raised", "raise"), (-1, "lowered", "lower")):
        start = shifted[shifted.part == "test"].accuracy * 0 + 0.5
        shifted.loc[shifted.part == "test", "accuracy"] = start + 0.2 * sign * changed
        (facts,) = differences_report.facts(shifted)["bases"]
        (row,) = facts[part]
        assert row["change"] == "outer eps 0.001" and row["gain"].mean == pytest.approx(20 * sign)
        assert facts["within"] == 0 and facts["false_positives"] == pytest.approx(0.05)
        assert any(f"that {verb} the accuracy" in s for s in render_findings(study, shifted))
    shifted.loc[shifted.part == "test", "accuracy"] = 0.5
    (facts,) = differences_report.facts(shifted)["bases"]
    assert facts["within"] == 1 and not facts["raised"] and not facts["lowered"]


def test_report_gives_the_reason_of_an_early_end_and_a_fall(rows, study):
    broken = rows.copy()
    broken.loc[broken.change == "paper", "why"] = "stopped at meta-step 3; see runs/x"
    later = (broken.change == "paper") & (broken.part == "curve") & (broken.step == 2)
    broken.loc[broken.change == "paper", "accuracy_interval"] = 0.01
    broken.loc[(broken.change == "paper") & (broken.part == "curve"), "accuracy"] = 0.5
    broken.loc[later, "accuracy"] = 0.25
    _, paper, _ = texts(broken)
    assert paper["ended early"][0] == "stopped at meta-step 3"
    assert (paper["best validation"][0], paper["last"][0]) == ("50.0", "25.0")
    _, facts = differences_report.facts(broken)["bases"]
    fell = next(row for row in facts["falls"] if row["name"] == "the paper's algorithm")
    assert (fell["best"], fell["at"], fell["last"]) == (50, "1", 25)
    told = " ".join(render_findings(study, broken))
    assert "the paper's algorithm (from 50.0 % at 1 to 25.0 %)" in told


def test_measure_has_no_share_of_solves_for_a_first_order_gradient(study):
    first_order = next(c for c in CHANGES if c.name == "authors: meta-gradient first-order")
    other = dataclasses.replace(study, subjects=["meta-gradient"], steps=1)
    (row, *_) = other.measure({"change": first_order.name, "seed": 0}, CPU)
    assert row["part"] == "curve" and row["negative_curvature"] is None


def test_report_holds_when_guards_stopped_every_run(study):
    rows = pd.DataFrame([{"part": "stopped", "change": "authors", "base": "authors", "seed": 0}])
    assert differences_report.tables(rows) and not differences_report.figures(rows)
    assert differences_report.facts(rows) == {"bases": [], "judged": False, "stopped": ["authors"]}
    assert render_findings(study, rows) == [
        "Stopped by a guard before the first validation: authors."
    ]


@pytest.mark.parametrize("base", BASES)
def test_changes_of_training_alone_are_judged_by_the_same_tasks(base):
    own = [composed(change).tasks for change in CHANGES if change.base == base]
    queries = {tasks.queries if tasks.test_queries is None else tasks.test_queries for tasks in own}
    assert len(queries) == 1


def test_difference_of_made_up_accuracies():
    def group(*accuracies: float) -> pd.DataFrame:
        return pd.DataFrame(
            {"seed": range(len(accuracies)), "accuracy": accuracies, "accuracy_interval": 0.03}
        )

    paired = differences_report.difference(group(0.8, 0.9, 0.7), group(0.7, 0.8, 0.6))
    assert paired.mean == pytest.approx(10) and paired.interval == pytest.approx(0, abs=1e-9)
    alone = differences_report.difference(group(0.8), group(0.7))
    assert alone.mean == pytest.approx(10)
    assert alone.interval == pytest.approx(3 * 2**0.5)  # points: sqrt(3^2 + 3^2)


def test_difference_interval_holds_95_percent_of_unchanged_runs():
    generator, held, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        accuracy = generator.normal(0.6, 0.02, 6)
        rows = pd.DataFrame({"seed": range(6), "accuracy": accuracy, "accuracy_interval": 0.001})
        gain = differences_report.difference(rows[:1], rows[1:])
        held += abs(gain.mean) <= gain.interval
    assert held / trials == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_cells_end_with_the_further_seeds_of_the_bases(study):
    more = dataclasses.replace(study, base_seeds=[1, 2, 3])
    added = more.cells()[len(study.cells()) :]
    assert more.cells()[: len(study.cells())] == study.cells()
    assert added == [{"change": base, "seed": seed} for seed in (2, 3) for base in study.bases]
