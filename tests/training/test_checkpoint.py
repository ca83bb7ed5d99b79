"""Checkpoints that are torn, tampered with, old or malicious."""

from __future__ import annotations

import os
import random
import shutil
import zipfile

import pytest
import torch
from tiny_run import run, timeless

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.training import checkpoint
from metalearn.training.checkpoint import DamagedCheckpoint

STATE = {"step": 3, "best": 0.5, "meta": {"w": torch.randn(7, 5)}, "config": {"seed": 0}}
WORDS = ["metagrad=imaml", "wandb=disabled", "checkpoint_every=2"]


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "a.pt", STATE)
    return tmp_path / "a.pt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 6 meta-steps, whose checkpoints are of the 6th and the 4th."""
    folder = tmp_path_factory.mktemp("finished") / "r"
    assert run(folder, *WORDS) == 0
    return folder


def test_what_is_saved_is_loaded_and_torch_alone_reads_it_too(saved):
    for state in (checkpoint.load(saved), torch.load(saved, weights_only=True)):
        assert torch.equal(state["meta"]["w"], STATE["meta"]["w"])
        assert state["step"] == 3 and state["config"] == {"seed": 0}
    assert [path.name for path in saved.parent.iterdir()] == ["a.pt"]
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"metalearn checkpoint, sha256 ")


def test_any_truncation_is_recognised(saved):
    whole = saved.read_bytes()
    lengths = random.Random(0).sample(range(len(whole)), 20)
    for length in (*lengths, 0, 1, len(whole) - 1, len(whole) - 93):
        saved.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint):
            checkpoint.load(saved)


def test_any_flipped_byte_is_recognised(saved):
    whole = saved.read_bytes()
    places = random.Random(1).sample(range(len(whole)), 200)
    for place in (*places, *range(len(whole) - 120, len(whole))):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DamagedCheckpoint):
            checkpoint.load(saved)


