"""The best validated checkpoints: their order, and what a broken run leaves of them."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_run import run

from metalearn.commands.main import main
from metalearn.training import checkpoint
from metalearn.training import loop as trainer
from metalearn.training.estimate import Estimate


def scores_in_turn(monkeypatch, scores):
    """Validations score so, whatever the meta-parameters; the test is not affected."""
    evaluate, left = trainer.evaluate, list(scores)

    def scored(problem, metagrad, meta, sampler, tasks, **options):
        if tasks == 6:  # TINY's number of validation tasks
            return {"loss": Estimate(1.0, 0.1), "accuracy": Estimate(left.pop(0), 0.1)}
        return evaluate(problem, metagrad, meta, sampler, tasks, **options)

    monkeypatch.setattr(trainer, "evaluate", scored)


def ranking(folder):
    """(meta-step, score) of best.pt, best.1.pt and so on."""
    states = [
        checkpoint.load(checkpoint.best(folder, n)) for n in range(len([*folder.glob("best*")]))
    ]
    return [(state["step"], state["best"]) for state in states]


BEST = ["metagrad=maml_batched", "wandb=disabled", "validation.every=1", "keep_best=3"]


def test_the_best_are_kept_in_order_of_their_score_the_earlier_first(tmp_path, monkeypatch):
    scores_in_turn(monkeypatch, [0.5, 0.7, 0.5, 0.6, 0.7, 0.4])
    folder, every = tmp_path / "r", ["checkpoint_every=1", "keep_checkpoints=7"]
    assert run(folder, *BEST, *every) == 0
    assert ranking(folder) == [(2, 0.7), (5, 0.7), (4, 0.6)]
    assert json.loads((folder / "summary.json").read_text())["chosen_step"] == 2
    raw = {
        s["step"]: s for n in range(7) for s in [checkpoint.load(checkpoint.generation(folder, n))]
    }
    for n in range(3):
        kept = checkpoint.load(checkpoint.best(folder, n))
        assert all(torch.equal(x, raw[kept["step"]]["meta"][k]) for k, x in kept["meta"].items())


@pytest.mark.parametrize("stop", range(6))
def test_kept_files_agree_with_the_state_that_is_gone_on_from(tmp_path, monkeypatch, stop):
    """The last checkpoint is of meta-step 2 where the run ends, after later ones were chosen."""
    scores = [0.5, 0.6, 0.7, 0.55, 0.8, 0.4]
    folder = tmp_path / "r"
    scores_in_turn(monkeypatch, scores)
    writes, save = [], checkpoint.save

    def killed(path, state):
        writes.append(path)
        if state["step"] > 2 and len(writes) > 3 + stop:
            raise KeyboardInterrupt
        save(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        assert run(folder, *BEST, "checkpoint_every=2") == 130
    assert {path.name for path in folder.glob("best*")} <= {"best.pt", "best.1.pt", "best.2.pt"}
    ranking(folder)  # each is whole
    scores_in_turn(monkeypatch, scores[checkpoint.load(folder / "last.pt")["step"] :])
    assert main(["train", f"resume={folder}"]) == 0
    assert ranking(folder) == [(5, 0.8), (3, 0.7), (2, 0.6)]


def test_what_was_kept_after_the_checkpoint_goes(tmp_path, monkeypatch):
    folder = tmp_path / "r"
    scores_in_turn(monkeypatch, [0.5, 0.6, 0.7])
    assert run(folder, *BEST, "steps=3", "checkpoint_every=1") == 0
    (folder / "last.pt").write_bytes(
        b"torn"
    )  # of the third meta-step; the second's is gone on from
    scores_in_turn(monkeypatch, [])
    assert main(["train", f"resume={folder}", "steps=2"]) == 0
    assert ranking(folder) == [(2, 0.6), (1, 0.5)]
    assert main(["train", f"resume={folder}", "steps=2", "keep_best=1"]) == 0
    assert ranking(folder) == [(2, 0.6)]
