"""A user's own problem, from the module in docs/own.md: trained, resumed, evaluated."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from metalearn import config
from metalearn.commands.main import main
from metalearn.config import build
from metalearn.training import checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "own.md"
WORDS = ["problem._target_=my_module.Ridge", "+problem.penalty=0.5", "tasks=sinusoid"]
WORDS += ["model=mlp_sinusoid", "metagrad=imaml", "metagrad.inner.steps=50", "meta_batch=8"]
WORDS += ["optimiser.lr=0.1", "validation.tasks=8", "test.tasks=8", "wandb=disabled"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The page's first module in the current folder; nothing has imported it yet."""
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "_IMPORTED", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_module", None)


def test_own_problem_trains_resumes_and_is_evaluated(module, capsys):
    assert main(["train", "import=my_module", *WORDS, "steps=40", "run_dir=r"]) == 0
    assert main(["train", "import=my_module", "resume=r", "steps=42"]) == 0
    # The features fit every task, so that the penalty only does harm: training lowers it.
    assert checkpoint.load(Path("r/last.pt"))["meta"]["log_penalty"] < torch.tensor(0.25).log()
    assert main(["evaluate", "import=my_module", "checkpoint=r/best.pt", "tasks=8"]) == 0
    (row,) = json.loads(Path("r/evaluation.json").read_text())["rows"]
    assert row["mode"] == "default" and row["loss"] < 0.5


def test_own_module_is_imported_by_the_command_line_alone(module, monkeypatch, capsys):
    assert main(["train", "import=my_module", *WORDS, "steps=1", "run_dir=r"]) == 0
    monkeypatch.setattr(build, "_IMPORTED", set())
    for words in (["train", "resume=r", "steps=2"], ["evaluate", "checkpoint=r/best.pt"]):
        sys.modules.pop("my_module")
        assert main(words) == 2
        assert "import=" in capsys.readouterr().err
        assert "my_module" not in sys.modules
        sys.modules["my_module"] = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["import=no_such"], "import=no_such"),
        (["import=../my_module.py"], "import=../my_module.py"),
        (["import=my_module", "problem._target_=my_module.torch.load"], "_target_="),
        (["import=my_module", "problem._target_=my_module.Rigde"], "_target_=my_module.Rigde"),
        (["import=my_module", *WORDS, "+problem.x=1"], "unexpected keyword argument 'x'"),
        (["import=my_module", *WORDS, "+problem.penalty=a"], "problem.penalty=a"),
        (["problem._target_=metalearn.nn.Conv4", "+problem.ways=5"], "TrainableProblem"),
    ],
)
def test_own_module_mistakes_are_one_sentence(module, capsys, words, named):
    assert main(["train", "run_dir=r", *words]) == 2
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1
    assert not Path("r").exists()


def test_problem_file_without_prox_is_spared_that_of_a_meta_gradient(tmp_path, monkeypatch):
    shutil.copytree(config.config_folder(), tmp_path / "configs")
    own = "_target_: metalearn.problems.WithBody\nhead: null\n"
    (tmp_path / "configs" / "problem" / "mine.yaml").write_text(own)
    monkeypatch.setattr("metalearn.config.overrides.PACKAGE", tmp_path)
    assert "prox" not in config.compose("train", ["problem=mine", "metagrad=imaml"]).problem
    assert config.compose("train", ["metagrad=imaml"]).problem.prox == 2.0
    kept = config.compose("train", ["problem=mine", "metagrad=imaml", "problem.prox=0.5"])
    assert kept.problem.prox == 0.5


def test_old_option_names_are_taken_with_a_line(module, capsys):
    tiny = ["model=mlp", "meta_batch=2", "steps=1", "validation.tasks=2", "test.tasks=2"]
    assert main(["train", *tiny, "wandb=disabled", "run_dir=r", "prox_head=0.5"]) == 0
    assert "prox_head= is now problem.prox_head=" in capsys.readouterr().err
    assert checkpoint.load(Path("r/last.pt"))["config"]["problem"]["prox_head"] == 0.5