def test_so_many_are_kept_and_the_newest_whole_one_is_found(tmp_path):
    resumed = dict.fromkeys(checkpoint.RESUMED_KEYS, 0)
    for step in range(5):
        checkpoint.save_newest(tmp_path, {**STATE, **resumed, "step": step}, keep=3)
    names = ["last.1.pt", "last.2.pt", "last.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for spoilt, step in ((None, 4), ("last.pt", 3), ("last.1.pt", 2)):
        if spoilt:
            (tmp_path / spoilt).write_bytes(b"torn")
        state, damaged = checkpoint.newest(tmp_path)
        assert state["step"] == step
        assert len(damaged) == 4 - step
    checkpoint.save_newest(tmp_path, {**STATE, **resumed, "step": 9}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    (tmp_path / "last.pt").write_bytes(b"torn")
    with pytest.raises(UsageError, match="is whole; train anew"):
        checkpoint.newest(tmp_path)


def spoil(folder, how, place):
    path = folder / "last.pt"
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    if how == "truncated":
        path.write_bytes(data[:at])
    else:
        data[at] ^= 0x41
        path.write_bytes(data)


PLACES = [random.Random(2).random() for _ in range(20)]


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize(
    "place", [PLACES[0], *(pytest.param(p, marks=pytest.mark.slow) for p in PLACES[1:])]
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    finished, tmp_path, capsys, how, place
):
    folder = shutil.copytree(finished, tmp_path / "r")
    spoil(folder, how, place)
    assert main(["train", f"resume={folder}"]) == 0
    said = capsys.readouterr().out
    assert said.count("damaged") == 1 and "the one before it is used" in said
    assert timeless(folder) == timeless(finished)
    for name in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(f / name)["meta"] for f in (folder, finished))
        assert all(torch.equal(one[k], other[k]) for k in other)


def test_the_best_one_is_made_anew_from_the_last(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "r")
    (folder / "best.pt").write_bytes(b"torn")
    assert main(["train", f"resume={folder}"]) == 0
    one, other = (checkpoint.load(f / "best.pt") for f in (folder, finished))
    assert one["step"] == other["step"] and one["best"] == other["best"]
    assert all(torch.equal(one["meta"][k], other["meta"][k]) for k in other["meta"])


def test_one_of_format_1_is_evaluated_but_not_gone_on_with(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "r")
    old = torch.load(folder / "best.pt", weights_only=True) | {"format": 1}
    for path in folder.glob("*.pt"):
        torch.save(old, path)
    assert main(["evaluate", f"checkpoint={folder / 'best.pt'}", "tasks=4"]) == 0
    assert main(["train", f"resume={folder}"]) == 2
    said = capsys.readouterr().err
    assert "of format 1" in said and "can be evaluated" in said and said.count("\n") == 1


def test_one_of_a_format_to_come_is_refused(saved):
    checkpoint.save(saved, {**STATE, "format": 3})
    with pytest.raises(UsageError, match="of format 3; this release reads 1 and 2"):
        checkpoint.load(saved)


class Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("seal", [True, False])
def test_nothing_in_a_file_is_executed(saved, tmp_path, seal):
    state = {**STATE, "meta": Malice(tmp_path / "executed")}
    if seal:  # whoever writes the file can write a checksum too
        checkpoint.save(saved, state)
    else:
        torch.save(state, saved)
    with pytest.raises(UsageError, match="torch cannot read it" if seal else "may be damaged"):
        checkpoint.load(saved)
    assert not (tmp_path / "executed").exists()


FAULTS = [
    (MemoryError(), "does not fit in memory"),
    (OSError(5, "Input/output error"), "cannot be read (Input/output error)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
]


@pytest.mark.parametrize(("fault", "sentence"), FAULTS, ids=lambda f: type(f).__name__)
def test_what_is_whole_is_no_damaged_one_whatever_hinders_reading(
    finished, tmp_path, monkeypatch, capsys, fault, sentence
):
    """It is kept, and the one before it not gone on from in its place."""
    folder = shutil.copytree(finished, tmp_path / "r")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def hindered(*_: object, **__: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", hindered)
        for words in (["train", f"resume={folder}"], ["evaluate", f"checkpoint={folder}/best.pt"]):
            assert main(words) == 2
            said = capsys.readouterr().err
            assert sentence in said and said.count("\n") == 1
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with monkeypatch.context() as patch:  # nor where the disk does not give it
        patch.setattr(type(folder), "read_bytes", hindered)
        if not isinstance(fault, RuntimeError):
            with pytest.raises(UsageError) as error:
                checkpoint.newest(folder)
            assert not isinstance(error.value, DamagedCheckpoint)


@pytest.mark.parametrize("key", sorted(checkpoint.RESUMED_KEYS))
def test_one_that_lacks_what_a_run_goes_on_with_is_refused(finished, tmp_path, capsys, key):
    folder = shutil.copytree(finished, tmp_path / "r")
    state = checkpoint.load(folder / "last.pt")
    del state[key]
    checkpoint.save(folder / "last.pt", state)
    assert main(["train", f"resume={folder}"]) == 2
    said = capsys.readouterr().err
    assert f"is a checkpoint without {key}" in said and said.count("\n") == 1


def test_all_that_a_run_saves_and_reads_is_asked_for(finished):
    """A key that a resumed run reads without having asked for it would be a traceback."""
    read_where_there = {"format", "wandb_id", "job", "average", "runners_up", "data"}
    own = checkpoint.load(finished / "last.pt").keys() - read_where_there
    assert own == checkpoint.KEYS | checkpoint.RESUMED_KEYS


def test_the_half_that_a_kill_left_goes_with_the_next_session(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "r")
    (folder / ".last.pt-0123.part").write_bytes(b"half")
    (folder / ".evaluation.json-0123.part").write_bytes(b"another process's")
    assert main(["train", f"resume={folder}", "steps=6"]) == 0
    assert not list(folder.glob(".*.pt-*"))
    assert (folder / ".evaluation.json-0123.part").exists()
