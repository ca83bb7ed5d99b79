"""learn2learn, which an installed wheel does not bring."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from tiny_run import TINY

from metalearn.commands.main import main


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


def test_without_learn2learn_one_sentence_says_how_to_install_it(tmp_path, hidden, capsys):
    assert main(["train", *TINY, f"run_dir={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert "learn2learn==0.2.0" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_tasks_that_learn2learn_does_not_draw_need_none(tmp_path, hidden):
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "model.sizes=[1,4,1]", "meta_batch=2"]
    words += ["metagrad=maml_batched", "steps=1", "validation.tasks=2", "test.tasks=2"]
    assert main(["train", *words, "wandb=disabled", f"run_dir={tmp_path}/run"]) == 0
    versions = json.loads((tmp_path / "run" / "summary.json").read_text())["versions"]
    assert "torch" in versions and "learn2learn" not in versions
