"""The times that a run and a study say before they are spent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import TINY, run

from metalearn.config import compose
from metalearn.studies.fewshot.study import FewShotStudy
from metalearn.studies.frame import trained
from metalearn.studies.frame.expected import describe_expected
from metalearn.training import forecast
from metalearn.training.forecast import describe_time_left, time_meta_step

CPU = torch.device("cpu")
WORDS = ["steps=103", "meta_batch=4", "validation.every=50", "validation.tasks=10", "test.tasks=20"]


def test_the_time_left_is_of_the_timed_meta_steps_and_of_all_that_is_judged():
    config = compose("train", [*TINY, *WORDS])
    # The first one also prepares. 100 meta-steps of 2 s; validations after 50, 100 and 103.
    said = describe_time_left(config, [9.0, 2.0, 2.0], 3, True, True)
    assert "100 meta-steps take about 3 min 20 s on this machine" in said
    assert ", 50 tasks of validation and test up to about 25 s." in said
    assert "validation" not in describe_time_left(config, [2.0], 3, False, False).split(".")[0]
    assert said.endswith("For less: steps=, meta_batch=, validation.tasks=, test.tasks=")
    only = describe_time_left(config, [2.0], 3, True, False)
    assert only is not None and only.endswith("For less: steps=, meta_batch=, validation.tasks=")
    assert describe_time_left(config, [0.5, 0.01, 0.01], 3, True, True) is None
    assert describe_time_left(config, [2.0], 103, True, True) is None


def test_a_run_says_its_time_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forecast, "WORTH_SAYING_S", 0.0)
    assert run(tmp_path / "r", "metagrad=maml_batched", "wandb=disabled") == 0
    said = capsys.readouterr().out
    assert said.count("on this machine") == 1 and "3 meta-steps take about" in said


def test_a_meta_step_is_timed_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose("train", [*TINY, "metagrad=maml_batched"])
    states = torch.get_rng_state()
    assert 0 < time_meta_step(config) < 60
    assert torch.equal(torch.get_rng_state(), states) and not list(Path().iterdir())
    absent = compose("train", ["tasks=mini_imagenet", "tasks.dataset.source=nowhere"])
    assert time_meta_step(absent) is None


def study(**options) -> FewShotStudy:
    own = {"settings": ["omniglot_5w1s"], "methods": ["maml", "fomaml"], "train_minutes": 0.0}
    own |= {"seeds": [0, 1], "steps": 1000, "overrides": [], "validation_every": 100}
    own |= {"validation_tasks": 10, "test_tasks": 10, "inner_steps": [], "runs": "no_runs"}
    return FewShotStudy(**{**own, **options})


def publication(**options) -> SimpleNamespace:
    return SimpleNamespace(**{"minutes": None, "quick_minutes": 1.5, **options})


def test_a_study_of_runs_times_each_method_once(monkeypatch):
    timed: list[str] = []

    def time_one(config):
        timed.append(config.name)
        return 1.0 if config.name.endswith("fomaml") else 2.0

    monkeypatch.setattr(trained, "time_meta_step", time_one)
    cells = study().cells()
    assert study().expected_seconds(cells, CPU) == 2 * 1000 * (1.0 + 2.0)
    assert sorted(timed) == ["omniglot_5w1s_fomaml", "omniglot_5w1s_maml"]
    assert study(train_minutes=5.0).expected_seconds(cells, CPU) == 4 * 5 * 60
    said = describe_expected(study(), publication(), cells, CPU)
    assert "about 1 h 40 min on this machine" in said
    assert "preset=quick, about 1 min 30 s" in said
    monkeypatch.setattr(trained, "time_meta_step", lambda config: None)
    assert "not known" in describe_expected(study(), publication(), cells, CPU)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"minutes": 200.0}, "The whole takes about 3 h 20 min on 2 cores"),
        ({"minutes": 1.5, "quick_minutes": None}, "For less: shorter lists of options."),
        ({}, "not known before the first measurement"),
    ],
)
def test_another_study_says_what_it_took(own, sentence):
    assert sentence in describe_expected(SimpleNamespace(), publication(**own), [{"n": 1}], CPU)
