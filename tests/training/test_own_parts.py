"""A loss, tasks, a model and first weights of one's own on the command line, from docs/own.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import TINY

from metalearn.commands.main import main
from metalearn.config import build, compose
from metalearn.training import checkpoint
from metalearn.training.adaptation import adapt
from metalearn.training.adapted import AdaptedModel
from metalearn.training.experiment import Experiment

PAGE = Path(__file__).parents[2] / "docs" / "own.md"
NAMES = ("my_module", "my_loss", "my_labels", "my_net")
NET = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, ways: int = 5) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Linear(8, ways)
        )
        self[2].running_mean += torch.rand(8)
"""
GRADIENT = """
from metalearn.inner import GradientDescent
from metalearn.metagrad import Unrolled

class Fixed(Unrolled):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(GradientDescent(2, lr), backend="batched")
"""
OWN_NET = [*TINY[:2], *TINY[4:], "import=small_net", "model._target_=small_net.Net"]
OWN_NET += ["wandb=disabled", "metagrad=maml_batched"]


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The page's modules in the current folder; nothing has imported them yet."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, block in zip(NAMES, code, strict=True):
        (tmp_path / f"{name}.py").write_text(block)
    (tmp_path / "small_net.py").write_text(NET)
    (tmp_path / "own_gradient.py").write_text(GRADIENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "_IMPORTED", set())
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in (*NAMES, "small_net", "own_gradient"):
        sys.modules.pop(name, None)


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


def test_an_own_loss_trains_and_its_checkpoint_imports_nothing(modules, monkeypatch, capsys):
    words = [*TINY, "metagrad=maml_batched", "wandb=disabled", "run_dir=r"]
    loss = "problem.loss=my_loss.smoothed"
    assert main(["train", "import=my_loss", loss, *words]) == 0
    (train,) = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()][:1]
    # Smoothing by 0.1 of 5 classes: the loss of equal outputs is log 5, as without it.
    assert train["query_loss"] == pytest.approx(torch.tensor(5.0).log(), abs=0.5)
    assert 0 <= train["query_accuracy"] <= 1
    monkeypatch.setattr(build, "_IMPORTED", set())
    sys.modules.pop("my_loss")
    for again in (["train", "resume=r", "steps=7"], ["evaluate", "checkpoint=r/best.pt"]):
        assert "import=my_loss" in refused(capsys, *again)
        assert "my_loss" not in sys.modules
    assert main(["train", "resume=r", "steps=7", "import=my_loss"]) == 0
    for name in ("my_loss.F.cross_entropy", "my_loss.nothing", "os.system"):
        said = refused(capsys, "train", "import=my_loss", f"problem.loss={name}", "run_dir=x")
        assert f"problem.loss={name}: expected a function" in said
    for name, option in (
        ("my_loss.smothed", "problem.loss"),
        ("my_labels.Label", "tasks._target_"),
    ):
        said = refused(
            capsys, "train", "import=[my_loss,my_labels]", f"{option}={name}", "run_dir=x"
        )
        assert "did you mean 'my_l" in said
    assert "loss='hinge'" in refused(capsys, "train", "problem.loss=hinge", "run_dir=x")
    assert not Path("x").exists()


def test_tasks_with_several_labels_are_learned_and_evaluated(modules, capsys):
    words = ["import=my_labels", "tasks._target_=my_labels.Labels", "model=mlp"]
    words += ["model.sizes=[4,32,3]", "problem.loss=binary_cross_entropy", "metagrad=maml_batched"]
    words += ["metagrad.inner.lr=1", "metagrad.inner.steps=10", "meta_batch=8", "steps=40"]
    words += ["validation.tasks=8", "test.tasks=30", "optimiser.lr=0.01", "wandb=disabled"]
    assert main(["train", *words, "run_dir=r"]) == 0
    summary = json.loads(Path("r/summary.json").read_text())
    # A label holds for half of the examples: 0.5 without any learning.
    assert summary["test_label_accuracy"] > 0.65
    assert summary["test_exact_match"] < summary["test_label_accuracy"]
    assert "test label_accuracy 0." in capsys.readouterr().out
    assert main(["evaluate", "import=my_labels", "checkpoint=r/best.pt", "tasks=20"]) == 0
    row, *_ = json.loads(Path("r/evaluation.json").read_text())["rows"]
    assert row["label_accuracy"] > 0.6 and "accuracy" not in row
    ensemble = ["evaluate", "import=my_labels", "checkpoint=[r/best.pt,r/last.pt]", "ensemble=true"]
    assert "expected tasks of classes" in refused(capsys, *ensemble)


def test_a_meta_gradient_without_inner_options_is_trained_and_judged(modules, capsys):
    own = ["train", *TINY[:-2], "import=own_gradient", "wandb=disabled"]
    own += ["metagrad._target_=own_gradient.Fixed"]
    assert main([*own, "run_dir=r"]) == 0
    config = checkpoint.load(Path("r/last.pt"))["config"]
    assert config["metagrad"] == {"_target_": "own_gradient.Fixed"}
    assert "rate_steps" not in config["problem"] and "prox" in config["problem"]
    words = ["evaluate", "import=own_gradient", "checkpoint=r/best.pt", "tasks=4"]
    assert main(words) == 0
    assert "its own inner loop: " in capsys.readouterr().out
    (row, *_) = json.loads(Path("r/evaluation.json").read_text())["rows"]
    assert row["inner_steps"] is None and row["trained_inner_steps"] is None
    assert "Leave inner_steps= out" in refused(capsys, *words, "inner_steps=[1]")
    assert main(["report", "runs=[r]", "out=r.html"]) == 0
    unknown = refused(capsys, *own, "metagrad.inner.steps=3", "run_dir=s")
    assert "inner" in unknown and not Path("s").exists()


