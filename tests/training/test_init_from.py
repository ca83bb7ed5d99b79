"""Training that starts from the weights of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from tiny_run import TINY, rows, run

from metalearn.commands.main import main
from metalearn.config import compose
from metalearn.training import checkpoint
from metalearn.training.experiment import Experiment


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert run(folder, "metagrad=maml") == 0
    return folder


@pytest.mark.parametrize(
    "words", [["metagrad=imaml"], ["metagrad=meta_sgd"], ["metagrad=imaml", "learn_prox=true"]]
)
def test_any_problem_starts_from_the_weights_of_the_checkpoint(begun, words):
    experiment = Experiment.of(compose("train", [*TINY, *words, "seed=7"]))
    experiment.start_from(str(begun / "best.pt"))
    saved = checkpoint.load(begun / "best.pt")["meta"]
    for name, own in experiment.model.named_parameters():
        torch.testing.assert_close(own.detach(), saved[name], rtol=0, atol=0)


def test_a_training_starts_where_the_other_ended(begun, tmp_path):
    # The outer rate is too small to move any weight, so that validation repeats that of best.pt.
    words = ["metagrad=maml", "optimiser.lr=1e-30", f"init_from={begun}/best.pt"]
    assert run(tmp_path / "second", *words) == 0
    best = max(row["validation_accuracy"] for row in rows(begun) if "validation_accuracy" in row)
    assert rows(tmp_path / "second")[-1]["validation_accuracy"] == pytest.approx(best, abs=1e-6)


def test_a_resumed_run_does_not_ask_for_the_checkpoint(begun, tmp_path):
    start = tmp_path / "start.pt"
    start.write_bytes((begun / "best.pt").read_bytes())
    assert run(tmp_path / "second", f"init_from={start}", "steps=3") == 0
    start.unlink()
    assert main(["train", f"resume={tmp_path / 'second'}", "steps=6"]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["init_from=missing.pt"], "there is no checkpoint missing.pt"),
        (["init_from=no_such_name"], "there is no checkpoint no_such_name"),
        (["init_from={begun}/best.pt", "model.sizes=[784,9,5]"], "has the shape (9, 784)"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_and_nothing_written(
    begun, tmp_path, capsys, words, sentence
):
    words = [word.format(begun=begun) for word in words]
    assert run(tmp_path / "second", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1
    assert not (tmp_path / "second").exists()
