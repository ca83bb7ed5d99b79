"""The few-shot study: its runs resume, are judged once, and its report agrees with the rows."""

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
from metalearn.studies.fewshot.study import FewShotStudy
from metalearn.studies.frame import accuracy, options
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.frame.published.accuracy import published_cell, published_rows
from metalearn.studies.frame.study_run import Budget, StudyRun
from metalearn.studies.frame.trained import measure_run
from metalearn.studies.frame.validation_curve import fall, falls, step_seconds
from metalearn.training.protocol import EvaluationProtocol

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


def test_study_run_is_found_again_by_its_config_whatever_its_end(tmp_path):
    run = study_run(tmp_path)
    assert run.folder == study_run(tmp_path, "steps=9", "checkpoint_every=1").folder
    others = ["seed=1", "model.channels=5", "metagrad.inner.lr=0.3", "validation.tasks=5"]
    assert len({run.folder, *(study_run(tmp_path, w).folder for w in others)}) == 5
    # A cosine schedule ends where the run does: a longer run is another one.
    cosine = [study_run(tmp_path, "schedule=cosine", f"steps={n}").folder for n in (6, 9)]
    assert len({run.folder, *cosine}) == 3


def test_study_run_resumed_with_a_larger_budget_equals_an_uninterrupted_run(tmp_path):
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


def test_study_run_interrupted_between_two_ends_resumes(tmp_path):
    run, whole = study_run(tmp_path / "a"), study_run(tmp_path / "b")
    whole.train(Budget(6))
    run.train(Budget(4))
    # As if it had been killed on the way to 6: a checkpoint beyond the last summary.
    run.train(Budget(5))
    summary = json.loads((run.folder / "summary.json").read_text())
    (run.folder / "summary.json").write_text(json.dumps({**summary, "steps": 4}))
    run.train(Budget(6))
    assert metrics(run)[-1]["query_loss"] == metrics(whole)[-1]["query_loss"]


def test_budget_minutes_end_a_run_at_a_validation(tmp_path):
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


def test_study_run_is_judged_once_for_each_protocol(tmp_path, monkeypatch):
    run = study_run(tmp_path)
    run.train(Budget(6))
    first = run.judged(EvaluationProtocol(tasks=4), CPU)
    monkeypatch.setattr(EvaluationProtocol, "rows", lambda self, *words: [{"measured": "anew"}])
    assert run.judged(EvaluationProtocol(tasks=4), CPU) == first
    assert run.judged(EvaluationProtocol(tasks=5), CPU) == [{"measured": "anew"}]


def test_measure_run_returns_a_row_for_a_run_that_a_guard_stops(tmp_path):
    run = study_run(tmp_path, "metagrad.inner.lr=1e30")
    (row,) = measure_run(run, Budget(6), EvaluationProtocol(tasks=4), CPU)
    assert row["part"] == "stopped" and "not finite" in str(row["why"])


