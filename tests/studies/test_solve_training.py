"""The study of a whole training: its problem, its trainings and its report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from metalearn.bilevel import Descent, TruncatedUnrolling
from metalearn.errors import UsageError
from metalearn.problems.scheduled_training import GROUPS, ScheduledTraining, augment
from metalearn.studies.cleaning import models
from metalearn.studies.cleaning.data import Noisy, noisy
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.training.measure import descent_of, train
from metalearn.studies.training.study import TrainingStudy
from metalearn.studies.training.variants import SETTINGS, VARIANTS
from metalearn.tasks.image_splits import Labelled

CPU = torch.device("cpu")
START = {"rates": 0.1, "decays": -2.0, "strengths": -2.5}


def small_problem(**start):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.SiLU(), nn.Linear(5, 3)).double()
    return ScheduledTraining(model, {**START, **start})


def test_strengths_of_zero_leave_images_unmoved():
    x = torch.rand(4, 2, 7, 5, dtype=torch.float64)
    assert torch.allclose(augment(x, torch.zeros(4, dtype=torch.float64)), x, atol=1e-12)


def test_each_image_moves_by_draws_of_its_own():
    x = torch.rand(1, 1, 8, 8).expand(3, 1, 8, 8)
    moved = augment(x, torch.full((4,), 0.2))
    assert moved.shape == x.shape
    assert not torch.allclose(moved[0], moved[1]) and not torch.allclose(moved[1], moved[2])


def test_the_hypergradient_of_every_group_is_that_of_finite_differences():
    problem = small_problem()
    # Smooth images: bilinear interpolation has kinks, between which the draws must not move.
    x = torch.linspace(0, 1, 6, dtype=torch.float64).expand(8, 1, 6, 6) + torch.arange(8).view(
        8, 1, 1, 1
    )
    data = TensorDataset(x, torch.arange(8) % 3)

    def run(meta):
        loaders = [DataLoader(data, 8) for _ in range(2)]
        optimiser = partial(SGD, lr=0.2, momentum=0.5)
        torch.manual_seed(1)
        descent = Descent(problem, TruncatedUnrolling(3, 3), meta, *loaders, optimiser)
        torch.manual_seed(2)
        return descent.step()

    meta = problem.begin(GROUPS)
    found = run(meta).grads
    for name in GROUPS:
        for i in range(len(meta[name])):
            moves = [meta[name].clone() for _ in range(2)]
            moves[0][i] += 1e-6
            moves[1][i] -= 1e-6
            ends = [run({**meta, name: move}).outer_loss for move in moves]
            # 1e-7: rounding of 1e-15 over a step of 1e-6, on a slope of up to 0.1.
            assert found[name][i].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_a_layer_has_one_rate_and_one_decay():
    problem = small_problem(rates=torch.tensor([0.0, 1.0]), decays=torch.tensor([-30.0, 0.0]))
    rates = problem.inner_rates({})
    assert problem.layers == ["1", "3"] and set(rates) == set(problem.init({}))
    assert [rates[name].item() for name in ("1.weight", "1.bias")] == [1.0, 1.0]
    assert rates["3.weight"].item() == rates["3.bias"].item() == pytest.approx(2.718281828)
    params = problem.init({})
    batch = torch.rand(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(3)
    loss = problem.inner_loss(params, {}, batch)
    torch.manual_seed(3)
    moved = augment(batch[0], problem.start["strengths"].exp())
    squares = params["3.weight"].square().sum() + params["3.bias"].square().sum()
    expected = problem.outer_loss(params, {}, (moved, batch[1])) + squares / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ({"rates": 0.0}, "start has rates: expected rates, decays, strengths"),
        ({**START, "decays": float("nan")}, "expected logarithms"),
    ],
)
def test_an_unfit_start_is_refused(start, sentence):
    with pytest.raises(UsageError, match=sentence):
        ScheduledTraining(nn.Linear(2, 2), start)


@pytest.mark.parametrize("variant", ["decays", "soba"])
def test_a_decay_that_is_too_large_is_learned_to_be_smaller(variant):
    setting, data = replace(SETTINGS["digits"], decay=0.3), noisy("digits", 0.0, 0, CPU)
    descent = descent_of(setting, data, VARIANTS[variant], 200, 5, 32, 0.1, 0)
    end = train(descent, data, 200, 1)[-1]
    decays = [value for name, value in end.items() if name.startswith("decay ")]
    assert len(decays) == 2 and max(decays) < 0.25


def test_the_resnet18_has_the_shapes_and_the_parameters_of_the_published_one():
    model = models.resnet18(1000, in_channels=3)
    # 11.69 M: table 1 of He et al. 2016 with batch norm, biases in the last layer alone.
    blocks = [64, 64, 128, 128, 256, 256, 512, 512]
    inputs = [64, *blocks[:-1]]
    expected = 3 * 64 * 49 + 2 * 64 + 512 * 1000 + 1000
    for a, b in zip(inputs, blocks, strict=True):
        expected += 9 * a * b + 9 * b * b + 4 * b + (a * b + 2 * b if a != b else 0)
    assert sum(p.numel() for p in model.parameters()) == expected == 11_689_512
    small = models.resnet18(7, width=4)
    x = torch.randn(3, 1, 28, 28)
    assert [small[:n](x).shape[1:] for n in (4, 6, 8, 10, 12)] == [
        *((4, 7, 7), (4, 7, 7), (8, 4, 4), (16, 2, 2), (32, 1, 1))
    ]
    assert small(x).shape == (3, 7)


@pytest.mark.parametrize("variant", ["all", "soba"])
def test_two_outer_steps_of_a_resnet18_move_the_hyper_parameters(variant):
    torch.manual_seed(0)
    parts = [Labelled(torch.randn(8, 1, 28, 28), torch.arange(8) % 3) for _ in range(3)]
    data = Noisy(parts[0], torch.ones(8, dtype=torch.bool), *parts[1:], 3)
    setting = replace(SETTINGS["glyphs_resnet18"], model=partial(models.resnet18, width=2))
    descent = descent_of(setting, data, VARIANTS[variant], 4, 2, 4, 0.02, 0)
    before = {name: value.clone() for name, value in descent.meta.items()}
    (row,) = train(descent, data, 2 * getattr(descent.method, "steps", 1), 1)
    assert descent.count == 2 and not row["diverged"]
    for name in before:
        assert (descent.meta[name] != before[name]).all()


def test_the_study_reports_what_each_variant_learned():
    study = TrainingStudy(["digits"], list(VARIANTS), [0, 1], 10, 5, 16, 0.05, 2)
    rows = pd.DataFrame([{**c, **row} for c in study.cells() for row in study.measure(c, CPU)])
    assert set(rows[rows.variant == "fixed"].stage) == {"learned"}
    assert set(rows[rows.variant == "all"].stage) == {"learned", "retrained"}
    again = rows[(rows.variant == "all") & (rows.stage == "retrained")]
    learned = rows[(rows.variant == "all") & (rows.stage == "learned") & (rows.point == 1)]
    assert again.groupby("seed")["strength turn"].nunique().eq(1).all()
    assert set(again["strength turn"]) == set(learned["strength turn"])
    accuracy, values = (table.texts() for table in study.tables(rows).values())
    assert accuracy.learned.tolist() == [v.title for v in VARIANTS.values()]
    assert values.value.str.startswith("rate ").sum() == 2
    assert set(study.figures(rows)) == {"training", "training_values"}
    assert any("trained again" in f.lower() for f in render_findings(study, rows))


def test_a_window_that_does_not_divide_the_steps_is_refused():
    with pytest.raises(UsageError, match="expected a multiple of window=7"):
        TrainingStudy(["digits"], ["all"], [0], 10, 7, 16, 0.05, 2)
