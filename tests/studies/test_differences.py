"""The study of differences: every change is of the base's options, and stands beside it."""

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

CPU = torch.device("cpu")


def composed(change):
    words = [f"experiment={BASES[change.base]}", "model.channels=4", *change.words]
    return config.compose("train", words)


def test_every_change_composes_and_no_two_of_a_base_are_the_same_run():
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
        words=["tasks=glyphs", "tasks.dataset.drawings=4", "model.channels=4", "meta_batch=2"],
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


def test_the_bases_are_measured_whatever_is_changed(study):
    names = list(study.changes())
    assert names[0] == "authors" and "paper" in names
    assert set(study.changes().values()) <= set(CHANGES)
    assert {c.subject for c in study.changes().values()} == {"", "outer eps"}


def test_each_change_stands_beside_its_base(rows):
    authors, paper, at_test = differences_report.tables(rows).values()
    assert list(authors.change) == ["none", "outer eps"]
    assert list(paper.to) == ["", "0.001"]
    assert authors.difference[0] == ""
    test = differences_report.judged(rows)
    change = test[test.change == "authors: outer eps 1e-08"].set_index("seed").accuracy
    base = test[test.change == "authors"].set_index("seed").accuracy
    assert authors.difference[1].startswith(f"{100 * (change - base).mean():+.2f} ± ")
    assert set(at_test["inner steps at test"]) == {"2", "16"}
    assert set(differences_report.figures(rows)) == {"authors", "paper"}
    assert any("stay within" in s or "changes that" in s for s in differences_report.findings(rows))
    assert set(authors["at meta-step"]) <= {"1", "2", "1 to 2"}


def test_a_run_that_ended_early_says_why_in_short_and_a_fall_is_told(rows):
    broken = rows.copy()
    broken.loc[broken.change == "paper", "why"] = "stopped at meta-step 3; see runs/x"
    later = (broken.change == "paper") & (broken.part == "curve") & (broken.step == 2)
    broken.loc[broken.change == "paper", "accuracy_interval"] = 0.01
    broken.loc[(broken.change == "paper") & (broken.part == "curve"), "accuracy"] = 0.5
    broken.loc[later, "accuracy"] = 0.25
    _, paper, _ = differences_report.tables(broken).values()
    assert paper["ended early"][0] == "stopped at meta-step 3"
    assert (paper["best validation"][0], paper["last"][0]) == ("50.0", "25.0")
    said = " ".join(differences_report.findings(broken))
    assert "the paper's algorithm (from 50.0 % at 1 to 25.0 %)" in said


def test_what_solves_nothing_has_no_share_of_solves(study):
    first_order = next(c for c in CHANGES if c.name == "authors: meta-gradient first-order")
    other = dataclasses.replace(study, subjects=["meta-gradient"], steps=1)
    (row, *_) = other.measure({"change": first_order.name, "seed": 0}, CPU)
    assert row["part"] == "curve" and row["negative_curvature"] is None


def test_a_study_that_guards_stopped_altogether_says_so():
    rows = pd.DataFrame([{"part": "stopped", "change": "authors", "base": "authors", "seed": 0}])
    assert differences_report.tables(rows) and not differences_report.figures(rows)
    (found,) = differences_report.findings(rows)
    assert found.startswith("Stopped by a guard")


def test_changes_of_training_alone_are_judged_by_the_same_tasks():
    same = {composed(change).tasks.test_queries for change in CHANGES if change.base == "authors"}
    assert len(same) == 1


def test_a_difference_is_that_of_made_up_accuracies():
    def group(*accuracies: float) -> pd.DataFrame:
        return pd.DataFrame(
            {"seed": range(len(accuracies)), "accuracy": accuracies, "accuracy_interval": 0.03}
        )

    paired = differences_report.difference(group(0.8, 0.9, 0.7), group(0.7, 0.8, 0.6))
    assert paired.mean == pytest.approx(10) and paired.interval == pytest.approx(0, abs=1e-9)
    alone = differences_report.difference(group(0.8), group(0.7))
    assert alone.mean == pytest.approx(10)
    assert alone.interval == pytest.approx(3 * 2**0.5)  # points: sqrt(3^2 + 3^2)


def test_more_seeds_of_the_base_tell_how_far_chance_goes():
    """A change's interval holds 95 % of the runs that differ from the base in nothing."""
    generator, held, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        accuracy = generator.normal(0.6, 0.02, 6)
        rows = pd.DataFrame({"seed": range(6), "accuracy": accuracy, "accuracy_interval": 0.001})
        gain = differences_report.difference(rows[:1], rows[1:])
        held += abs(gain.mean) <= gain.interval
    assert held / trials == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_further_seeds_of_the_bases_alone_come_last(study):
    more = dataclasses.replace(study, base_seeds=[1, 2, 3])
    added = more.cells()[len(study.cells()) :]
    assert more.cells()[: len(study.cells())] == study.cells()
    assert added == [{"change": base, "seed": seed} for seed in (2, 3) for base in BASES]
