"""The script that makes the studies anew; in metalearn's place a program that notes its words."""

from __future__ import annotations

import pytest
from noted_script import noted_script


@pytest.fixture
def run(tmp_path):
    return noted_script(tmp_path, "reproduce_studies")


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
        "solve influence",
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
