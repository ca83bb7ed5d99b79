"""Runs into a folder: kills, signals, faults, and two processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import bilevel_runs
import pytest
import torch
from bilevel_runs import STEPS, run
from network_problem import NetworkProblem, loaders
from rank_runs import on_ranks

from metalearn.bilevel import SOBA, AmIGO, train
from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.training import checkpoint
from metalearn.tree import leaves_of


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "step_s"} for line in lines]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Compare metrics and the last checkpoint, to the bit."""
    assert rows(one) == rows(other)
    states = [checkpoint.read(folder / "last.pt")["descent"] for folder in (one, other)]
    for name in ("meta", "inner", "outer", "memory"):
        found = [[x for x in leaves_of(s[name]) if isinstance(x, torch.Tensor)] for s in states]
        assert all(map(torch.equal, *found)), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_a_run_killed_at_any_moment_resumes_to_the_bit(whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bilevel_runs", "torch._dynamo"])
    moments, folder, kills = random.Random(0), tmp_path / "run", 0
    while True:
        process = context.Process(target=bilevel_runs.run_until_killed, args=(folder,))
        process.start()
        if kills < 4:
            wanted = moments.randint(1, STEPS - 1)
            while process.is_alive() and len(lines(folder)) < min(wanted, STEPS):
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.01))
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert kills == 4
    assert_equal_runs(folder, whole)


def lines(folder: Path) -> list[bytes]:
    path = folder / "metrics.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def test_a_signal_saves_the_state_and_the_run_goes_on(whole, tmp_path):
    class Signalling(NetworkProblem):
        calls = 0

        def outer_loss(self, params, meta, batch):
            self.calls += 1
            if self.calls == 20:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().outer_loss(params, meta, batch)

    problem = Signalling(dropout=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bilevel_runs, "NetworkProblem", lambda dropout: problem)
        with pytest.raises(TrainingInterrupted, match=r"left after outer step .* resume=True"):
            run(tmp_path)
    left = len(rows(tmp_path))
    assert left < STEPS
    assert checkpoint.read(tmp_path / "last.pt")["step"] == left
    state = checkpoint.read(tmp_path / "last.pt")
    state["run"]["problem"] = "network_problem.NetworkProblem"
    checkpoint.save(tmp_path / "last.pt", state)
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_the_certificate_is_logged_as_curves(whole):
    found = rows(whole)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert all({"outer_loss", "inner_loss", "grad_norm", "inner_lr"} <= row.keys() for row in found)
    certified = [row["step"] for row in found if "estimated_residual_square" in row]
    assert certified == list(range(5, STEPS + 1, 5))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == STEPS and "SOBA" in summary["method"]


def test_certificates_change_no_step(whole, tmp_path):
    run(tmp_path, certify=None)
    assert [r["outer_loss"] for r in rows(tmp_path)] == [r["outer_loss"] for r in rows(whole)]


def test_divergence_names_the_last_good_state(tmp_path):
    with pytest.raises(TrainingStopped, match=r"stopped at outer step .*the state of outer step 7"):
        problem = NetworkProblem()

        def unstable(tensors):
            return torch.optim.SGD(tensors, lr=0.1)

        class Breaking(NetworkProblem):
            calls = 0

            def inner_loss(self, params, meta, batch):
                self.calls += 1
                loss = super().inner_loss(params, meta, batch)
                return loss * (float("inf") if self.calls > 10 else 1.0)

        options = {"run_dir": tmp_path, "steps": 30, "checkpoint_every": 7}
        pair = loaders(problem)
        train(Breaking(), SOBA(0.05), problem.begin(), *pair, unstable, unstable, **options)
    assert len(rows(tmp_path)) == 10


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path):
    run(tmp_path, steps=20)
    with (tmp_path / "last.pt").open("r+b") as file:
        file.write(b"damaged!")
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_bad_use_is_one_sentence(whole, tmp_path):
    with pytest.raises(UsageError, match="holds a run already; choose another, or resume=True"):
        run(whole)
    with pytest.raises(UsageError, match="is absent; put it back, or train anew"):
        run(tmp_path / "nothing", resume=True)
    with pytest.raises(UsageError, match=r"steps=0: expected a whole number from 1 on"):
        run(tmp_path, steps=0)
    with pytest.raises(UsageError, match=r"method=.*AmIGO.*: expected .*SOBA.* as in the run"):
        run(whole, AmIGO(2, 2, 0.05), resume=True)
    with pytest.raises(UsageError, match=rf"steps=5: expected at least {STEPS}"):
        run(whole, steps=5, resume=True)
    assert not list(tmp_path.iterdir())


def test_two_processes_give_the_hypergradients_of_one():
    one = bilevel_runs.hypergradients()
    two = on_ranks(2, bilevel_runs.hypergradients)
    split = on_ranks(2, bilevel_runs.hypergradients, 2)[0]
    for several in (two[0], split):
        for mine, theirs in zip(one, several, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                # Float32 sums in another order, over three steps.
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(*two, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_two_processes_train_one_run(tmp_path):
    metas = on_ranks(2, bilevel_runs.train_on_ranks, tmp_path)
    assert all(map(torch.equal, *metas))
    assert len(rows(tmp_path)) == 10
    said = on_ranks(2, bilevel_runs.train_differently_on_ranks, tmp_path / "other")
    assert all(s.startswith("TrainingStopped: stopped at outer step") for s in said), said
