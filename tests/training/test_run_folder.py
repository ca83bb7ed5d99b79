"""A disk that takes no more, a folder that cannot be written, W&B away: a run says so and loses
nothing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_run import rows, run, timeless

from metalearn.commands.main import main
from metalearn.training import checkpoint, tracking
from metalearn.training.run_folder import RunFolder

WORDS = ["metagrad=imaml", "wandb=disabled", "checkpoint_every=1"]


@contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    """A small disk of its own at `path`."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk, and not everywhere")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system's own limit on a file's size, which a shell sets by `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """By permissions; where they do not hold, for root, by a mount of the folder on itself."""
    metrics = folder / "metrics.jsonl"
    folder.chmod(0o555)
    metrics.chmod(0o444)
    held = not os.access(metrics, os.W_OK)
    try:
        if held:
            yield
    finally:
        folder.chmod(0o755)
        metrics.chmod(0o644)
    if held:
        return
    bind = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of 6 meta-steps that was left after 3."""
    folder = tmp_path_factory.mktemp("half") / "r"
    assert run(folder, *WORDS, "steps=3") == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "r"
    assert run(folder, *WORDS) == 0
    return folder


def goes_on(folder: Path, whole: Path) -> None:
    assert main(["train", f"resume={folder}", "steps=6"]) == 0
    assert timeless(folder) == timeless(whole)
    one, other = (checkpoint.load(f / "last.pt")["meta"] for f in (folder, whole))
    assert all(torch.equal(one[k], other[k]) for k in other)


def test_a_file_that_may_not_grow(half, whole, tmp_path, capsys):
    """The checkpoint is too large for the limit; the rows are not."""
    folder = shutil.copytree(half, tmp_path / "r")
    before = (folder / "last.pt").read_bytes()
    (folder / "best.pt").unlink()
    with files_up_to(len(before) // 2):
        assert main(["train", f"resume={folder}", "steps=6"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    assert "cannot be written (File too large)" in said
    assert f"{folder / 'last.pt'}, of meta-step 3, is whole" in said
    assert (folder / "last.pt").read_bytes() == before
    assert not list(folder.glob(".*"))  # the half that was written is gone
    goes_on(folder, whole)


def test_a_row_that_does_not_fit_is_not_begun(half, whole, tmp_path, capsys):
    folder = shutil.copytree(half, tmp_path / "r")
    lines = (folder / "metrics.jsonl").read_bytes()
    with RunFolder(folder, None, resume=True) as opened:  # type: ignore[arg-type]
        with files_up_to(len(lines) + 10), pytest.raises(OSError):
            opened.metrics.append({"step": 4, "step_s": 0.1, "query_loss": 0.123456789})
        assert (folder / "metrics.jsonl").read_bytes() == lines
    goes_on(folder, whole)


def test_a_full_disk(whole, tmp_path, capsys):
    with mounted(tmp_path / "disk", "1m") as disk:
        folder = disk / "r"
        assert run(folder, *WORDS, "steps=3") == 0
        fill = os.open(disk / "other", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(fill, bytes(4096))
        os.close(fill)
        before = (folder / "last.pt").read_bytes()
        capsys.readouterr()
        assert main(["train", f"resume={folder}", "steps=6"]) in (1, 2)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "No space left on device" in said
        assert (folder / "last.pt").read_bytes() == before
        (disk / "other").unlink()
        goes_on(folder, whole)


def test_a_disk_that_fills_up_while_it_trains(tmp_path, capsys, whole):
    with mounted(tmp_path / "disk", "400k") as disk:
        folder = disk / "r"
        assert run(folder, *WORDS, "keep_checkpoints=9") == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "No space left on device" in said
        state, damaged = checkpoint.newest(folder)
        assert not damaged and f"of meta-step {state['step']}, is whole" in said
        assert rows(folder)[-1]["step"] >= state["step"] > 0


def test_a_read_only_folder(half, whole, tmp_path, capsys):
    folder = shutil.copytree(half, tmp_path / "r")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with read_only(folder):
        assert main(["train", f"resume={folder}", "steps=6"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "cannot be written" in said
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    goes_on(folder, whole)


def test_a_folder_that_becomes_read_only_while_it_trains(whole, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "r"
    log = RunFolder.log
    with read_only_from(folder, 4, monkeypatch):
        assert run(folder, *WORDS) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be written" in said
    assert "of meta-step 3, is whole" in said
    monkeypatch.setattr(RunFolder, "log", log)
    goes_on(folder, whole)


@contextmanager
def read_only_from(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    log, entered = RunFolder.log, []

    def spoilt(self, row):
        log(self, row)
        if row["step"] == step:
            entered.append(read_only(folder))
            entered[0].__enter__()

    monkeypatch.setattr(RunFolder, "log", spoilt)
    try:
        yield
    finally:
        for context in entered:
            context.__exit__(None, None, None)


def test_a_folder_that_is_trained_into_is_locked(half, tmp_path, capsys):
    folder = shutil.copytree(half, tmp_path / "r")
    with RunFolder(folder, None, resume=True):  # type: ignore[arg-type]
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        assert main(["train", f"resume={folder}", "steps=6"]) == 2
        said = capsys.readouterr().err
        assert "is being trained into by another process" in said and said.count("\n") == 1
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert main(["train", f"resume={folder}", "steps=6"]) == 0


def test_a_run_that_is_extended_has_no_summary_until_it_ends(tmp_path, monkeypatch, whole):
    """Else its earlier end would count as the end of what goes on."""
    folder = shutil.copytree(whole, tmp_path / "r")
    assert (folder / "summary.json").exists()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_newest", full)
        assert main(["train", f"resume={folder}", "steps=9"]) == 1
    assert not (folder / "summary.json").exists()
    assert main(["train", f"resume={folder}", "steps=9"]) == 0
    assert (folder / "summary.json").exists()


def test_what_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    assert run(folder, *WORDS, "steps=1") == 0


def test_wandb_that_cannot_be_reached(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "PATIENCE_S", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    assert run(tmp_path / "r", "metagrad=imaml", "checkpoint_every=1", "wandb=online") == 0
    assert capsys.readouterr().out.count("W&B stopped") == 1
    assert timeless(tmp_path / "r") == timeless(whole)
