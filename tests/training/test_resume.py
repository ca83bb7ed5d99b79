"""A run goes on from its own checkpoint alone, and from a validation that was broken off."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_run import rows, timeless

from metalearn.commands.main import main
from metalearn.training import checkpoint, loop
from metalearn.tree import leaves_of

WORDS = ["tasks=sinusoid", "model=mlp_sinusoid", "model.sizes=[1,8,1]", "metagrad=imaml_warm"]
WORDS += ["metagrad.inner.steps=2", "meta_batch=2", "validation.every=2", "validation.tasks=4"]
WORDS += ["test.tasks=4", "threads=1", "wandb=disabled", "average=0.9", "keep_best=2"]


def train(folder: Path, *words: str) -> int:
    return main(["train", *WORDS, f"run_dir={folder}", *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "r"
    assert train(folder, "steps=4") == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "r")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the sentence; nothing in the folder has changed."""
    before = contents(folder)
    capsys.readouterr()
    assert main(["train", f"resume={folder}", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and contents(folder) == before
    return said


@pytest.mark.parametrize(
    ("word", "name"),
    [("metagrad.inner.lr=0.02", "metagrad.inner.lr"), ("seed=1", "seed"), ("prox=3.0", "prox")],
)
def test_another_runs_checkpoint_is_refused(copy, tmp_path, capsys, word, name):
    assert train(tmp_path / "other", "steps=2", word) == 0
    shutil.copy(tmp_path / "other" / "last.pt", copy / "last.pt")
    said = refused(copy, capsys, "steps=6")
    assert name in said and "last.pt" in said


def test_an_edited_config_is_refused(copy, capsys):
    path = copy / "config.yaml"
    cfg = OmegaConf.load(path)
    cfg.metagrad.inner.lr = 0.5
    OmegaConf.save(cfg, path)
    assert "metagrad.inner.lr=0.5" in refused(copy, capsys)


def test_a_run_that_measured_its_parts_goes_on_with_one(copy, capsys):
    cfg = OmegaConf.load(copy / "config.yaml")
    cfg.parts = "measured"
    OmegaConf.save(cfg, copy / "config.yaml")
    for path in copy.glob("last*.pt"):
        state = checkpoint.load(path)
        state["config"]["parts"] = "measured"
        checkpoint.save(path, state | {"parts": [2]})
    assert main(["train", f"resume={copy}", "steps=5"]) == 0
    assert capsys.readouterr().err.count("parts=measured") == 1
    assert checkpoint.load(copy / "last.pt")["parts"] == [1]
    assert OmegaConf.load(copy / "config.yaml").micro_batches is None
    assert main(["train", f"resume={copy}", "steps=6"]) == 0
    assert main(["train", *WORDS, "parts=measured"]) == 2


MISFITS = {
    "step": 2.5,
    "best": "x",
    "meta": {"1.weight": 3},
    "config": [1],
    "average": 5,
    "chosen": {"step": 1},
    "runners_up": [3],
    "carry": {"x0": {"1.weight": torch.zeros(2)}},
    "optimiser": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    "halvings": "x",
    "guards": {"refused": 0, "in_a_row": 0, "norms": ["x"]},
    "parts": 2,
    "peak": None,
    "sampler": {"generator": torch.zeros(3)},
    "random": {"python": [3, [1], None]},
    "unvalidated": {"step": 4},
    "wandb_id": 3,
    "format": [2],
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_field_of_another_type_is_refused(copy, capsys, name):
    state = checkpoint.load(copy / "last.pt")
    checkpoint.save(copy / "last.pt", state | {name: MISFITS[name]})
    refused(copy, capsys, "steps=6")
    assert not list(copy.glob(".*"))


@pytest.mark.parametrize("name", ["step", "best", "meta", "config", "average", "format"])
def test_a_field_of_another_type_is_not_evaluated(copy, capsys, name):
    state = checkpoint.load(copy / "last.pt")
    checkpoint.save(copy / "last.pt", state | {name: MISFITS[name]})
    assert main(["evaluate", f"checkpoint={copy}/last.pt", "tasks=4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (copy / "evaluation.json").exists()


@pytest.mark.parametrize("place", [("chosen", "meta"), ("average", "meta")])
def test_tensors_of_other_shapes_are_refused(copy, capsys, place):
    state = checkpoint.load(copy / "last.pt")
    field, key = place
    state[field][key] = {name: x[:1] for name, x in state[field][key].items()}
    checkpoint.save(copy / "last.pt", state)
    refused(copy, capsys, "steps=6")


@pytest.mark.parametrize("asked_at", [2, 4])
def test_a_signal_within_a_validation_is_heeded_at_once(
    finished, tmp_path, monkeypatch, capsys, asked_at
):
    """The meta-step is saved, and the resumed run equals one that was left alone."""
    folder, taken, whole = tmp_path / "r", [], loop.evaluate

    def evaluate(*args, **options):
        if "progress" in options and len(rows(folder)) == asked_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            options["batch"] = 1
        sampler, draw = args[3], type(args[3]).sample
        taken.clear()
        sampler.sample = lambda n: taken.append(n) or draw(sampler, n)
        return whole(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        words = ["steps=4", "checkpoint_every=100"]
        assert train(folder, *words) == 128 + signal.SIGTERM
    assert taken == [1]  # of four
    assert checkpoint.load(folder / "last.pt")["step"] == rows(folder)[-1]["step"] == asked_at
    assert main(["train", f"resume={folder}"]) == 0
    assert timeless(folder) == timeless(finished)
    for name in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(f / name) for f in (folder, finished))
        for own, expected in zip(leaves_of(one["meta"]), leaves_of(other["meta"]), strict=True):
            assert torch.equal(own, expected)
        assert one["best"] == other["best"] and "unvalidated" not in one


def test_as_many_checkpoints_as_one_likes_are_kept(tmp_path):
    resumed = dict.fromkeys(checkpoint.RESUMED_KEYS, 0)
    state = {"best": 0.5, "meta": {"w": torch.zeros(1)}, "config": {}, **resumed}
    for step in range(4):
        checkpoint.save_newest(tmp_path, {**state, "step": step}, keep=10**9)
    (tmp_path / "last.2.pt").unlink()
    checkpoint.save_newest(tmp_path, {**state, "step": 4}, keep=10**9)
    steps = {path.name: checkpoint.load(path)["step"] for path in checkpoint.generations(tmp_path)}
    assert steps == {"last.pt": 4, "last.1.pt": 3, "last.2.pt": 2, "last.4.pt": 0}
