"""The study of differences: every change is of the base's options, and stands beside it."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from metalearn import config
from metalearn.bench import differences_report
from metalearn.bench.differences import DifferencesStudy
from metalearn.bench.differences_changes import BASES, CHANGES
from metalearn.bench.unchecked_cg import UncheckedCG
from metalearn.experiment import build
from metalearn.linear_solve import CG, Status

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


def systems(low: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Five symmetric 8x8 matrices with one eigenvalue `low` and the others from 1 to 2; b."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(5, 8, 8, generator=generator, dtype=torch.float64))
    values = torch.linspace(1, 2, 8, dtype=torch.float64)
    values[0] = low
    return basis @ (values[:, None] * basis.mT), torch.randn(5, 8, generator=generator).double()


def test_unchecked_cg_is_cg_where_the_system_is_definite():
    A, b = systems(0.5)

    def product(v):
        return (A @ v[..., None])[..., 0]

    for iterations in (1, 3, 5):
        unchecked = UncheckedCG(iterations)(product, b, batched=True)
        checked = CG(iterations, rtol=0.0)(product, b, batched=True)
        torch.testing.assert_close(unchecked.value, checked.value)
        assert (unchecked.status == Status.MAX_ITERS).all()
        assert (unchecked.iterations == iterations).all()


def test_unchecked_cg_goes_through_negative_curvature_and_says_so():
    A, b = systems(-0.5)
    solution = UncheckedCG(8)(lambda v: (A @ v[..., None])[..., 0], b, batched=True)
    # In as many iterations as there are unknowns even an indefinite system is solved, where no
    # step's curvature happens to be near 0.
    exact = torch.linalg.solve(A, b)
    torch.testing.assert_close(solution.value, exact, rtol=1e-6, atol=1e-6)
    assert (solution.status == Status.NEGATIVE_CURVATURE).all()
    checked = CG(8, rtol=0.0)(lambda v: (A @ v[..., None])[..., 0], b, batched=True)
    assert (checked.iterations < 8).all()
