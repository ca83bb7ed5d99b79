"""The cleaning study: its problem, data, trainings, memory and report."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from metalearn.bilevel import SOBA
from metalearn.errors import UsageError
from metalearn.problems.cleaning import Cleaning
from metalearn.studies.cleaning import models
from metalearn.studies.cleaning.data import noisy
from metalearn.studies.cleaning.methods import METHODS, SETTINGS
from metalearn.studies.cleaning.peaks import RECOMPUTED, UNROLLED, measure_peak
from metalearn.studies.cleaning.study import CleaningStudy
from metalearn.studies.cleaning.training import ALL, CLEAN, descent_of, ends, learn_weights
from metalearn.studies.frame.findings import render_findings

CPU = torch.device("cpu")
LINEAR, MLP = SETTINGS["digits_linear"], SETTINGS["digits_mlp"]
TINY = {
    **{"settings": ["digits_linear"], "methods": list(METHODS), "large": [], "seeds": [0]},
    **{"large_methods": ["SOBA"], "wrong": 0.5, "inner_steps": 10, "batch": 32},
    **{"large_batch": 32, "points": 2, "memory_setting": "digits_mlp", "memory_limit": 20},
    **{"memory_methods": ["AmIGO", UNROLLED], "memory_steps": [20, 40]},
}


def test_weights_of_one_give_the_plain_training_loss():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    problem, params = Cleaning(model, decay=0.1), dict(model.named_parameters())
    x, y, i = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]), torch.arange(5)
    found = problem.inner_loss(params, {"logits": torch.full((5,), 40.0)}, (x, y, i))
    squares = sum(p.square().sum() for p in model.parameters())
    expected = nn.functional.cross_entropy(model(x), y) + 0.05 * squares
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_moves_the_weights_of_its_examples_alone():
    data = noisy("digits", 0.5, 0, CPU)
    descent = descent_of(LINEAR, data, SOBA(), 8, 0)
    for _ in range(3):
        descent.step()
    assert 0 < int((descent.meta["logits"] != 0).sum()) <= 3 * 8


def test_a_model_with_running_statistics_is_refused():
    with pytest.raises(UsageError, match="expected none, for they would change from one"):
        Cleaning(nn.BatchNorm1d(3))


def test_the_share_of_wrong_labels_is_as_asked():
    data = noisy("digits", 0.25, 3, CPU)
    assert (~data.clean).sum() == round(0.25 * len(data.train))
    again = noisy("digits", 0.5, 3, CPU)
    assert torch.equal(data.train.x, again.train.x)
    kept = data.clean & again.clean
    assert torch.equal(data.train.y[kept], again.train.y[kept])


def test_the_resnet_keeps_no_statistics_and_has_second_derivatives():
    torch.manual_seed(0)
    problem = Cleaning(models.resnet(7, width=4))
    descent_params = {name: p.detach().requires_grad_() for name, p in problem.init({}).items()}
    logits = torch.zeros(4, requires_grad=True)
    batch = torch.randn(4, 1, 28, 28), torch.arange(4), torch.arange(4)
    loss = problem.inner_loss(descent_params, {"logits": logits}, batch)
    grads = torch.autograd.grad(loss, list(descent_params.values()), create_graph=True)
    (mixed,) = torch.autograd.grad(sum(g.square().sum() for g in grads), logits)
    assert mixed.abs().min() > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_to_tell_wrong_labels(name):
    data = noisy("digits", 0.5, 0, CPU)
    rows = learn_weights(LINEAR, data, name, 300, 32, 2, 0)
    assert rows[-1]["inner_steps"] >= 300
    assert rows[-1]["auc"] > 0.7 and rows[-1]["clean_weight"] > rows[-1]["wrong_weight"]


def test_implicit_memory_is_flat_and_unrolled_memory_is_predicted_on_its_line():
    data = noisy("digits", 0.5, 0, CPU)

    def peak(name: str, steps: int, limit: int) -> dict:
        return measure_peak(MLP, data, name, steps, 16, limit, CPU)

    for name in ("AmIGO", "F2SA"):
        few, many = (peak(name, steps, 0)["peak_bytes"] for steps in (5, 60))
        assert many == pytest.approx(few, rel=0.05)
    for name in (UNROLLED, RECOMPUTED):
        guess, found = (peak(name, 80, limit) for limit in (0, 80))
        assert guess["predicted"] and not found["predicted"]
        assert guess["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.05)


def test_a_study_reports_areas_accuracies_and_memory():
    study = CleaningStudy(**TINY | {"methods": ["SOBA"]})
    rows = pd.DataFrame(
        {**cell, **row} for cell in study.cells() for row in study.measure(cell, CPU)
    )
    first, memory = study.tables(rows).values()
    assert list(first.texts().method) == [CLEAN, ALL, "SOBA"]
    assert memory.texts().iloc[1]["40"].startswith("*")
    assert set(study.figures(rows)) == {"cleaning", "cleaning_memory"}
    text = " ".join(render_findings(study, rows))
    assert 'At 40 inner steps, the method "unrolled" takes' in text and "(predicted)" in text


def test_a_large_setting_has_one_seed_and_its_own_methods():
    options = TINY | {"seeds": [0, 1], "large": ["omniglot_resnet"]}
    cells = [c for c in CleaningStudy(**options).cells() if c["setting"] == "omniglot_resnet"]
    assert [c["method"] for c in cells] == [CLEAN, ALL, "SOBA"]
    with pytest.raises(UsageError, match="expected no common name"):
        CleaningStudy(**options | {"large": ["digits_linear"]})


def test_points_are_at_equal_distances():
    assert ends(20, 4) == [5, 10, 15, 20] and ends(2, 5) == [1, 2]
