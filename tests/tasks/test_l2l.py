"""learn2learn, which an installed wheel does not bring."""

from __future__ import annotations

import json
import random
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from tiny_run import TINY

from metalearn.commands.main import main
from metalearn.tasks import ImageTaskSampler, LabelledImages
from metalearn.tasks.draws import Learn2LearnDraw, OwnDraw, make_draw


@pytest.fixture
def hidden(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "learn2learn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    monkeypatch.setattr("metalearn.system.provenance.version", version_of_the_others)


def version_of_the_others(name: str) -> str:
    if name == "learn2learn":
        raise PackageNotFoundError(name)
    return version(name)


@pytest.mark.parametrize(("classes", "ways", "each"), [(40, 5, 2), (30, 25, 1), (6, 2, 20)])
def test_own_draws_are_those_of_learn2learn(classes, ways, each):
    labels = [7 * (i % classes) % 101 for i in range(21 * classes)]
    random.Random(0).shuffle(labels)
    theirs = make_draw(labels, ways, each)
    assert isinstance(theirs, Learn2LearnDraw)
    by_label = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    own = OwnDraw(by_label, ways, each)
    state = random.getstate()
    try:
        random.seed(1)
        expected = [theirs() for _ in range(3334)]
        after = random.getstate()
        random.seed(1)
        assert [own() for _ in range(3334)] == expected
        assert random.getstate() == after
    finally:
        random.setstate(state)


def test_a_sampler_without_learn2learn_draws_the_same_batches(hidden, monkeypatch):
    data = LabelledImages(
        torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).clone(),
        torch.arange(60) % 6,
        tuple("abcdef"),
    )
    own = ImageTaskSampler(data, 3, 2, 3, seed=4, task_pool=50)
    monkeypatch.undo()
    theirs = ImageTaskSampler(data, 3, 2, 3, seed=4, task_pool=50)
    for _ in range(3):
        one, other = own.sample(5), theirs.sample(5)
        assert torch.equal(one.support_x, other.support_x)
        assert torch.equal(one.query_x, other.query_x)


def test_a_run_without_learn2learn_trains(tmp_path, hidden):
    assert main(["train", *TINY, f"run_dir={tmp_path}/run"]) == 0


def test_tasks_that_learn2learn_does_not_draw_need_none(tmp_path, hidden):
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "model.sizes=[1,4,1]", "meta_batch=2"]
    words += ["metagrad=maml_batched", "steps=1", "validation.tasks=2", "test.tasks=2"]
    assert main(["train", *words, "wandb=disabled", f"run_dir={tmp_path}/run"]) == 0
    versions = json.loads((tmp_path / "run" / "summary.json").read_text())["versions"]
    assert "torch" in versions and "learn2learn" not in versions