def test_pretrained_weights_of_the_pages_network(modules, capsys):
    import my_net

    torch.manual_seed(3)
    my_net.pretrain("body.pt")
    words = ["import=my_net", "model._target_=my_net.Net", "init_from=body.pt", "seed=7"]
    words += ["frozen=[conv1,bn1,layer1]", "metagrad=maml_batched", "threads=1"]
    experiment = Experiment.of(compose("train", words))
    (note,) = experiment.start_from("body.pt")
    assert note == "init_from=body.pt: the model keeps its own: fc.weight, fc.bias"
    saved = torch.load("body.pt", weights_only=True)
    for name, own in experiment.model.state_dict().items():
        if not name.startswith("fc."):
            torch.testing.assert_close(own, saved[name], rtol=0, atol=0)
    assert not {"conv1.weight", "layer1.0.conv1.weight"} & experiment.meta.keys()
    assert "layer2.0.conv1.weight" in experiment.meta
    experiment.check(experiment.tasks.sampler("train", 0, "cpu").sample(1))


def test_frozen_weights_and_buffers_survive_without_their_file(modules, capsys, monkeypatch):
    import small_net

    torch.manual_seed(5)
    given = small_net.Net(ways=9)
    torch.save({"state_dict": {f"module.{n}": x for n, x in given.state_dict().items()}}, "b.pth")
    words = [*OWN_NET, "init_from=b.pth", "frozen=[1]", "run_dir=r"]
    assert main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "init_from=b.pth: the model keeps its own: 4.weight, 4.bias" in said
    assert "not in the model" not in said
    Path("b.pth").unlink()
    for name in ("best", "last"):
        state = checkpoint.load(Path(f"r/{name}.pt"))
        assert not {"1.weight", "1.bias"} & state["meta"].keys()
        for own in ("1.weight", "1.bias", "2.running_mean", "2.running_var"):
            assert torch.equal(state["constants"][own], given.state_dict()[own])
        assert not torch.equal(state["meta"]["2.weight"], given[2].weight)  # learned
    assert main(["train", "import=small_net", "resume=r", "steps=7"]) == 0
    again = checkpoint.load(Path("r/last.pt"))
    assert torch.equal(again["constants"]["1.weight"], given[1].weight)
    # Without the frozen weights the accuracy would be that of another network.
    summary = json.loads(Path("r/summary.json").read_text())
    words = ["checkpoint=r/best.pt", "tasks=8", "transductive=true", "threads=1"]
    assert main(["evaluate", "import=small_net", *words]) == 0
    (row,) = json.loads(Path("r/evaluation.json").read_text())["rows"]
    assert row["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    for label in range(5):
        Path(f"new/{label}").mkdir(parents=True)
        Image.new("L", (9, 9), 50 * label).save(f"new/{label}/0.png")
    adapted = adapt(Path("r/best.pt"), "new")
    assert torch.equal(adapted["constants"]["1.weight"], given[1].weight)
    model = AdaptedModel.of(adapted, Path("mine.pt")).problem.model._module
    assert torch.equal(model[1].weight, given[1].weight)
    more = Experiment.of(compose("train", [*OWN_NET, "seed=9"]))
    assert more.start_from("r/best.pt") == []
    assert torch.equal(more.model[1].weight, given[1].weight)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["frozen=[5]"], "frozen=5: expected the name of a layer or parameter"),
        (["frozen=[0.1]"], "expected a list of the model's layers"),
        (["frozen=weight"], "expected a list of the model's layers"),
        (["frozen=null"], "frozen=null: expected a list of the model's layers"),
        (["frozen=[1,2,4]"], "all have requires_grad=False"),
        (["init_from=half.pt"], "1.weight has the shape (8, 784); there it is missing"),
        (["init_from=wide.pt"], "there it is (9, 784), as 3 others do not fit"),
        (["init_from=torn.pt"], "torn.pt cannot be read as a checkpoint"),
        (["init_from=list.pt"], "list.pt is no checkpoint"),
        (["init_from=odd.pt"], "torch.save(network.state_dict(), PATH)"),
        (["init_from=nan.pt"], "expected finite weights, and those of 2.running_mean"),
        (["init_from=absent.pt"], "there is no checkpoint absent.pt"),
    ],
)
def test_weights_that_do_not_fit_are_refused(modules, capsys, words, sentence):
    import small_net

    own = small_net.Net().state_dict()
    wide = {**own, "1.weight": torch.ones(9, 784), "1.bias": torch.ones(9)}
    files = {"half": {"4.weight": own["4.weight"], "2.weight": own["2.weight"]}}
    files |= {"wide": {n: torch.ones(9) if x.shape == (8,) else wide[n] for n, x in own.items()}}
    files |= {"list": [1, 2], "odd": {"weights": [own]}}
    files |= {"nan": {**own, "2.running_mean": torch.full((8,), torch.nan)}}
    for name, state in files.items():
        torch.save(state, f"{name}.pt")
    Path("torn.pt").write_bytes(Path("half.pt").read_bytes()[:500])
    assert sentence in refused(capsys, "train", *OWN_NET, *words, "run_dir=r")
    assert not Path("r").exists()
