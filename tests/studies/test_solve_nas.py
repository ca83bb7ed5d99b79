"""Architecture search: its gradients against exact ones, its cells, and what its rows mean."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from zoo import finite_differences, relative_difference

from metalearn.commands.main import main
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, Unrolled
from metalearn.nn.mixed_cell import OPERATIONS, MixedCell, edges
from metalearn.problems.architecture import Search
from metalearn.problems.training_task import TrainingTask
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.nas.study import NASStudy
from metalearn.tasks.image_splits import Labelled

CPU = torch.device("cpu")
TINY = NASStudy(
    seeds=[0],
    dataset="digits",
    source=None,
    test=0.6,
    validation=0.4,
    train=60,
    nodes=2,
    channels=2,
    decay=1e-3,
    methods=["first_order", "gauss_newton"],
    warmup=2,
    weight_steps=2,
    weight_lr=0.03,
    solver_iters=2,
    damping=1.0,
    steps=3,
    lr=0.1,
    random=3,
    retrain_steps=3,
    retrain_lr=0.02,
    retrain_starts=2,
)
MIXED = [("skip", "conv_1x1"), ("none", "avg_pool", "conv_3x3"), ("skip", "conv_1x1")]


def double(params):
    return {name: p.double() for name, p in params.items()}


def small(choices=MIXED, nodes=2):
    """Two channels, two starts, images of 4x4; mixtures that are not equal."""
    torch.manual_seed(0)
    cell = MixedCell(choices, nodes, channels=2, classes=3)
    x, y = torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.arange(9) % 3
    problem = Search(cell, Labelled(x[:6], y[:6]), decay=0.05)
    meta = {name: torch.randn_like(a) for name, a in double(cell.alphas(CPU)).items()}
    return problem, meta, TrainingTask(double(cell.weights(2, CPU)), x[6:], y[6:])


ONE_STEP = GradientDescent(1, 0.2)
SEVERAL = GradientDescent(4, 0.2, momentum=0.9)
NEWTON = NewtonCG(40, cg_iters=20, tol=1e-11)


@pytest.mark.parametrize(
    "metagrad",
    [Unrolled(ONE_STEP, "batched", truncate=1), Unrolled(SEVERAL, "batched")],
    ids=["one step", "several"],
)
def test_unrolled_gradients_are_those_of_finite_differences(metagrad):
    problem, meta, task = small()
    expected = finite_differences(problem, meta, task, metagrad.inner)
    # Fourth-order differences at 1e-3: 1e-12 of truncation and 1e-16 / 1e-3 of rounding.
    assert relative_difference(metagrad(problem, meta, task).grads, expected) < 1e-8


def test_implicit_gradients_are_those_of_the_solved_problem():
    problem, meta, task = small([("skip", "avg_pool", "conv_3x3")], nodes=1)
    solved = FirstOrder(NEWTON).adapt(problem, meta, task)
    assert solved.grad_norm.max() < 1e-10
    task = dataclasses.replace(task, params=solved.params)  # all solves end in one minimum
    expected = finite_differences(problem, meta, task, NEWTON)
    found = Implicit(NEWTON, CG(100, rtol=1e-12))(problem, meta, task).grads
    # 1e-12 of truncation and 1e-11 / 1e-3 of the inner solve.
    assert relative_difference(found, expected) < 1e-6
    first_order = FirstOrder(NEWTON)(problem, meta, task).grads
    assert relative_difference(first_order, expected) > 0.01  # which is another gradient


def test_one_step_of_several_is_the_last_ones_derivative():
    """DARTS' second order: the weights before the last step are constants."""
    problem, meta, task = small()
    several, before = GradientDescent(4, 0.2), GradientDescent(3, 0.2)
    last = dataclasses.replace(task, params=FirstOrder(before).adapt(problem, meta, task).params)
    found = Unrolled(several, "batched", truncate=1)(problem, meta, task)
    expected = finite_differences(problem, meta, last, ONE_STEP)
    assert relative_difference(found.grads, expected) < 1e-6


def test_the_first_order_gradient_holds_the_weights_still():
    problem, meta, task = small()
    found = FirstOrder(SEVERAL)(problem, meta, task)
    still = dataclasses.replace(task, params=found.inner.params)
    expected = finite_differences(problem, meta, still, GradientDescent(0, 0.2))
    assert relative_difference(found.grads, expected) < 1e-6
    whole = finite_differences(problem, meta, task, SEVERAL)
    assert relative_difference(found.grads, whole) > 1e-2  # which is another gradient


