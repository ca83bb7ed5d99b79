"""The script that makes the Omniglot table; in metalearn's place a program that notes its words."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from noted_script import ROOT, noted_script


@pytest.fixture
def run(tmp_path):
    return noted_script(tmp_path, "reproduce_omniglot")


def test_without_words_it_says_what_each_takes_and_trains_nothing(run):
    """The seconds are those of results/, to a tenth."""
    found = run()
    assert found.returncode == 0 and "bench" not in found.stdout
    lines = [line.split() for line in found.stdout.splitlines()]
    methods = next(line for line in lines if line[:1] == ["maml"])
    shown = {
        (line[0], method): second
        for line in lines
        if line and re.fullmatch(r"\d+w\ds", line[0])
        for method, second in zip(methods, line[1:], strict=True)
    }
    rows = pd.concat(map(pd.read_csv, (ROOT / "results").glob("fewshot*/rows.csv")))
    rows = rows[rows.steps.notna() & rows.method.isin(methods)]
    measured = rows.groupby(["setting", "method"]).apply(
        lambda own: own.train_s.max() / own.steps.max(), include_groups=False
    )
    for (setting, method), seconds in measured.items():
        assert float(shown[setting.removeprefix("omniglot_"), method]) == pytest.approx(
            seconds, rel=0.1
        )
    assert sum(seconds != "-" for seconds in shown.values()) == len(measured)


def test_the_whole_table_is_asked_for_by_a_word(run):
    assert run("all").stdout == "bench fewshot\n"
    assert run("steps=5").stdout == "bench fewshot steps=5\n"


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
