"""`metalearn.train`: the trainer around objects that a caller makes."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metalearn
from metalearn.commands.main import main
from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.inner import GradientDescent
from metalearn.metagrad import FirstOrder, Implicit, Unrolled
from metalearn.problem import FewShot
from metalearn.tasks import TensorTasks
from metalearn.training import checkpoint, forecast

ADAM = functools.partial(torch.optim.Adam, lr=0.02)


class Scales:
    """A plain `BilevelProblem`, which learns the start and the logarithm of a penalty."""

    def init(self, meta, task):
        return {"w": meta["start"].expand(len(task), 3)}

    def inner_objective(self, params, meta, task):
        error = (task.support_x @ params["w"][..., None])[..., 0] - task.support_y.double()
        away = params["w"] - meta["start"]
        return error.square().mean(1) + meta["penalty"].exp() * away.square().sum(1)

    def outer_objective(self, params, meta, task):
        error = (task.query_x @ params["w"][..., None])[..., 0] - task.query_y.double()
        return error.square().mean(1), {}


def start():
    return {
        "start": torch.zeros(3, dtype=torch.float64),
        "penalty": torch.tensor(0.0, dtype=torch.float64, requires_grad=True),
    }


def tasks():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=g)
    own = TensorTasks(
        x, torch.arange(60) % 6, ways=2, shots=2, queries=3, splits=(0.34, 0.33, 0.33)
    )
    own.x = own.x.double()
    return own


def train(folder, problem=None, meta=None, sampler=None, optimiser=ADAM, **options):
    options = {"steps": 6, "wandb": "disabled", "meta_batch": 4, "checkpoint_every": 1} | options
    return metalearn.train(
        problem or Scales(),
        options.pop("meta_gradient", Implicit(GradientDescent(5, 0.1))),
        start() if meta is None else meta,
        sampler or tasks().sampler("train"),
        optimiser,
        run_dir=folder,
        **options,
    )


def judged():
    """Samplers for every split, validated often."""
    own = tasks()
    held_out = {name: own.sampler(name, seed=7) for name in ("validation", "test")}
    return held_out | {"validation_every": 2, "validation_tasks": 5, "test_tasks": 7}


def state_of(folder):
    """Return what a run leaves, except for its times."""
    states = {name: checkpoint.load(folder / name) for name in ("last.pt", "best.pt")}
    for state in states.values():
        state["config"] = {**state["config"], "steps": None, "name": None}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return states, [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("held_out", [dict, judged], ids=["none", "validated"])
@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_resumed_run_equals_one_in_one_go(tmp_path, held_out, average):
    whole = train(tmp_path / "whole", average=average, **held_out())
    train(tmp_path / "parts", steps=4, average=average, **held_out())
    parts = train(tmp_path / "parts", resume=True, average=average, **held_out())
    assert_equal(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    figures = {k: v for k, v in whole.items() if k.startswith(("test", "chosen", "validation"))}
    assert figures.items() <= parts.items()


def test_a_run_that_a_signal_ends_is_resumed_bit_for_bit(tmp_path):
    class Interrupting(Scales):
        calls = 0

        def outer_objective(self, params, meta, task):
            Interrupting.calls += 1
            if Interrupting.calls == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().outer_objective(params, meta, task)

    with pytest.raises(TrainingInterrupted, match=r"go on with metalearn\.train\(.*resume=True\)"):
        train(tmp_path / "run", problem=Interrupting())
    assert 0 < checkpoint.load(tmp_path / "run" / "last.pt")["step"] < 6
    Interrupting.calls = 10
    train(tmp_path / "run", problem=Interrupting(), resume=True)
    Interrupting.calls = 10
    train(tmp_path / "whole", problem=Interrupting())
    assert_equal(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))


def test_the_optimiser_is_a_function_or_is_over_the_leaves(tmp_path):
    meta = start() | {"start": torch.zeros(3, dtype=torch.float64, requires_grad=True)}
    train(tmp_path / "given", meta=meta, optimiser=ADAM(meta.values()))
    train(tmp_path / "made")
    assert_equal(state_of(tmp_path / "given"), state_of(tmp_path / "made"))


def test_the_shorter_options_that_a_run_names_are_its_arguments(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forecast, "WORTH_SAYING_S", 0.0)
    train(tmp_path / "long")
    (named,) = re.findall("For less: (.*)", capsys.readouterr().out)
    shorter = [word.strip("=") for word in named.split(", ")]
    train(tmp_path / "short", **dict.fromkeys(shorter, 1))


def test_meta_ends_at_the_chosen_values(tmp_path):
    meta, own = start(), judged()
    before = own["validation"].state_dict()
    summary = train(tmp_path, meta=meta, keep_best=2, **own)
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["step"] == summary["chosen_step"] and summary["test_loss"] > 0
    assert_equal({k: x.detach() for k, x in meta.items()}, best["meta"])
    assert_equal(own["validation"].state_dict(), before)


def test_the_random_states_of_the_caller_stay(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(tmp_path, steps=1)
    assert torch.equal(torch.rand(2), expected)


def test_the_run_equals_that_of_the_command_line(tmp_path):
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "metagrad=maml_batched", "steps=3"]
    words += ["meta_batch=4", "wandb=disabled", "validation.tasks=2", "test.tasks=2", "seed=5"]
    assert main(["train", *words, f"run_dir={tmp_path / 'words'}"]) == 0
    from metalearn.config import compose
    from metalearn.training.experiment import Experiment

    one = Experiment.of(compose("train", words))
    make = {
        split: one.tasks.sampler(split, seed, "cpu")
        for split, seed in (("train", 5), ("validation", 1000), ("test", 2000))
    }
    summary = metalearn.train(
        one.problem, one.metagrad, one.meta, make.pop("train"), one.optimiser, **make,
        run_dir=tmp_path / "python", steps=3, meta_batch=4, wandb="disabled", validation_tasks=2,
        test_tasks=2, seed=5,
    )  # fmt: skip
    words_summary = json.loads((tmp_path / "words" / "summary.json").read_text())
    assert summary["test_loss"] == words_summary["test_loss"]
    a, b = (checkpoint.load(tmp_path / name / "last.pt") for name in ("words", "python"))
    for key in ("meta", "optimiser", "sampler", "best"):
        assert_equal(a[key], b[key])


def test_another_run_is_not_resumed(tmp_path):
    train(tmp_path, steps=2)
    for changed in (
        {"optimiser": functools.partial(torch.optim.Adam, lr=0.5)},
        {"meta_gradient": Implicit(GradientDescent(6, 0.1))},
        {"problem": type("Other", (Scales,), {})()},
        {"validation": tasks().sampler("validation")},
        {"meta_batch": 5},
    ):
        with pytest.raises(UsageError, match=r"expected .*, with which .* was trained"):
            train(tmp_path, resume=True, **changed)
    with pytest.raises(UsageError, match="holds a run already; choose another, or resume=True"):
        train(tmp_path)
    with pytest.raises(UsageError, match="do not fit"):
        train(tmp_path, resume=True, meta=start() | {"start": torch.zeros(1).double()})
    train(tmp_path, resume=True, keep_checkpoints=3)


def test_the_commands_refuse_its_checkpoint_in_one_sentence(tmp_path, capsys):
    train(tmp_path, steps=1)
    capsys.readouterr()
    for words in (
        ["evaluate", f"checkpoint={tmp_path / 'best.pt'}"],
        ["train", f"resume={tmp_path}"],
    ):
        assert main(words) == 2
        assert "was trained in Python by metalearn.train" in capsys.readouterr().err


class Forgetful:
    """A sampler whose state leaves out what it draws from."""

    def __init__(self, state=None):
        self.sampler, self.state = tasks().sampler("train"), {} if state is None else state

    def sample(self, num_tasks):
        return self.sampler.sample(num_tasks)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        pass


def leaf(**tensors):
    return start() | tensors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": Forgetful()}, "the same task again"),
        ({"sampler": Forgetful([1])}, r"sampler.state_dict\(\) returns builtins.list"),
        ({"sampler": Forgetful({"rng": np.arange(3)})}, "plain values"),
        ({"sampler": object()}, "expected an object with the methods sample"),
        ({"problem": nn.Linear(1, 1)}, "problem=torch.nn.*init"),
        ({"meta_gradient": GradientDescent(1, 0.1)}, "meta_gradient=metalearn.inner"),
        ({"meta": {}}, "meta has no tensors"),
        ({"meta": leaf(start=torch.zeros(3, dtype=torch.int64))}, "is torch.int64"),
        ({"meta": leaf(start=torch.full((3,), torch.nan))}, "not finite"),
        ({"meta": leaf(start=torch.zeros(1).expand(3))}, "in place"),
        ({"meta": leaf(start=torch.zeros(3, requires_grad=True) * 1)}, "in place"),
        ({"meta": leaf(start=torch.zeros(4).double())}, "problem=Scales"),
        ({"optimiser": torch.optim.Adam([torch.zeros(2)])}, "moves 1 tensors: expected the 2"),
        ({"optimiser": lambda leaves: None}, "returns builtins.NoneType"),
        ({"optimiser": "adam"}, "functools.partial"),
        ({"step": 3}, "step is no option of metalearn.train; did you mean 'steps'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"meta_batch": "4"}, "meta_batch"),
        ({"wandb": "maybe"}, "wandb=maybe"),
        ({"on_nonfinite": "never"}, "on_nonfinite=never"),
        ({"resume": True}, "expected the folder of a run"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_leaves_no_folder(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_training_sampler_is_not_taken_back_by_a_validation(tmp_path):
    sampler = tasks().sampler("train")
    with pytest.raises(UsageError, match="expected a sampler of its own"):
        train(tmp_path / "run", sampler=sampler, validation=sampler)


def test_a_guard_stops_it_with_the_state_before(tmp_path):
    class Diverging(Scales):
        def outer_objective(self, params, meta, task):
            loss, metrics = super().outer_objective(params, meta, task)
            return (loss.log() * torch.inf if len(task) == 4 else loss), metrics

    with pytest.raises(TrainingStopped, match="not finite"):
        train(tmp_path, problem=Diverging())
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 0


def test_few_shot_trains_the_models_own_parameters(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 2)).double()
    problem = FewShot(model)
    before = [p.detach().clone() for p in model.parameters()]
    for gradient in (
        Unrolled(GradientDescent(2, 0.1), backend="batched"),
        FirstOrder(GradientDescent(2, 0.1)),
    ):
        folder: Path = tmp_path / type(gradient).__name__
        train(folder, problem=problem, meta=problem.begin(), meta_gradient=gradient, steps=2)
        held = checkpoint.load(folder / "best.pt")["meta"]
        assert all(torch.equal(p, held[name]) for name, p in model.named_parameters())
    assert not any(map(torch.equal, before, model.parameters()))
