"""Training runs from the command line to the files that they leave."""

from __future__ import annotations

import json

import pytest
import torch
import wandb_log
from tiny_run import TINY, rows, run, timeless

from metalearn import checkpoint
from metalearn.cli import main


def test_a_run_leaves_what_it_promises(tmp_path, capsys):
    assert run(tmp_path / "r", "metagrad=imaml") == 0
    folder = tmp_path / "r"
    names = {p.name for p in folder.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "best.pt", "last.pt", "summary.json", "wandb"}
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 <= summary["test_accuracy"] <= 1
    assert summary["test_accuracy_interval"] > 0
    assert summary["test_tasks"] == 8
    assert summary["transductive"] is True
    assert summary["peak_memory_bytes"] > 0
    assert summary["step_s"] > 0
    assert summary["seed"] == 0
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert "transductive" in said
    assert str(folder) in said


def test_the_same_seed_gives_the_same_metrics(tmp_path):
    for name in ("a", "b"):
        assert run(tmp_path / name, "metagrad=imaml", "wandb=disabled") == 0
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")
    assert run(tmp_path / "c", "metagrad=imaml", "wandb=disabled", "seed=1") == 0
    assert timeless(tmp_path / "c") != timeless(tmp_path / "a")


@pytest.mark.parametrize(
    "choice",
    ["maml", "maml_batched", "first_order", "imaml_gn", "imaml_hf", "imaml_authors_code"],
)
def test_every_meta_gradient_trains(tmp_path, choice):
    assert run(tmp_path / "r", f"metagrad={choice}", "wandb=disabled") == 0
    losses = [row["query_loss"] for row in rows(tmp_path / "r")]
    assert len(losses) == 6
    assert all(loss > 0 for loss in losses)


def test_sinusoids_train_by_their_loss(tmp_path):
    words = ["model.sizes=[1,8,1]", "tasks.test_queries=10"]
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "metagrad=maml_batched", "steps=4"]
    words += ["meta_batch=2", "validation.tasks=4", "test.tasks=4", "wandb=disabled"]
    assert main(["train", *words, f"run_dir={tmp_path / 'r'}"]) == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert "test_accuracy" not in summary
    assert summary["test_loss"] > 0


def test_the_wandb_run_holds_what_was_measured(tmp_path):
    assert run(tmp_path / "r", "metagrad=imaml") == 0
    (log,) = (tmp_path / "r" / "wandb").glob("offline-run-*/*.wandb")
    history = wandb_log.history(log)
    everywhere = {
        "query_loss",
        "query_accuracy",
        "peak_memory_bytes",
        "step_s",
        "inner_grad_norm",
        "solve_relative_residual",
        "solve_iterations",
        "solve_converged",
        "solve_negative_curvature",
        "ritz_low",
        "ritz_high",
    }
    steps = [row for row in history if "query_loss" in row]
    assert len(steps) == 6
    for row, logged in zip(rows(tmp_path / "r"), steps, strict=True):
        assert everywhere <= logged.keys()
        assert logged["query_loss"] == pytest.approx(row["query_loss"])
    validated = [row for row in history if "validation_accuracy" in row]
    assert len(validated) == 2
    assert "validation_accuracy_interval" in validated[0]
    config = wandb_log.config(log)
    assert config["metagrad"]["linear_solver"]["max_iters"] == 5
    summary = wandb_log.summary(log)
    assert {"test_accuracy", "test_accuracy_interval", "peak_memory_bytes"} <= summary.keys()
    assert list((tmp_path / "r" / "wandb").glob("offline-run-*/files/media/table/comparison*"))


def test_a_broken_wandb_is_said_once_and_training_goes_on(tmp_path, monkeypatch, capsys):
    import wandb

    def broken(**options):
        raise OSError("no")

    monkeypatch.setattr(wandb, "init", broken)
    assert run(tmp_path / "r", "metagrad=imaml") == 0
    assert capsys.readouterr().out.count("W&B") == 1
    assert len(rows(tmp_path / "r")) == 6


def test_divergence_stops_with_the_last_good_state_kept(tmp_path, capsys):
    status = run(
        tmp_path / "r", "metagrad=maml_batched", "metagrad.inner.lr=1e30", "wandb=disabled"
    )
    assert status == 1
    assert "not finite" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "r" / "last.pt")
    assert all(value.isfinite().all() for value in state["meta"].values())
    assert not (tmp_path / "r" / "summary.json").exists()


def test_a_run_is_not_written_over(tmp_path, capsys):
    assert run(tmp_path / "r", "metagrad=imaml", "wandb=disabled") == 0
    assert run(tmp_path / "r", "metagrad=imaml", "wandb=disabled") == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path):
    words = ["metagrad=imaml", "wandb=disabled"]
    assert run(tmp_path / "whole", *words) == 0
    assert run(tmp_path / "parts", *words, "steps=3") == 0
    assert main(["train", f"resume={tmp_path / 'parts'}", "steps=6"]) == 0
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    one, other = (checkpoint.load(tmp_path / k / "last.pt")["meta"] for k in ("parts", "whole"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_evaluation_repeats_the_runs_own_figure_and_says_its_mode(tmp_path, capsys):
    assert run(tmp_path / "r", "metagrad=imaml", "wandb=disabled") == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    capsys.readouterr()
    path = tmp_path / "r" / "best.pt"
    assert main(["evaluate", f"checkpoint={path}", "tasks=8"]) == 0
    said = capsys.readouterr().out
    assert f"{100 * summary['test_accuracy']:.2f} ±" in said
    assert "transductive" in said
    assert main(["evaluate", f"checkpoint={path}", "tasks=8", "transductive=false"]) == 0
    assert "inductive" in capsys.readouterr().out


def test_a_sweep_gives_each_job_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [w for w in TINY if not w.startswith("steps")]
    assert main(["train", "-m", *words, "steps=3", "wandb=disabled", "seed=0,1"]) == 0
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    seeds = {json.loads((f / "summary.json").read_text())["seed"] for f in folders}
    assert seeds == {0, 1}
