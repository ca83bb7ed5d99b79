"""The script that makes the Omniglot table; in metalearn's place a program that notes its words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = shutil.copy(ROOT / "scripts" / "reproduce_omniglot", tmp_path / "scripts")
    shutil.copytree(ROOT / "configs" / "experiment", tmp_path / "configs" / "experiment")
    program = tmp_path / ".venv" / "bin" / "metalearn"
    program.write_text('#!/bin/sh\necho "$*"\n')
    program.chmod(0o755)

    def run(*words):
        return subprocess.run([script, *words], capture_output=True, text=True, check=False)

    return run


def test_without_words_it_is_the_whole_table(run):
    assert run().stdout == "bench fewshot\n"


def test_a_subset_over_seeds(run):
    found = run("5w1s", "maml", "20w1s", "seeds=[0, 1]", "imaml_hf", "steps=9").stdout
    assert found == (
        "bench fewshot methods=[maml,imaml_hf] settings=[omniglot_5w1s,omniglot_20w1s] "
        "seeds=[0, 1] steps=9\n"
    )


@pytest.mark.parametrize("word", ["mamml", "6w1s", "*"])
def test_an_unknown_word_is_refused_before_anything_runs(run, word):
    found = run("5w1s", word)
    assert found.returncode == 2 and found.stdout == ""
    assert f"'{word}' is no setting" in found.stderr
