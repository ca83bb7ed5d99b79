"""Training under torchrun: its environment, its restarts and its jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rank_runs import WORDS, on_ranks, train
from tiny_run import rows, timeless

from metalearn.commands.main import main
from metalearn.training import checkpoint
from metalearn.tree import leaves_of


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two ranks that nothing disturbs."""
    folder = tmp_path_factory.mktemp("ranks") / "run"
    found = on_ranks(2, train, [*WORDS, "steps=10", f"run_dir={folder}"])
    assert [status for status, _ in found] == [0, 0]
    return folder


TORCHRUNS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (TORCHRUNS, "MASTER_PORT"),
        ({**TORCHRUNS, "MASTER_PORT": ""}, "MASTER_PORT"),
        ({**TORCHRUNS, "MASTER_PORT": "99999"}, "MASTER_PORT"),
        ({**TORCHRUNS, "MASTER_PORT": "2999", "RANK": "2"}, "RANK"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"RANK": "-1"}, "RANK"),
        ({"RANK": "1"}, "WORLD_SIZE"),
    ],
)
def test_incomplete_or_odd_variables_are_refused(monkeypatch, capsys, tmp_path, variables, name):
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert main(["train", *WORDS, f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert name in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_restarts_need_a_folder_to_find_the_run_by(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train", *WORDS, "steps=1"]) == 2
    assert "run_dir= is missing" in capsys.readouterr().err and not (tmp_path / "runs").exists()


LATE = """
import os, sys, time
from metalearn.commands.main import main
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
if attempt == "1" and rank == sys.argv[1]:
    time.sleep(2)
sys.exit(main(["train", *sys.argv[2:]]))
"""


@contextmanager
def torchrun(program: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", "--max-restarts=3", str(program), *words]
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    with subprocess.Popen(command, env=own | {"OMP_NUM_THREADS": "1"}) as agent:
        try:
            yield agent
        finally:
            agent.terminate()  # its workers too


def process_of_rank(parent: int, rank: int) -> int:
    """Its id, among the children of torchrun."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            try:
                if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(
                    b"\0"
                ):
                    return int(child)
            except OSError:
                continue
        time.sleep(0.05)
    raise AssertionError(f"there is no process of rank {rank}")


def wait_for(agent: subprocess.Popen[bytes], metrics: Path, lines: int) -> None:
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert agent.poll() is None
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the ranks in /proc")
def test_torchrun_restarts_a_killed_rank_and_a_signal_has_all_leave(undisturbed, tmp_path):
    """The new process of that rank begins late, and the other one finds the dead one's traces."""
    (tmp_path / "late.py").write_text(LATE)
    folder = tmp_path / "run"
    with torchrun(tmp_path / "late.py", "0", *WORDS, "steps=5000", f"run_dir={folder}") as agent:
        wait_for(agent, folder / "metrics.jsonl", 3)
        os.kill(process_of_rank(agent.pid, 0), signal.SIGKILL)
        wait_for(agent, folder / "metrics.jsonl", 20)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=120) == 1
    assert timeless(folder)[:10] == timeless(undisturbed)
    assert 20 <= checkpoint.load(folder / "last.pt")["step"] == len(rows(folder)) < 5000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_finishes_the_run_after_a_rank_is_killed(undisturbed, tmp_path, rank):
    (tmp_path / "late.py").write_text(LATE)
    folder = tmp_path / "run"
    words = [*WORDS, "steps=10", f"run_dir={folder}"]
    with torchrun(tmp_path / "late.py", str(rank), *words) as agent:
        wait_for(agent, folder / "metrics.jsonl", 3)
        os.kill(process_of_rank(agent.pid, rank), signal.SIGKILL)
        assert agent.wait(timeout=240) == 0
    assert timeless(folder) == timeless(undisturbed)
    a, b = (checkpoint.load(f / "last.pt")["meta"] for f in (folder, undisturbed))
    assert all(torch.equal(x, y) for x, y in zip(leaves_of(a), leaves_of(b), strict=True))


@pytest.mark.parametrize(
    ("job", "count", "words", "status"),
    [
        ("a", 1, [], 0),  # started again
        ("a", 0, [], 0),  # another node came or went, which is not counted
        ("a", 1, ["seed=7"], 2),
        ("b", 1, [], 2),
        ("none", 1, [], 2),  # torchrun's name for a job that got none
        ("", 0, [], 2),
    ],
)
def test_a_job_goes_on_with_its_own_run_alone(
    tmp_path, monkeypatch, capsys, job, count, words, status
):
    given = [*WORDS, f"run_dir={tmp_path / 'run'}", "validation.every=1"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert main(["train", *given, "steps=1"]) == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    if job:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
    assert main(["train", *given, "steps=2", *words]) == status
    if status:
        assert "holds a run already" in capsys.readouterr().err
        assert (tmp_path / "run" / "last.pt").read_bytes() == before
    else:
        assert len(rows(tmp_path / "run")) == 2


def test_a_nameless_job_goes_on_with_its_run_once_started_again(tmp_path, monkeypatch):
    given = [*WORDS, f"run_dir={tmp_path / 'run'}", "validation.every=1"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["train", *given, "steps=1"]) == 0
    assert main(["train", *given, "steps=2"]) == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["train", *given, "steps=2"]) == 0


@pytest.mark.parametrize("words", [["adapt"], ["bench", "cg"], ["train", "-m", "seed=0,1"]])
def test_what_is_no_work_for_several_processes_is_refused(monkeypatch, capsys, words):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    assert "start it without torchrun" in capsys.readouterr().err