def test_a_mixed_edge_is_the_sum_of_its_operations():
    """The cell computed edge by edge, with torch's own layers."""
    torch.manual_seed(0)
    cell = MixedCell([tuple(OPERATIONS)] * 3, nodes=2, channels=3, classes=10)
    weights = double(cell.weights(2, CPU))
    alphas = {name: torch.randn_like(a) for name, a in double(cell.alphas(CPU)).items()}
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    found = Search(cell, Labelled(x, torch.arange(5)), 0.0).predict(weights, alphas, x)
    for task in range(2):
        own = {name: w[task] for name, w in weights.items()}

        def edge(name, state, own=own):
            def conv(side):
                return F.conv2d(state, own[f"{name} conv_{side}x{side}"], padding=side // 2)

            parts = [0 * state, state, F.avg_pool2d(state, 3, 1, 1), conv(1), conv(3), conv(5)]
            shares = alphas[name].softmax(0)
            return sum(share * part for share, part in zip(shares, parts, strict=True))

        def node(j, total, own=own):
            return F.silu(total + own[f"nodes.{j}.bias"][:, None, None])

        first = F.silu(F.conv2d(x, own["stem.weight"], own["stem.bias"], padding=1))
        second = node(0, edge("0 to 1", first))
        third = node(1, edge("0 to 2", first) + edge("1 to 2", second))
        expected = F.linear(third.mean((2, 3)), own["head.2.weight"], own["head.2.bias"])
        assert torch.allclose(found[task], expected, atol=1e-12)


def test_an_edge_becomes_the_operation_of_its_largest_share():
    cell = MixedCell(MIXED, nodes=2, channels=2, classes=3)
    alphas = {
        "0 to 1": torch.tensor([0.0, -1.0]),
        "0 to 2": torch.tensor([0.1, 0.2, 0.3]),
        "1 to 2": torch.tensor([-2.0, -1.0]),
    }
    assert cell.chosen(alphas) == ("skip", "conv_3x3", "conv_1x1")


def test_an_architecture_is_the_limit_of_a_mixture():
    torch.manual_seed(0)
    mixed = MixedCell(MIXED, nodes=2, channels=2, classes=3)
    weights, chosen = mixed.weights(1, CPU), ("conv_1x1", "avg_pool", "conv_1x1")
    alphas = {
        f"{i} to {j}": torch.tensor([30.0 * (op == one) for op in ops])  # shares of e^-30
        for (i, j), ops, one in zip(edges(2), MIXED, chosen, strict=True)
    }
    assert mixed.chosen(alphas) == chosen
    alone = MixedCell([(op,) for op in chosen], nodes=2, channels=2, classes=3)
    own = {name: w for name, w in weights.items() if name in alone.weights(1, CPU)}
    x = torch.randn(4, 1, 5, 5)
    data = Labelled(x, torch.arange(4) % 3)
    one = Search(alone, data, 0.0).predict(own, alone.alphas(CPU), x)
    assert torch.allclose(one, Search(mixed, data, 0.0).predict(weights, alphas, x), atol=1e-5)
    assert len(own) == len(weights) - 1  # the conv_3x3 is left out


def measured(study, source, **more):
    return study.measure({"source": source, "seed": 0, **more}, CPU)


def test_rows_hold_what_was_searched_and_what_was_trained():
    for method in TINY.methods:
        first, *rest = measured(TINY, method)
        mixtures = pd.DataFrame([row for row in rest if row["what"] == "mixture"])
        assert mixtures.groupby("edge").share.sum().to_numpy() == pytest.approx(1)
        largest = mixtures.loc[mixtures.groupby("edge", sort=False).share.idxmax()].operation
        assert first["architecture"] == ", ".join(largest)
        curve = [row for row in rest if row["what"] == "curve"]
        assert [row["step"] for row in curve] == [1, 2, 3]
        shares = mixtures.groupby("operation").share.mean()
        for operation in OPERATIONS:
            assert curve[-1][f"share_{operation}"] == pytest.approx(shares[operation])
    assert measured(TINY, "largest")[0]["weights"] > measured(TINY, "random", draw=0)[0]["weights"]


def test_an_architecture_is_trained_alike_whatever_found_it():
    drawn = TINY.drawn(0)
    assert len(set(drawn)) == TINY.random
    one, again = (measured(TINY, "random", draw=1)[0] for _ in range(2))
    assert one == again
    assert one["architecture"] == ", ".join(drawn[1])


def test_what_sees_more_than_one_pixel_learns_more():
    """`skip` alone sees the stem's 3x3, `conv_5x5` all of the image."""
    study = dataclasses.replace(TINY, train=200, channels=4, retrain_steps=60)
    data = study._data(0)
    skipped = study._retrained(("skip",) * 3, 0, data)
    assert measured(study, "largest")[0]["accuracy"] > skipped["accuracy"] + 10


def rows_by_hand():
    """Two seeds, figures that no two sources share."""
    rows = []
    for seed in (0, 1):
        for draw, accuracy in enumerate((60.0, 80.0)):
            row = {"source": "random", "seed": seed, "draw": draw, "what": "trained"}
            row |= {"accuracy": accuracy + seed, "validation_accuracy": 90 - accuracy}
            rows.append({**row, "deviation": 1.0, "weights": 100, "architecture": "skip, skip"})
        for source, accuracy in (
            ("average", 75.0),
            ("largest", 91.0),
            ("first_order", 69.0),
            ("gauss_newton", 90.0),
        ):
            row = {"source": source, "seed": seed, "what": "trained", "accuracy": accuracy + seed}
            row |= {"validation_accuracy": 50.0, "deviation": 2.0, "weights": 10 * accuracy}
            if source in ("first_order", "gauss_newton"):
                row |= {"architecture": "skip, conv_3x3", "step_s": accuracy / 1e3}
                row |= {"peak_bytes": 1000 * accuracy, "inner_grad_norm": 0.01}
                if source == "gauss_newton":
                    row |= {"relative_residual": 0.1, "unsolved": 0.25}
                for edge in ("0 to 1", "0 to 2"):
                    for operation in ("skip", "conv_3x3"):
                        mixture = {"source": source, "seed": seed, "what": "mixture", "edge": edge}
                        rows.append({**mixture, "operation": operation, "share": 0.5})
                for step in (1, 2):
                    point = {"source": source, "seed": seed, "what": "curve", "step": step}
                    point |= {"share_skip": 0.4, "share_conv_3x3": 0.6, "train_loss": 1.0}
                    rows.append({**point, "validation_loss": 2.0 / step + seed})
            rows.append(row)
    return pd.DataFrame(rows)


def test_tables_show_means_over_the_seeds():
    rows = rows_by_hand()
    accuracy, cost, found = (table.texts() for table in TINY.tables(rows).values())
    accuracy = accuracy.set_index("network")
    # Of two values the t interval is 12.71 times half their distance.
    assert accuracy["accuracy, %"]["random architectures"] == "70.50 ± 6.35"
    # The one that validated best is not the one that tested best.
    assert accuracy["accuracy, %"]["the random one that validated best"] == "60.50 ± 6.35"
    assert accuracy["above random, points"]["implicit, CG, Gauss-Newton"] == "20.00 ± 0.00"
    assert accuracy["above random, points"]["random architectures"] == ""
    assert accuracy["random ones below it, %"]["first-order"] == "50"
    assert cost["negative curvature or divergence, % of solves"].tolist() == ["", "25"]
    assert found["accuracy, %"].tolist() == ["69.00", "90.00", "70.00", "91.00"]
    assert set(TINY.figures(rows)) == {"accuracy", "search", "mixtures"}


def test_facts_measure_the_random_architectures_and_name_what_beats_them():
    facts = TINY.facts(rows_by_hand())
    assert (facts["random"], facts["draws"]) == (4, 2)
    assert (facts["least"], facts["most"]) == (60.0, 81.0)
    assert facts["deviation"] == pytest.approx(200**0.5) and facts["starts_deviation"] == 1.0
    assert facts["methods"] == ["first-order", "implicit, CG, Gauss-Newton"]
    beaten = [name for name in facts["methods"] if name in facts["better"]]
    assert beaten == ["implicit, CG, Gauss-Newton"]


def test_findings_of_one_seed_have_no_interval():
    rows = rows_by_hand()
    assert len(render_findings(TINY, rows)) == 4
    one_seed = render_findings(TINY, rows[rows.seed == 0])
    assert not any("±" in text or "interval" in text for text in one_seed)


def test_an_interrupted_study_goes_on_from_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["solve", "nas", "preset=quick", "seeds=[3]", "train=30", "channels=2", "nodes=1"]
    words += ["warmup=1", "weight_steps=1", "solver_iters=1", "steps=2", "random=2"]
    words += ["retrain_steps=2", "wandb=disabled", "threads=1"]
    measure = NASStudy.measure
    seen = []

    def until_the_third(study, cell, device):
        seen.append(cell)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(study, cell, device)

    monkeypatch.setattr(NASStudy, "measure", until_the_third)
    assert main(words) == 130
    assert main(words) == 0
    assert "going on from 2 of them" in capsys.readouterr().out
    assert seen[2] == seen[3] and len(seen) == 7  # the third again, and no other
    folder = tmp_path / "runs" / "quick" / "nas"
    rows = pd.read_csv(folder / "rows.csv")
    assert set(rows.source) == {"random", "average", "largest", "first_order", "gauss_newton"}
    for name in ("accuracy", "search", "mixtures"):
        assert (folder / f"{name}.svg").stat().st_size > 1000
    assert json.loads((folder / "provenance.json").read_text())["options"]["channels"] == 2
