"""Training runs from the command line to the files that they leave."""

from __future__ import annotations

import io
import json
import math
import shutil
import statistics
from contextlib import redirect_stdout

import pytest
import torch
import wandb_log
from tiny_run import TINY, rows, run, timeless

from metalearn.commands.main import main
from metalearn.config import config_folder
from metalearn.training import checkpoint
from metalearn.training.estimate import Estimate
from metalearn.training.metrics_file import to_json
from metalearn.tree import leaves_of

SINUSOID = ["tasks=sinusoid", "model=mlp_sinusoid", "metagrad=maml_batched", "steps=4"]
SINUSOID += ["meta_batch=2", "validation.tasks=4", "test.tasks=4", "wandb=disabled"]
CHOICES = sorted(file.stem for file in (config_folder() / "metagrad").glob("*.yaml"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "r"
    assert run(folder, "metagrad=imaml", "wandb=disabled") == 0
    return folder


@pytest.fixture
def finished(trained, tmp_path):
    """A finished run of 6 meta-steps, to be spoilt."""
    return shutil.copytree(trained, tmp_path / "r")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked") / "r"
    with redirect_stdout(io.StringIO()) as said:
        assert run(folder, "metagrad=imaml") == 0
    (folder.parent / "said").write_text(said.getvalue())
    return folder


def test_a_run_leaves_what_it_promises(tracked):
    names = {p.name for p in tracked.iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "summary.json", "wandb"),
        *("best.pt", "last.pt", "last.1.pt"),
    }
    assert [row["step"] for row in rows(tracked)] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((tracked / "summary.json").read_text())
    assert 0 <= summary["test_accuracy"] <= 1
    assert min(summary[k] for k in ("test_accuracy_interval", "peak_memory_bytes", "step_s")) > 0
    assert summary["test_tasks"] == 8 and summary["mode"] == "transductive" and summary["seed"] == 0
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    said = (tracked.parent / "said").read_text()
    assert all(part in said for part in ("test accuracy", "transductive", str(tracked)))


def test_the_same_seed_gives_the_same_metrics(trained, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        assert run(tmp_path / name, "metagrad=imaml", "wandb=disabled", f"seed={seed}") == 0
        assert (timeless(tmp_path / name) == timeless(trained)) is (seed == 0)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_meta_gradient_trains(tmp_path, choice):
    assert run(tmp_path / "r", f"metagrad={choice}", "wandb=disabled", "steps=2") == 0
    losses = [row["query_loss"] for row in rows(tmp_path / "r")]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)


def test_sinusoids_train_by_their_loss(tmp_path):
    assert main(["train", *SINUSOID, f"run_dir={tmp_path / 'r'}"]) == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert "test_accuracy" not in summary
    assert summary["test_loss"] > 0


def test_the_wandb_run_holds_what_was_measured(tracked):
    (log,) = (tracked / "wandb").glob("offline-run-*/*.wandb")
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
    for row, logged in zip(rows(tracked), steps, strict=True):
        assert everywhere <= logged.keys()
        assert logged["query_loss"] == pytest.approx(row["query_loss"])
    validated = [row for row in history if "validation_accuracy" in row]
    assert len(validated) == 2
    assert "validation_accuracy_interval" in validated[0]
    config = wandb_log.config(log)
    assert config["metagrad"]["linear_solver"]["max_iters"] == 5
    assert config["method"] == "imaml"
    summary = wandb_log.summary(log)
    assert {"test_accuracy", "test_accuracy_interval", "peak_memory_bytes"} <= summary.keys()
    assert list((tracked / "wandb").glob("offline-run-*/files/media/table/comparison*"))


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


@pytest.mark.parametrize(
    ("words", "stopped"),
    [
        (["metagrad=first_order", "optimiser=sgd", "optimiser.lr=3e38"], "optimiser.lr"),
        (["metagrad=first_order", "optimiser=sgd", "optimiser.lr=1e30"], "not finite"),
        (["metagrad.inner.lr=1e30"], "not finite"),
    ],
    ids=["the step", "the next loss", "the loss"],
)
def test_a_checkpoint_never_holds_what_is_not_finite(tmp_path, capsys, words, stopped):
    assert main(["train", *SINUSOID, *words, f"run_dir={tmp_path}"]) == 1
    said = capsys.readouterr().err
    state = checkpoint.load(tmp_path / "last.pt")
    assert stopped in said and f"of meta-step {state['step']}," in said
    assert f"stopped at meta-step {state['step'] + 1}:" in said
    assert all(value.isfinite().all() for value in state["meta"].values())
    assert state["step"] == len(rows(tmp_path))


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
    nan = {"loss": Estimate(math.nan, math.nan)}
    monkeypatch.setattr("metalearn.training.loop.evaluate", lambda *_, **__: nan)
    assert main(["train", *SINUSOID, f"run_dir={tmp_path}"]) == 1
    assert "the validation loss is not finite" in capsys.readouterr().err
    assert rows(tmp_path)[-1]["validation_loss"] is None
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 4


def test_infinities_are_null_in_json():
    text = to_json({"a": math.inf, "b": math.nan, "c": 1.5})
    assert json.loads(text) == {"a": None, "b": None, "c": 1.5}


def test_a_linear_solve_that_mostly_breaks_off_is_warned_of_once(tmp_path, capsys):
    assert run(tmp_path / "r", "metagrad=imaml", "prox=1e-3", "wandb=disabled") == 0
    assert all(row["solve_negative_curvature"] == 3 for row in rows(tmp_path / "r"))
    said = capsys.readouterr().out
    assert said.count("warning") == 1
    assert "negative_curvature 3" in said and "metagrad.curvature=gauss_newton" in said


def test_a_run_is_not_written_over(trained, capsys):
    assert run(trained, "metagrad=imaml", "wandb=disabled") == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "choice", ["imaml", "imaml_warm", "imaml_learned_prox", "meta_sgd", "maml_plus_plus", "anil"]
)
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, choice):
    words = [f"metagrad={choice}", "wandb=disabled"]
    assert run(tmp_path / "whole", *words) == 0
    assert run(tmp_path / "parts", *words, "steps=3") == 0
    assert main(["train", f"resume={tmp_path / 'parts'}", "steps=6"]) == 0
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    one, other = (checkpoint.load(tmp_path / k / "last.pt") for k in ("parts", "whole"))
    for key in ("meta", "carry"):
        pairs = zip(leaves_of(one[key]), leaves_of(other[key]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert bool(one["carry"]) == (choice in ("imaml_warm", "maml_plus_plus"))


def test_what_is_learned_beside_the_weights_is_trained_and_evaluated(tmp_path, capsys):
    words = ["metagrad=maml_batched", "learn_rates=true", "learn_prox=true", "prox=0.5"]
    words += ["adapt=head", "optimiser.lr=0.01", "wandb=disabled"]
    assert run(tmp_path / "r", *words) == 0
    meta = checkpoint.load(tmp_path / "r" / "best.pt")["meta"]
    assert set(meta["log_rates"]) == {"3.weight", "3.bias"}
    assert all((x != 0).all() for x in meta["log_rates"].values())
    strength = meta["theta"]["log_prox"].exp().item()
    assert rows(tmp_path / "r")[0]["query_prox"] == pytest.approx(0.5)
    assert abs(strength - 0.5) > 1e-3
    capsys.readouterr()
    assert main(["evaluate", f"checkpoint={tmp_path / 'r' / 'best.pt'}", "tasks=8"]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and f"prox {strength:.4f}" in said


def test_a_warm_start_changes_what_the_second_meta_step_solves(tmp_path):
    # Of one iteration each, so that the start shows in the residual.
    words = ["metagrad.linear_solver.max_iters=1", "wandb=disabled", "steps=3"]
    for choice in ("imaml", "imaml_warm"):
        assert run(tmp_path / choice, f"metagrad={choice}", *words) == 0
    cold, warm = timeless(tmp_path / "imaml"), timeless(tmp_path / "imaml_warm")
    assert warm[0] == cold[0] | {"peak_memory_bytes": warm[0]["peak_memory_bytes"]}
    assert warm[1]["solve_relative_residual"] != cold[1]["solve_relative_residual"]


def test_a_finished_run_that_is_resumed_keeps_its_steps_and_times(finished):
    whole = (finished / "metrics.jsonl").read_text()
    assert main(["train", f"resume={finished}"]) == 0
    assert (finished / "metrics.jsonl").read_text() == whole
    times = [row["step_s"] for row in rows(finished)]
    assert main(["train", f"resume={finished}", "steps=8", "threads=1"]) == 0
    times = [row["step_s"] for row in rows(finished)]
    assert len(times) == 8
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 8
    assert summary["train_s"] == pytest.approx(sum(times))
    assert summary["step_s"] == statistics.median_high(times)


def test_a_row_that_a_crash_cut_short_is_dropped(finished):
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "query_lo')
    assert main(["train", f"resume={finished}", "steps=8"]) == 0
    assert [row["step"] for row in rows(finished)] == [1, 2, 3, 4, 5, 6, 7, 8]


SPOILT = {
    "another option": (
        lambda f: None,
        ["problem.prox=3"],
        "problem.prox= cannot be given beside resume=",
    ),
    "another choice": (lambda f: None, ["metagrad=maml"], "metagrad= cannot be given"),
    "an experiment": (lambda f: None, ["experiment=omniglot_5w1s_maml"], "experiment= cannot"),
    "fewer steps": (lambda f: None, ["steps=5"], "has taken 6"),
    "cosine": (
        lambda f: edit(f / "config.yaml", "schedule: constant", "schedule: cosine"),
        ["steps=9"],
        "schedule=cosine",
    ),
    "no rows": (lambda f: (f / "metrics.jsonl").unlink(), [], "metrics.jsonl is absent"),
    "a bad row": (lambda f: edit(f / "metrics.jsonl", '{"step": 3', "{"), [], "line 3 of"),
    "no checkpoint": (
        lambda f: [(f / name).unlink() for name in ("last.pt", "last.1.pt")],
        [],
        "no checkpoint",
    ),
    "lost rows": (
        lambda f: (f / "metrics.jsonl").write_text((f / "metrics.jsonl").read_text()[:20]),
        [],
        "ends at meta-step 0, before the checkpoint's 6",
    ),
    "no YAML": (lambda f: (f / "config.yaml").write_text("a: [1"), [], "cannot be read"),
    "bytes": (lambda f: (f / "config.yaml").write_bytes(b"\xff\x00"), [], "cannot be read"),
    "a list": (lambda f: (f / "config.yaml").write_text("[1]"), [], "holds no options"),
    "half a config": (lambda f: (f / "config.yaml").write_text("seed: 0"), [], "lacks"),
    "another type": (lambda f: edit(f / "config.yaml", "seed: 0", "seed: x"), [], "whole number"),
    "another model": (
        lambda f: edit(f / "config.yaml", "- 8\n", "- 9\n"),
        [],
        "model.sizes=[784, 9, 5]: expected [784, 8, 5]",
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_run_that_cannot_be_resumed_is_left_as_it_was(fault, finished, capsys):
    spoil, words, sentence = SPOILT[fault]
    spoil(finished)
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    assert main(["train", f"resume={finished}", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


def test_a_resumed_run_keeps_its_wandb_id_and_history(tmp_path):
    assert run(tmp_path / "r", "metagrad=imaml", "steps=3") == 0
    (first,) = (tmp_path / "r" / "wandb").glob("offline-run-*/*.wandb")
    assert main(["train", f"resume={tmp_path / 'r'}", "steps=4", "wandb=disabled"]) == 0
    assert main(["train", f"resume={tmp_path / 'r'}", "steps=6", "wandb=offline"]) == 0
    (again,) = (tmp_path / "r" / "wandb").glob("offline-run-*/*.wandb")
    assert again.name == first.name
    assert [row["_step"] for row in wandb_log.history(again)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["threads=0"], "from 1 to"),
        (["queries=99"], "images a class"),
        (["inner_steps=[-1]"], "at least 0"),
        (["device=meta"], "'cpu' or 'cuda'"),
    ],
    ids=" ".join,
)
def test_evaluation_refuses_in_one_sentence(trained, capsys, words, sentence):
    assert main(["evaluate", f"checkpoint={trained / 'best.pt'}", "tasks=8", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@pytest.mark.parametrize("key", ["config", "meta"])
def test_a_checkpoint_that_lacks_a_part_is_refused(finished, capsys, key):
    state = checkpoint.load(finished / "best.pt")
    del state[key]
    checkpoint.save(finished / "best.pt", state)
    assert main(["evaluate", f"checkpoint={finished / 'best.pt'}"]) == 2
    assert f"without {key}" in capsys.readouterr().err


def test_evaluation_repeats_the_runs_own_figure_and_says_its_mode(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    capsys.readouterr()
    path = finished / "best.pt"
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
    folders = [path.parent for path in (tmp_path / "runs").glob("*/summary.json")]
    assert len(folders) == 2
    seeds = {json.loads((f / "summary.json").read_text())["seed"] for f in folders}
    assert seeds == {0, 1}
