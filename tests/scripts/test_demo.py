"""The demo's error column."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tiny_run import TINY, run

from metalearn.config import compose
from metalearn.metagrad.exact import NotConverged

PATH = Path(__file__).parents[2] / "scripts" / "demo.py"


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_error_is_of_a_batch_and_may_not_converge(demo, tmp_path, monkeypatch):
    assert run(tmp_path / "r", "metagrad=imaml", "wandb=disabled") == 0
    config = compose("train", [*TINY, "metagrad=imaml"])
    seen = []

    def measured(metagrad, problem, meta, task):
        seen.append(len(task))
        if len(seen) == 2:
            raise NotConverged("no")
        return 0.125

    monkeypatch.setattr(demo, "meta_gradient_error", measured)
    assert demo._error(config, tmp_path / "r") == "12 %"
    assert demo._error(config, tmp_path / "r") == "not converged"
    assert seen == [2, 2]
