"""The few-shot study: its runs go on, are judged once, and its tables say what the rows say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.studies.fewshot import figures as fewshot_figures
from metalearn.studies.fewshot import report as fewshot_report
from metalearn.studies.fewshot.runs import Budget, StudyRun
from metalearn.studies.fewshot.study import FewShotStudy, measured
from metalearn.studies.frame import options
from metalearn.studies.frame.validation_curve import fall, step_seconds
from metalearn.training.protocol import Protocol

CPU = torch.device("cpu")
TINY = [
    "experiment=omniglot_5w1s_fomaml",
    "tasks=glyphs",
    "tasks.dataset.drawings=4",
    "model.channels=4",
    "meta_batch=2",
    "steps=6",
    "validation.every=2",
    "validation.tasks=4",
]


def study_run(root: Path, *words: str) -> StudyRun:
    return StudyRun.of(root, [*TINY, *words], CPU)


def metrics(run: StudyRun) -> list[dict]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.endswith("_s")} for x in lines]


def test_a_run_is_found_again_by_its_config_whatever_its_end(tmp_path):
    run = study_run(tmp_path)
    assert run.folder == study_run(tmp_path, "steps=9", "checkpoint_every=1").folder
    others = ["seed=1", "model.channels=5", "metagrad.inner.lr=0.3", "validation.tasks=5"]
    assert len({run.folder, *(study_run(tmp_path, w).folder for w in others)}) == 5
    # A cosine schedule ends where the run does: a longer run is another one.
    cosine = [study_run(tmp_path, "schedule=cosine", f"steps={n}").folder for n in (6, 9)]
    assert len({run.folder, *cosine}) == 3


def test_a_larger_budget_goes_on_with_the_run_and_equals_one_in_one_go(tmp_path):
    short = study_run(tmp_path / "a", "steps=4")
    assert short.train(Budget(4)) == ""
    longer = study_run(tmp_path / "a")
    assert longer.folder == short.folder
    assert longer.train(Budget(6)) == ""
    whole = study_run(tmp_path / "b")
    assert whole.train(Budget(6)) == ""
    assert metrics(longer) == metrics(whole)
    assert [row["step"] for row in longer.curve()] == [2, 4, 6]
    assert longer.curve()[-1]["trained_tasks"] == 12
    # At its end there is nothing to train, and less than it has is refused.
    before = (longer.folder / "last.pt").stat().st_mtime_ns
    longer.train(Budget(6))
    assert (longer.folder / "last.pt").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="has taken 6 meta-steps already"):
        longer.train(Budget(4))


def test_a_run_interrupted_between_two_ends_goes_on(tmp_path):
    run, whole = study_run(tmp_path / "a"), study_run(tmp_path / "b")
    whole.train(Budget(6))
    run.train(Budget(4))
    # As if it had been killed on the way to 6: a checkpoint beyond the last summary.
    run.train(Budget(5))
    summary = json.loads((run.folder / "summary.json").read_text())
    (run.folder / "summary.json").write_text(json.dumps({**summary, "steps": 4}))
    run.train(Budget(6))
    assert metrics(run)[-1]["query_loss"] == metrics(whole)[-1]["query_loss"]


def test_minutes_end_a_run_at_a_validation(tmp_path):
    run = study_run(tmp_path)
    run.train(Budget(6, minutes=1e-9))
    assert [row["step"] for row in run.curve()] == [2]
    run.train(Budget(6, minutes=1e-9))
    assert [row["step"] for row in run.curve()] == [2]
    run.train(Budget(6, minutes=100.0))
    assert [row["step"] for row in run.curve()] == [2, 4, 6]
    with pytest.raises(UsageError, match="a larger train_minutes="):
        run.train(Budget(6, minutes=1e-9))
    with pytest.raises(UsageError, match="schedule=cosine"):
        study_run(tmp_path, "schedule=cosine").train(Budget(6, minutes=1.0))


def test_a_run_is_judged_once_for_each_protocol(tmp_path, monkeypatch):
    run = study_run(tmp_path)
    run.train(Budget(6))
    first = run.judged(Protocol(tasks=4), CPU)
    monkeypatch.setattr(Protocol, "rows", lambda self, *words: [{"measured": "anew"}])
    assert run.judged(Protocol(tasks=4), CPU) == first
    assert run.judged(Protocol(tasks=5), CPU) == [{"measured": "anew"}]


def test_a_run_that_a_guard_stops_is_a_row(tmp_path):
    run = study_run(tmp_path, "metagrad.inner.lr=1e30")
    (row,) = measured(run, Budget(6), 4, [], CPU)
    assert row["part"] == "stopped" and "not finite" in str(row["why"])


OPTIONS = {
    "settings": ["omniglot_5w1s"],
    "methods": ["maml", "fomaml"],
    "seeds": [0, 1],
    "steps": 4,
    "train_minutes": 0.0,
    "words": ["tasks=glyphs", "tasks.dataset.drawings=4", "model.channels=4", "meta_batch=2"],
    "validation_every": 2,
    "validation_tasks": 4,
    "test_tasks": 6,
    "inner_steps": [2],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    study = FewShotStudy(**OPTIONS, runs=str(tmp_path_factory.mktemp("runs")))
    return pd.DataFrame(
        [{**cell, **row} for cell in study.cells() for row in study.measure(cell, CPU)]
    )


def test_rows_have_a_curve_and_every_mode_and_number_of_steps(rows):
    assert set(rows.part) == {"curve", "test"}
    test = rows[rows.part == "test"]
    each = test.groupby(["method", "seed"]).size()
    assert (each == 4).all() and len(each) == 4  # two modes, 1 and 2 inner steps
    assert set(test.dataset) == {"glyphs"} and set(test.steps) == {4} and set(test.tasks) == {6}
    assert test.machine.notna().all()
    curve = rows[rows.part == "curve"]
    assert (curve.groupby(["method", "seed"]).train_s.diff().dropna() > 0).all()


def test_tables_figures_and_findings_are_of_the_rows(rows):
    tables = fewshot_report.tables(rows)
    beside, swept, timed, cost = tables.values()
    assert list(beside.method) == ["MAML", "MAML", "first-order MAML", "first-order MAML"]
    assert set(beside.whose) == {"ours, transductive", "ours, inductive"}
    maml = rows[(rows.part == "test") & (rows.method == "maml") & (rows["mode"] == "inductive")]
    own = maml[maml.inner_steps == 1]
    assert beside.iloc[1]["5-way 1-shot"].startswith(f"{100 * own.accuracy.mean():.2f} ± ")
    assert "seeds" in beside.iloc[1]["5-way 1-shot"]
    assert list(swept["inner steps"]) == ["1 (trained with)", "2"] * 2
    assert list(cost["meta-steps"]) == ["4"] * 4 and list(cost.tasks) == ["8"] * 4
    assert len(timed) == 2
    assert set(fewshot_figures.figures(rows)) == {"learning", "time", "inner_steps"}
    findings = fewshot_report.findings(rows)
    assert any("2 seeds" in sentence for sentence in findings)


def test_published_figures_stand_below_ours(rows):
    omniglot = rows.assign(dataset=rows.dataset.where(rows.dataset.isna(), "omniglot"))
    beside = next(iter(fewshot_report.tables(omniglot).values()))
    theirs = beside[beside.method == "MAML"].iloc[-1]
    assert theirs["5-way 1-shot"] == "98.7 ± 0.4" and theirs.whose == "Finn et al. 2017"
    best = fewshot_report.findings(omniglot)[0]
    assert "the paper has" in best


def test_time_is_compared_where_every_run_had_it(rows):
    longest = fewshot_report.shared_time(rows, "omniglot_5w1s")
    curve = rows[rows.part == "curve"]
    ends = curve.groupby(["method", "seed"]).train_s.max()
    assert longest == ends.min()
    maml = fewshot_report.curves(rows, "omniglot_5w1s")["maml"]
    assert fewshot_report.by_time(maml, 0.0) == []
    assert len(fewshot_report.by_time(maml, ends.max())) == 2


def test_whether_a_method_was_still_rising_is_told_where_it_can_be(rows):
    def said(of_maml: list[float], of_fomaml: list[float]) -> list[str]:
        curve = {"part": "curve", "setting": "omniglot_5w1s", "seed": 0, "accuracy_interval": 0.01}
        made = [
            {**curve, "method": method, "step": 100 * (k + 1), "train_s": k, "accuracy": value}
            for method, values in (("maml", of_maml), ("fomaml", of_fomaml))
            for k, value in enumerate(values)
        ]
        test = rows[(rows.part == "test") & (rows.seed == 0)]
        found = fewshot_report.findings(pd.concat([test, pd.DataFrame(made)]))
        return [sentence for sentence in found if "last quarter" in sentence]

    rising, flat, short = [0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.8, 0.8], [0.5]
    assert "still rising in the last quarter" in said(rising, flat)[0]
    assert "MAML (+10.0 points)." in said(rising, flat)[0]
    assert ["no method's best" in sentence for sentence in said(flat, flat)] == [True]
    untold, others = said(short, flat)
    assert untold.endswith("rising: MAML.") and "no other method's best" in others
    assert [s.endswith("rising: MAML, first-order MAML.") for s in said(short, short)] == [True]


def test_a_stopped_run_does_not_spoil_the_report(rows):
    stopped = {"setting": "omniglot_5w1s", "method": "imaml", "seed": 0, "part": "stopped"}
    more = pd.concat([rows, pd.DataFrame([{**stopped, "why": "not finite"}])])
    cost = fewshot_report.tables(more)["What the runs took"]
    assert cost.iloc[-1]["ended early"] == "not finite"
    assert "a guard stopped before their first validation: 1." in fewshot_report.findings(more)[-1]


def test_a_study_that_guards_stopped_altogether_says_so():
    cell = {"setting": "omniglot_5w1s", "method": "imaml", "seed": 0, "part": "stopped"}
    rows = pd.DataFrame([{**cell, "why": "not finite"}])
    cost = fewshot_report.tables(rows)["What the runs took"]
    assert list(cost["ended early"]) == ["not finite"]
    assert not fewshot_figures.figures(rows)
    assert "a guard stopped before their first validation: 1." in fewshot_report.findings(rows)[-1]


def test_seconds_of_a_meta_step_are_those_of_most_stretches():
    curve = pd.DataFrame({"seed": 0, "step": [10, 20, 30], "train_s": [1.0, 61.0, 62.0]})
    assert step_seconds(curve) == pytest.approx(0.1)


def test_the_best_and_those_not_told_apart_from_it(rows):
    def said(maml: float, fomaml: float) -> list[str]:
        alone = rows[rows.seed == 0].assign(accuracy_interval=0.01)
        alone["train_s"] = alone.step.fillna(alone.steps)  # as fast as each other
        alone.loc[alone.method == "maml", "accuracy"] = maml
        alone.loc[alone.method == "fomaml", "accuracy"] = fomaml
        return [s for s in fewshot_report.findings(alone) if "told apart" in s]

    assert len(said(0.700, 0.705)) == 2 and not said(0.70, 0.75)


def test_a_schedule_that_minutes_would_cut_is_refused_before_anything_runs():
    words = ["settings=[omniglot_5w1s]", "methods=[maml,imaml_best]"]
    assert options.study("bench", "fewshot", words)
    with pytest.raises(UsageError, match="omniglot_5w1s_imaml_best has schedule=cosine"):
        options.study("bench", "fewshot", [*words, "train_minutes=5"])


def test_by_the_command_a_longer_study_goes_on_with_the_same_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "fewshot", "methods=[fomaml]", "seeds=[0]", "settings=[omniglot_5w1s]"]
    words += ["validation_every=2", "validation_tasks=4", "test_tasks=4", "inner_steps=[1]"]
    words += ["words=[" + ",".join(f"'{w}'" for w in OPTIONS["words"]) + "]", "wandb=disabled"]
    assert main([*words, "steps=2"]) == 0
    assert main([*words, "steps=4"]) == 0
    (folder,) = (tmp_path / "runs" / "fewshot").iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
    frame = pd.read_csv(tmp_path / "results" / "fewshot" / "rows.csv")
    assert set(frame[frame.part == "curve"].step) == {2, 4}


def test_a_method_of_one_setting_stands_in_a_table_of_several():
    words = ["settings=[omniglot_5w1s,omniglot_5w5s]", "methods=[maml,maml_tuned]"]
    study, _, _ = options.study("bench", "fewshot", words)
    asked = [(cell["setting"][-4:], cell["method"]) for cell in study.cells()]
    assert asked == [("5w1s", "maml"), ("5w1s", "maml_tuned"), ("5w5s", "maml")]


def test_no_methods_are_the_published_ones_that_a_setting_has():
    words = ["settings=[omniglot_5w1s,mini_imagenet_5w1s]"]
    study, _, _ = options.study("bench", "fewshot", words)
    published = ["maml", "fomaml", "reptile", "imaml", "imaml_hf", "imaml_authors_code"]
    asked = [cell["method"] for cell in study.cells()]
    assert asked == [*published, *published[:-1]]


def curve(*accuracies: float, seed: int = 0) -> pd.DataFrame:
    steps = range(100, 100 * len(accuracies) + 100, 100)
    columns = {"seed": seed, "step": steps, "accuracy": accuracies, "accuracy_interval": 0.03}
    return pd.DataFrame(columns)


def test_a_validation_that_falls_again_by_more_than_chance_is_told():
    assert fall(curve(0.4, 0.604, 0.28)) == "60.4 % at 200 to 28.0 %"
    assert fall(curve(0.4, 0.6, 0.57)) == fall(curve(0.4, 0.5, 0.6)) == ""
    two = pd.concat([curve(0.5, 0.4, 0.3), curve(0.5, 0.7, 0.5, seed=1)], ignore_index=True)
    assert fall(two) == "60.0 % at 100 to 200 to 40.0 %"


def test_a_method_keeps_its_colour_whatever_stands_beside_it():
    asked = [["imaml"], ["maml", "imaml"], ["imaml_tuned", "other", "imaml"]]
    assert len({fewshot_figures._style("imaml", methods)["color"] for methods in asked}) == 1