OPTIONS = {
    "settings": ["omniglot_5w1s"],
    "methods": ["maml", "fomaml"],
    "seeds": [0, 1],
    "steps": 4,
    "train_minutes": 0.0,
    "overrides": ["tasks=glyphs", "tasks.dataset.drawings=4", "model.channels=4", "meta_batch=2"],
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


def test_measure_has_a_curve_and_every_mode_and_number_of_steps(rows):
    assert set(rows.part) == {"curve", "test"}
    test = rows[rows.part == "test"]
    each = test.groupby(["method", "seed"]).size()
    assert (each == 4).all() and len(each) == 4  # two modes, 1 and 2 inner steps
    assert set(test.dataset) == {"glyphs"} and set(test.steps) == {4} and set(test.tasks) == {6}
    assert test.machine.notna().all()
    curve = rows[rows.part == "curve"]
    assert (curve.groupby(["method", "seed"]).train_s.diff().dropna() > 0).all()


def texts(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [table.texts() for table in fewshot_report.tables(rows).values()]


def rendered(rows: pd.DataFrame, tmp_path: Path) -> list[str]:
    return render_findings(FewShotStudy(**OPTIONS, runs=str(tmp_path)), rows)


def test_tables_and_figures_show_the_rows(rows):
    beside, swept, timed, cost = texts(rows)
    assert list(beside.method) == ["MAML", "MAML", "first-order MAML", "first-order MAML"]
    assert set(beside.whose) == {"ours, transductive", "ours, inductive"}
    maml = rows[(rows.part == "test") & (rows.method == "maml") & (rows["mode"] == "inductive")]
    own = maml[maml.inner_steps == 1]
    assert beside.iloc[1]["5-way 1-shot"].startswith(f"{100 * own.accuracy.mean():.2f} ± ")
    assert "seeds" in beside.iloc[1]["5-way 1-shot"]
    assert list(swept["inner steps"]) == ["1 (trained with)", "2"] * 2
    assert list(cost["meta-steps"]) == ["4"] * 4 and list(cost.tasks) == ["8"] * 4
    assert len(timed) == 2
    assert set(fewshot_figures.figures(rows)) == {"learning", "inner_steps"}


def test_tables_sort_accuracies_and_steps_by_number(rows):
    for table in fewshot_report.tables(rows).values():
        columns = dict(zip(table.columns, table.numeric, strict=True))
        assert all(
            columns[name]
            for name in ("5-way 1-shot", "inner steps", "inductive", "all of it", "tasks", "seed")
            if name in columns
        )


def test_accuracy_cell_is_the_mean_of_its_seeds():
    group = pd.DataFrame({"accuracy": [0.5, 0.7], "accuracy_interval": [0.01, 0.03]})
    cell = accuracy.accuracy_cell(group)
    assert cell.text == "60.00 ± 2.00 (seeds 14.14)" and cell.key == pytest.approx(60)
    assert accuracy.accuracy_cell(group[:1]).text == "50.00 ± 1.00"
    assert accuracy.accuracy_cell(group[:1].assign(accuracy_interval=None)).text == "50.00"
    assert accuracy.accuracy_cell(group[:0]).text == ""


def test_facts_name_the_best_method_and_its_training(rows, tmp_path):
    (setting,) = fewshot_report.facts(rows)["settings"]
    own = accuracy.own_rows(rows, "transductive")
    means = 100 * own.groupby("method").accuracy.mean()
    first, second = setting["ranks"]
    assert first["method"] == accuracy.method_title(means.idxmax())
    assert first["accuracy"].startswith(f"{means.max():.2f} ± ")
    assert second["accuracy"].startswith(f"{means.min():.2f} ± ")
    assert setting["best"]["seeds"] == 2 and setting["best"]["steps"] == 4
    assert setting["paper"] is None  # nobody published an accuracy on glyphs
    gains = setting["mode_gains"]
    modes = accuracy.own_rows(rows).groupby(["method", "mode"]).accuracy.mean().unstack()
    gain = 100 * (modes.transductive - modes.inductive)
    assert gains == pytest.approx({"least": gain.min(), "greatest": gain.max()})
    assert rendered(rows, tmp_path)


def test_published_figures_stand_below_ours(rows, tmp_path):
    omniglot = rows.assign(dataset=rows.dataset.where(rows.dataset.isna(), "omniglot"))
    beside = texts(omniglot)[0]
    theirs = beside[beside.method == "MAML"].iloc[-1]
    assert theirs["5-way 1-shot"] == "98.7 ± 0.4" and theirs.whose == "Finn et al. 2017"
    alone = omniglot[omniglot.method != "fomaml"]
    (setting,) = fewshot_report.facts(alone)["settings"]
    assert setting["paper"] == {"accuracy": "98.7 ± 0.4", "budget": "60,000 meta-steps"}


def test_published_cell_marks_what_is_unverified():
    (row,) = [row for row in published_rows("omniglot") if row["method"] == "Meta-SGD"]
    assert row["5-way 1-shot"].text == "99.53 ± 0.26" and row["5-way 1-shot"].key == 99.53
    assert row["20-way 1-shot"].text == "95.93 ± 0.38 (unverified)"
    without = pd.Series({"accuracy": "99.1", "interval": "", "mark": "C", "percent": 99.1})
    assert published_cell(without).text == "99.1"


def test_time_is_compared_where_every_run_had_it(rows):
    longest = fewshot_report.shared_time(rows, "omniglot_5w1s")
    curve = rows[rows.part == "curve"]
    ends = curve.groupby(["method", "seed"]).train_s.max()
    assert longest == ends.min()
    maml = fewshot_report.curves(rows, "omniglot_5w1s")["maml"]
    assert fewshot_report.best_validations(maml, 0.0).empty
    assert len(fewshot_report.best_validations(maml, ends.max())) == 2


def curve_rows(of_maml: list[float], of_fomaml: list[float]) -> pd.DataFrame:
    curve = {"part": "curve", "setting": "omniglot_5w1s", "seed": 0, "accuracy_interval": 0.01}
    return pd.DataFrame(
        [
            {
                **curve,
                "method": method,
                "step": 100 * (k + 1),
                "train_s": float(k),
                "accuracy": value,
            }
            for method, values in (("maml", of_maml), ("fomaml", of_fomaml))
            for k, value in enumerate(values)
        ]
    )


RISING, FLAT, SHORT = [0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.8, 0.8], [0.5]


@pytest.mark.parametrize(
    ("of_maml", "of_fomaml", "rising", "unknown"),
    [
        (RISING, FLAT, ["MAML"], []),
        (FLAT, FLAT, [], []),
        (SHORT, FLAT, [], ["MAML"]),
        (SHORT, SHORT, [], ["MAML", "first-order MAML"]),
    ],
)
def test_facts_tell_which_methods_still_rose(rows, tmp_path, of_maml, of_fomaml, rising, unknown):
    test = rows[(rows.part == "test") & (rows.seed == 0)]
    made = pd.concat([test, curve_rows(of_maml, of_fomaml)])
    (setting,) = fewshot_report.facts(made)["settings"]
    assert [row["method"] for row in setting["rising"]] == rising
    assert all(row["gain"] == pytest.approx(10) for row in setting["rising"])
    assert setting["unknown"] == unknown and rendered(made, tmp_path)


def test_facts_name_a_method_without_a_validation_in_the_shared_time(rows):
    late = curve_rows(RISING, FLAT)
    late.loc[late.method == "maml", "train_s"] += 3.5
    made = pd.concat([rows[(rows.part == "test") & (rows.seed == 0)], late])
    (setting,) = fewshot_report.facts(made)["settings"]
    assert setting["none_in_time"] == ["MAML"] and setting["shared_time"] == "3 s"
    assert [rank["method"] for rank in setting["ranks_in_time"]] == ["first-order MAML"]


def test_report_counts_a_stopped_run(rows, tmp_path):
    stopped = {"setting": "omniglot_5w1s", "method": "imaml", "seed": 0, "part": "stopped"}
    more = pd.concat([rows, pd.DataFrame([{**stopped, "why": "not finite"}])])
    assert texts(more)[-1].iloc[-1]["ended early"] == "not finite"
    assert fewshot_report.facts(more)["stopped"] == 1
    assert len(rendered(more, tmp_path)) == len(rendered(rows, tmp_path)) + 1


def test_report_holds_when_guards_stopped_every_run(tmp_path):
    cell = {"setting": "omniglot_5w1s", "method": "imaml", "seed": 0, "part": "stopped"}
    rows = pd.DataFrame([{**cell, "why": "not finite"}])
    assert list(texts(rows)[-1]["ended early"]) == ["not finite"]
    assert not fewshot_figures.figures(rows)
    assert fewshot_report.facts(rows) == {"settings": [], "stopped": 1}
    assert len(rendered(rows, tmp_path)) == 1


def test_step_seconds_are_those_of_most_stretches():
    curve = pd.DataFrame({"seed": 0, "step": [10, 20, 30], "train_s": [1.0, 61.0, 62.0]})
    assert step_seconds(curve) == pytest.approx(0.1)


@pytest.mark.parametrize(("fomaml", "tied"), [(0.705, True), (0.75, False)])
def test_ranks_are_tied_within_both_intervals(rows, tmp_path, fomaml, tied):
    alone = rows[rows.seed == 0].assign(accuracy_interval=0.01)
    alone["train_s"] = alone.step.fillna(alone.steps)  # as fast as each other
    alone.loc[alone.method == "maml", "accuracy"] = 0.7
    alone.loc[alone.method == "fomaml", "accuracy"] = fomaml
    (setting,) = fewshot_report.facts(alone)["settings"]
    for ranks in (setting["ranks"], setting["ranks_in_time"]):
        assert [rank["method"] for rank in ranks] == ["first-order MAML", "MAML"]
        assert [rank["tied"] for rank in ranks] == [True, tied]
    told = [finding for finding in rendered(alone, tmp_path) if "Not significantly" in finding]
    assert len(told) == 2 * tied


def test_study_refuses_a_schedule_that_minutes_would_cut():
    words = ["settings=[omniglot_5w1s]", "methods=[maml,imaml_best]"]
    assert options.study("bench", "fewshot", words)
    with pytest.raises(UsageError, match="omniglot_5w1s_imaml_best has schedule=cosine"):
        options.study("bench", "fewshot", [*words, "train_minutes=5"])


def test_command_with_more_steps_resumes_the_same_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "fewshot", "methods=[fomaml]", "seeds=[0]", "settings=[omniglot_5w1s]"]
    words += ["validation_every=2", "validation_tasks=4", "test_tasks=4", "inner_steps=[1]"]
    words += [
        "overrides=[" + ",".join(f"'{w}'" for w in OPTIONS["overrides"]) + "]",
        "wandb=disabled",
    ]
    assert main([*words, "steps=2"]) == 0
    assert main([*words, "steps=4"]) == 0
    (folder,) = (tmp_path / "runs" / "fewshot").iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
    frame = pd.read_csv(tmp_path / "results" / "fewshot" / "rows.csv")
    assert set(frame[frame.part == "curve"].step) == {2, 4}


def test_cells_leave_out_a_setting_that_a_method_does_not_have():
    words = ["settings=[omniglot_5w1s,omniglot_5w5s]", "methods=[maml,maml_tuned]"]
    study, _, _ = options.study("bench", "fewshot", words)
    asked = [(cell["setting"][-4:], cell["method"]) for cell in study.cells()]
    assert asked == [("5w1s", "maml"), ("5w1s", "maml_tuned"), ("5w5s", "maml")]


def test_cells_without_methods_are_the_published_ones_that_a_setting_has():
    words = ["settings=[omniglot_5w1s,mini_imagenet_5w1s]"]
    study, _, _ = options.study("bench", "fewshot", words)
    published = ["maml", "fomaml", "reptile", "imaml", "imaml_hf", "imaml_authors_code"]
    asked = [cell["method"] for cell in study.cells()]
    assert asked == [*published, *published[:-1]]


def curve(*accuracies: float, seed: int = 0) -> pd.DataFrame:
    steps = range(100, 100 * len(accuracies) + 100, 100)
    columns = {"seed": seed, "step": steps, "accuracy": accuracies, "accuracy_interval": 0.03}
    return pd.DataFrame(columns)


def test_fall_is_told_beyond_both_intervals():
    assert fall(curve(0.4, 0.604, 0.28)) == pytest.approx({"best": 60.4, "at": "200", "last": 28})
    assert fall(curve(0.4, 0.6, 0.57)) is fall(curve(0.4, 0.5, 0.6)) is None
    two = pd.concat([curve(0.5, 0.4, 0.3), curve(0.5, 0.7, 0.5, seed=1)], ignore_index=True)
    assert fall(two) == pytest.approx({"best": 60, "at": "100 to 200", "last": 40})
    found = falls({"flat": curve(0.5, 0.5), "falling": curve(0.6, 0.3)})
    assert [row["name"] for row in found] == ["falling"]
