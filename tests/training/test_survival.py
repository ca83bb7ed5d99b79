"""Runs that are killed at random moments and gone on with equal one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import wandb_log
from forked_runs import ForkedRuns
from omegaconf import OmegaConf
from tiny_run import rows, timeless
from torch.utils._pytree import tree_flatten_with_path

from metalearn.commands.main import main
from metalearn.training import checkpoint
from metalearn.training.run_folder import RunFolder

WORDS = ["tasks=sinusoid", "model=mlp_sinusoid", "model.sizes=[1,8,1]", "metagrad=maml_batched"]
WORDS += ["metagrad.inner.steps=2", "meta_batch=2", "validation.every=20", "validation.tasks=4"]
WORDS += ["test.tasks=4", "threads=1", "schedule=cosine"]
KEPT = ["average=0.9", "keep_best=3"]
GLYPHS = ["tasks=glyphs", "tasks.dataset.drawings=4", "model=mlp", "model.sizes=[784,8,5]"]
GLYPHS += ["metagrad=imaml_warm", "metagrad.curvature=gauss_newton", "metagrad.inner.steps=2"]
GLYPHS += ["meta_batch=2", "validation.every=50"]
GLYPHS += ["validation.tasks=4", "test.tasks=4", "threads=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with ForkedRuns(tmp_path_factory.mktemp("runs")) as runs:
        yield runs


def same(one: Path, other: Path) -> None:
    """All that a run leaves, but for timings and W&B's id; bit for bit."""
    assert timeless(one) == timeless(other)
    best = {path.name for path in other.glob("best*.pt")}
    assert {path.name for path in one.glob("best*.pt")} == best
    for name in ("last.pt", *best):
        found, expected = (checkpoint.load(folder / name) for folder in (one, other))
        for state in (found, expected):
            del state["config"]["run_dir"]
            state.pop("wandb_id", None)
        pairs = zip(*(tree_flatten_with_path(s)[0] for s in (found, expected)), strict=True)
        for (path, a), (other_path, b) in pairs:
            assert path == other_path
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


def left_alone(runs: ForkedRuns, folder: Path, words: list[str]) -> Path:
    assert runs.run("train", *words, f"run_dir={folder}") == 0
    return folder


def steps_of(times: int) -> str:
    return f"steps={60 * times}"  # more than they get to before the last signal


@pytest.mark.parametrize(
    ("words", "times"),
    [
        pytest.param([*WORDS, *KEPT], 4, id="sinusoid, averaged, the best three kept"),
        pytest.param(WORDS, 20, id="sinusoid, 20 times", marks=pytest.mark.slow),
        pytest.param(GLYPHS, 20, id="glyphs, 20 times", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(runs, tmp_path, words, times):
    words = [*words, steps_of(times), "wandb=disabled"]
    whole = left_alone(runs, tmp_path / "whole", words)
    folder = tmp_path / "killed"
    statuses = runs.disturb(folder, [*words, f"run_dir={folder}"], signal.SIGKILL, times, 0.4)
    assert statuses.count(-signal.SIGKILL) == times
    same(folder, whole)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_asked_to_leave_at_random_moments(runs, tmp_path, times):
    words = [*WORDS, steps_of(times), "wandb=disabled"]
    whole = left_alone(runs, tmp_path / "whole", words)
    folder = tmp_path / "asked"
    statuses = runs.disturb(folder, [*words, f"run_dir={folder}"], signal.SIGTERM, times, 0.4)
    assert set(statuses) <= {128 + signal.SIGTERM, -signal.SIGTERM, 0}  # -15: before it had begun
    same(folder, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_loses_no_meta_step_and_has_its_own_status(runs, tmp_path, signum):
    folder = tmp_path / "r"
    words = [*WORDS, "steps=100000", "wandb=disabled", "checkpoint_every=100000"]
    pid = runs.start("train", *words, f"run_dir={folder}")
    runs.signal_when(pid, signum, folder / "metrics.jsonl", lines=5)
    assert runs.wait() == 128 + signum
    last = rows(folder)[-1]["step"]
    assert last >= 5
    assert checkpoint.load(folder / "last.pt")["step"] == last
    said = runs.output.read_text()
    assert f"{signum.name}: left after meta-step {last}; go on with" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_wandb_has_every_step_once_however_often_the_run_is_killed(runs, tmp_path):
    words, folder = [*WORDS, "steps=900", "wandb=offline"], tmp_path / "r"
    runs.disturb(folder, [*words, f"run_dir={folder}"], signal.SIGKILL, 8, 1.6)
    (log,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    history = wandb_log.history(log)
    assert [row["_step"] for row in history] == list(range(1, 901))
    for logged, row in zip(history, rows(folder), strict=True):
        assert logged["query_loss"] == row["query_loss"]
    assert log.stem.partition("-")[2] == checkpoint.load(folder / "last.pt")["wandb_id"]


def test_no_second_process_trains_into_a_folder_until_the_first_has_died(runs, tmp_path, capsys):
    folder = tmp_path / "r"
    pid = runs.start("train", *WORDS, "steps=100000", "wandb=disabled", f"run_dir={folder}")
    runs.signal_when(pid, 0, folder / "metrics.jsonl", lines=12)
    assert main(["train", f"resume={folder}"]) == 2
    said = capsys.readouterr().err
    assert "by another process" in said and said.count("\n") == 1
    runs.signal_when(pid, signal.SIGKILL, folder / "metrics.jsonl", lines=20)
    assert runs.wait() == -signal.SIGKILL
    with RunFolder(folder, OmegaConf.create({}), resume=True) as run:
        assert run.load()[0]["step"] >= 10


def test_a_sweep_ends_with_the_job_that_was_asked_to_leave(runs):
    runs.output.unlink(missing_ok=True)
    here = runs.output.parent
    pid = runs.start("train", "-m", *WORDS, "steps=100000", "wandb=disabled", "seed=0,1,2")
    while not (found := list(here.glob("runs/*/metrics.jsonl"))):
        time.sleep(0.01)
    runs.signal_when(pid, signal.SIGTERM, found[0], lines=3)
    assert runs.wait() == 128 + signal.SIGTERM
    assert len(list((here / "runs").iterdir())) == 1
    assert runs.output.read_text().count("left after meta-step") == 1


def test_a_run_goes_on_after_the_process_of_wandb_was_killed(runs, tmp_path):
    folder = tmp_path / "r"
    runs.output.unlink(missing_ok=True)
    words = [word for word in WORDS if word != "schedule=cosine"]  # whose end is fixed
    pid = runs.start("train", *words, "steps=100", "wandb=offline", f"run_dir={folder}")
    runs.signal_when(pid, 0, folder / "metrics.jsonl", lines=10)
    os.kill(wandb_service(pid), signal.SIGKILL)
    assert runs.wait() == 0
    assert runs.output.read_text().count("W&B stopped") == 1
    assert [row["step"] for row in rows(folder)] == list(range(1, 101))
    assert json.loads((folder / "summary.json").read_text())["steps"] == 100
    # The next session's W&B run has the rows that this one's lost.
    assert runs.run("train", f"resume={folder}", "steps=102") == 0
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert [row["_step"] for row in wandb_log.history(file)] == list(range(1, 103))


def wandb_service(pid: int) -> int:
    """W&B's own process, a child of the run's."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = (
        int(p) for p in children if b"wandb-core" in Path(f"/proc/{p}/cmdline").read_bytes()
    )
    return found
