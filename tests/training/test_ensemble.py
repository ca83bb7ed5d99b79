"""Ensembles of checkpoints: the mean of their class probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import conv_run

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.metagrad import FirstOrder
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.problems.learned import LearnedProx, LearnedRates
from metalearn.tasks import ImageTaskSampler, LabelledImages
from metalearn.training.estimate import Estimate
from metalearn.training.evaluation import Member, evaluate, evaluate_ensemble
from metalearn.training.protocol import EvaluationProtocol


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_run(tmp_path_factory.mktemp("runs") / "r")


def three_way() -> ImageTaskSampler:
    """A stream of 3-way tasks on six classes of noise."""
    images = torch.randint(256, (60, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images.byte(), torch.arange(6).repeat_interleave(10), tuple("abcdef"))
    return ImageTaskSampler(data, 3, 1, 2, seed=4)


def three_way_member(seed: int, steps: int) -> tuple[Conv4, Member]:
    """A small network whose inner loop takes so many steps; normalised by the queries or not."""
    torch.manual_seed(seed)
    model = Conv4(3, channels=4)
    problems = {mode: FewShot(model, transductive=mode == "t") for mode in ("t", "i")}
    return model, Member(
        problems, FirstOrder(GradientDescent(steps, 0.1)), dict(model.named_parameters())
    )


def test_an_ensemble_is_the_mean_of_its_members_probabilities():
    """Against each task's own pass through the network, its softmax and their mean."""
    pairs = [three_way_member(0, 2), three_way_member(1, 4), three_way_member(2, 0)]
    found = evaluate_ensemble([member for _, member in pairs], three_way(), 5, batch=2)
    task = three_way().sample(5)
    losses, correct = [], []
    for t in range(5):
        probabilities = torch.zeros(6, 3)
        for model, member in pairs:
            phi = member.metagrad.adapt(member.problems["t"], member.meta, task).params
            own = {name: p[t] for name, p in phi.items()}
            logits = torch.func.functional_call(model, own, task.query_x[t])
            probabilities += logits.detach().softmax(-1) / len(pairs)
        losses.append(-probabilities[range(6), task.query_y[t]].log().mean())
        correct.append((probabilities.argmax(-1) == task.query_y[t]).float().mean())
    for name, values in (("loss", losses), ("accuracy", correct)):
        expected = Estimate.of(torch.stack(values))
        assert found["t"][name].mean == pytest.approx(expected.mean, rel=1e-5)
        assert found["t"][name].interval == pytest.approx(expected.interval, rel=1e-4)
    assert found["i"].keys() == {"loss", "accuracy"} and found["i"] != found["t"]


@pytest.mark.parametrize("size", [1, 3])
def test_an_ensemble_of_one_checkpoint_is_that_checkpoint(trained, size):
    alone = EvaluationProtocol(tasks=8).rows(trained)
    same = EvaluationProtocol(tasks=8).ensemble_rows([trained] * size)
    for row, single in zip(same, alone, strict=True):
        assert row["ensemble"] == size and len(row["members"]) == size
        for name in ("loss", "loss_interval", "accuracy", "accuracy_interval"):
            assert row[name] == pytest.approx(single[name], rel=1e-5)
        kept = single.keys() - {"name", "seed", "chosen_step"}
        assert row.keys() == kept | {"ensemble", "members"}
        different = {name for name in kept if row[name] != single[name]}
        assert all(name.startswith(("loss", "accuracy")) for name in different)


def wrapped(kind: str, model: Conv4) -> tuple[LearnedRates | LearnedProx, dict]:
    theta = dict(model.named_parameters())
    if kind == "rates":
        return LearnedRates(FewShot(model)), {
            "theta": theta,
            "log_rates": {name: torch.full_like(p, 0.3) for name, p in theta.items()},
        }
    return LearnedProx(FewShot(model)), {"theta": theta, "log_prox": torch.tensor(0.2)}


@pytest.mark.parametrize("kind", ["rates", "prox"])
def test_a_wrapped_problem_predicts_what_it_is_judged_by(kind):
    problem, meta = wrapped(kind, three_way_member(0, 2)[0])
    metagrad = FirstOrder(GradientDescent(2, 0.1))
    single = evaluate(problem, metagrad, meta, three_way(), 5)
    found = evaluate_ensemble([Member({"": problem}, metagrad, meta)], three_way(), 5)[""]
    for name in ("loss", "accuracy"):
        assert found[name].mean == pytest.approx(single[name].mean, rel=1e-5)


class Silent(FewShot):
    """A problem of before predictions could be asked for."""

    query_predictions = None

    def outer_objective(self, params, meta, task):
        return self.inner_objective(params, meta, task), {}


@pytest.mark.parametrize("wrap", [lambda p: p, LearnedProx, LearnedRates])
def test_a_problem_that_predicts_nothing_is_refused(wrap):
    _, member = three_way_member(0, 1)
    problem, meta = wrap(Silent(Conv4(3, channels=4))), member.meta
    if wrap is LearnedProx:
        meta = {"theta": meta, "log_prox": torch.tensor(0.0)}
    elif wrap is LearnedRates:
        rates = {name: torch.zeros_like(p) for name, p in meta.items()}
        meta = {"theta": meta, "log_rates": rates}
    with pytest.raises(UsageError, match="Silent has no query_predictions: expected a problem"):
        evaluate_ensemble([Member({"": problem}, member.metagrad, meta)], three_way(), 4)


def test_members_adapt_each_in_its_own_way_and_the_row_says_whose_they_are(trained, tmp_path):
    second = conv_run(tmp_path / "s1", "seed=1", "metagrad.inner.steps=2", "model.channels=6")
    out = tmp_path / "out.json"
    both = [f"checkpoint=[{trained},{second}]", "ensemble=true", "tasks=8", f"out={out}"]
    assert main(["evaluate", *both, "transductive=false"]) == 0
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert row["mode"] == "inductive" and row["ensemble"] == 2 and row["tasks"] == 8
    assert row["inner_steps"] is None and row["trained_inner_steps"] is None
    assert [member["seed"] for member in row["members"]] == [0, 1]
    assert row["members"][1]["checkpoint"] == "s1/best.pt"
    assert found["over_checkpoints"] == []
    assert main(["evaluate", *both, "inner_steps=[1,3]"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["inner_steps"] for row in rows] == [1, 1, 3, 3]


def test_members_of_other_tasks_are_refused(trained, tmp_path, capsys):
    other = conv_run(tmp_path / "s1", "tasks.shots=2", "steps=1")
    words = ["evaluate", f"checkpoint=[{trained},{other}]", "ensemble=true", "tasks=8"]
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{other} has tasks.shots=2 and {trained} 1: expected" in said
    assert said.count("\n") == 1
    assert main([*words, "shots=1"]) == 0


def test_a_regression_has_no_ensemble(tmp_path, capsys):
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "steps=1", "meta_batch=2", "wandb=disabled"]
    words += ["metagrad=maml_batched", "validation.tasks=2", "test.tasks=2"]
    assert main(["train", *words, f"run_dir={tmp_path}"]) == 0
    path = tmp_path / "best.pt"
    capsys.readouterr()
    for word, sentence in (("ensemble=true", "expected tasks of classes"), ("ways=3", "ways=3: ")):
        assert main(["evaluate", f"checkpoint={path}", "tasks=4", word]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
