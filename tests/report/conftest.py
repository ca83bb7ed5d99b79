"""A made-up results folder: two studies, a run, and a lone result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_up import SUMMARY, Growth, publish


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to: `results` is a copy."""
    folder = tmp_path_factory.mktemp("made")
    results = folder / "results"
    publish(results, "memory", folder / "scratch", Growth())
    publish(results / "quick", "memory", folder / "scratch", Growth("It grows again."))
    (results / "omniglot_500").mkdir()
    (results / "omniglot_500" / "omniglot_5w1s_imaml.json").write_text(json.dumps(SUMMARY))
    (results / "exercises").mkdir()
    lone = {"rows": [{"radius": 0.5, "solver": "GMRES"}, {"radius": 0.9, "solver": "CG"}]}
    lone |= {"command": "circle.py", "date": "2026-11-24T05:00:00+00:00", "meta_steps": 7}
    (results / "exercises" / "unit_circle.json").write_text(json.dumps(lone))
    return results


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "results"))
