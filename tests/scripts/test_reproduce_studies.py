"""The script that makes the studies anew; in metalearn's place a program that notes its words."""

from __future__ import annotations

import re

import pytest
from noted_script import ROOT, noted_script
from omegaconf import OmegaConf


@pytest.fixture
def run(tmp_path):
    return noted_script(tmp_path, "reproduce_studies")


def test_without_words_it_says_what_each_takes_and_runs_nothing(run):
    found = run()
    assert found.returncode == 0 and "bench" not in found.stdout
    minutes = OmegaConf.load(ROOT / "configs" / "bench" / "cg.yaml").expected_minutes
    (cg,) = [line.split() for line in found.stdout.splitlines() if line.startswith("  cg ")]
    assert cg == ["cg", str(minutes.quick), "min", str(minutes.full), "min"]
    every = run("all").stdout.splitlines()
    assert run("preset=quick").stdout.splitlines() == [f"{line} preset=quick" for line in every]
    for line in every:  # each takes a number of minutes
        assert f"\n  {line.split()[1]} " in found.stdout
    times = re.findall(r"\d min +([\d.]+ min|not known)$", found.stdout, re.MULTILINE)
    assert len(times) == len(every)


def test_every_study_and_properties_after_what_it_points_to(run):
    assert run("all").stdout.splitlines() == [
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
        "solve rates",
        "solve minibatches",
        "solve cleaning",
        "solve training",
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
