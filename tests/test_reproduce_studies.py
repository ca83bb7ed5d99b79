"""The script that makes the studies anew; in metalearn's place a program that notes its words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "reproduce_studies"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(SCRIPT.parents[1] / "configs", tmp_path / "configs")
    script = shutil.copy(SCRIPT, tmp_path / "scripts")
    program = tmp_path / ".venv" / "bin" / "metalearn"
    program.write_text('#!/bin/sh\necho "$*"\n')
    program.chmod(0o755)

    def run(*words):
        return subprocess.run([script, *words], capture_output=True, text=True, check=False)

    return run


def test_every_study_without_words_and_properties_after_what_it_points_to(run):
    assert run().stdout.splitlines() == [
        "bench memory",
        "bench cg",
        "bench gradient",
        "bench properties",
        "bench speed",
        "bench soak",
        "bench ranks",
        "solve deq",
        "solve distill",
        "solve hpo",
        "solve nas",
    ]


def test_names_choose_and_options_go_to_each(run):
    found = run("deq", "preset=quick", "memory", "steps=[1, 2]").stdout.splitlines()
    assert found == [
        "solve deq preset=quick steps=[1, 2]",
        "bench memory preset=quick steps=[1, 2]",
    ]


def test_an_unknown_study_is_refused_before_any_is_run(run):
    found = run("memory", "sped")
    assert found.returncode == 2 and found.stdout == ""
    assert "no study 'sped'" in found.stderr
