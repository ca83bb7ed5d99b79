"""`metalearn evaluate` on several processes: the file of one process, written by process 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from rank_runs import command, on_ranks

from metalearn.commands.main import main
from metalearn.training import checkpoint, evaluation

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "r"
    assert tiny_run.run(folder, "steps=2", "wandb=disabled") == 0
    return folder / "best.pt"


def words(best: Path, *own: str) -> list[str]:
    return ["evaluate", f"checkpoint={best}", "threads=1", "tasks=70", *own]


def content(out: Path) -> dict[str, Any]:
    """The file less the command that made it and its date."""
    found = json.loads(out.read_text())
    return {key: value for key, value in found.items() if key not in ("command", "date")}


@pytest.mark.parametrize(
    ("size", "own"),
    [
        (2, ["inner_steps=[1,3]"]),
        (4, []),  # 70 tasks are three batches, so that the last rank has none
        (2, ["ensemble=true"]),
        (2, ["checkpoint=[{0},{0}]"]),
    ],
)
def test_any_number_of_ranks_writes_the_file_of_one(best, tmp_path, size, own):
    own = [word.format(best) for word in own]
    one, several = tmp_path / "one.json", tmp_path / "ranks" / "several.json"
    several.parent.mkdir()
    assert main(words(best, *own, f"out={one}")) == 0
    asked = words(best, *own, f"out={several}")
    first, *others = on_ranks(size, command, asked, str(several.parent))
    assert first[0] == 0 and f"wrote {several}" in first[1]
    assert others == [(0, "", "")] * (size - 1)
    # Each batch of tasks is computed by one rank as one process computes it: equal to the last bit.
    assert content(several) == content(one)


def _command_of_rank(asked: list[list[str]]) -> tuple[int, str, str]:
    return command(asked[int(os.environ["RANK"])])


def _command_without_memory(asked: list[str]) -> tuple[int, str, str]:
    """Rank 1 has no memory for a task."""

    def hungry(*args: object) -> None:
        raise MemoryError

    if os.environ["RANK"] == "1":
        evaluation._judged = hungry
    return command(asked)


def one_sentence(found: list[tuple[int, str, str]], status: int) -> str:
    """The sentence of rank 0, after which all ranks have left with that status."""
    assert [each[0] for each in found] == [status] * len(found)
    assert [each[2] for each in found[1:]] == [""] * (len(found) - 1)
    assert found[0][2].count("\n") == 1
    return found[0][2]


def test_a_rank_without_memory_ends_all_with_one_sentence(best, tmp_path):
    asked = words(best, f"out={tmp_path / 'e.json'}")
    said = one_sentence(on_ranks(2, _command_without_memory, asked), 1)
    assert "one task alone" in said and not (tmp_path / "e.json").exists()


@pytest.mark.parametrize(
    ("own", "sentence"),
    [("tasks=71", "tasks: rank 0 has 70 and rank 1 has 71"), ("tasks=x", "tasks=x")],
)
def test_a_rank_with_another_option_ends_all_with_one_sentence(best, tmp_path, own, sentence):
    asked = words(best, f"out={tmp_path / 'e.json'}")
    found = on_ranks(2, _command_of_rank, [asked, [*asked, own]])
    assert sentence in one_sentence(found, 2) and not (tmp_path / "e.json").exists()


def test_a_rank_with_other_weights_ends_all_with_one_sentence(best, tmp_path):
    """The same path is another file on another machine."""
    state = checkpoint.load(best)
    state["meta"] = {name: torch.zeros_like(p) for name, p in state["meta"].items()}
    for rank, kept in enumerate((checkpoint.load(best), state)):
        (tmp_path / str(rank)).mkdir()
        checkpoint.save(tmp_path / str(rank) / "best.pt", kept)
    found = on_ranks(2, _command_in_folder_of_rank, tmp_path, words(Path("./best.pt")))
    assert "weights" in one_sentence(found, 2)


def _command_in_folder_of_rank(parent: Path, asked: list[str]) -> tuple[int, str, str]:
    os.chdir(parent / os.environ["RANK"])
    return command(asked)


@pytest.mark.slow
def test_torchrun_evaluates_as_one_process_does(best, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert main(words(best, f"out={one}")) == 0
    asked = [*TORCHRUN, "-m", "metalearn", *words(best, f"out={two}")]
    done = subprocess.run([sys.executable, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert content(two) == content(one)
