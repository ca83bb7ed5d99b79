"""The script that makes the Omniglot table; in metalearn's place a program that notes its words."""

from __future__ import annotations

import pytest
from noted_script import noted_script


@pytest.fixture
def run(tmp_path):
    return noted_script(tmp_path, "reproduce_omniglot")


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
