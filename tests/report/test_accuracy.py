"""Our runs beside the published few-shot accuracies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up import SUMMARY

from metalearn.report import accuracy
from metalearn.report.names import run_title
from metalearn.report.runs import Run
from metalearn.studies.frame.published.accuracy import MARKS
from metalearn.studies.frame.published.accuracy import published as published_accuracies


def run(accuracy: float, method: str = "imaml", **changes) -> Run:
    summary = {**SUMMARY, "test_accuracy": accuracy, **changes}
    return Run(f"runs/{method}", method, "omniglot", 5, 1, summary)


def test_published_has_known_marks_sources_and_no_duplicate():
    every = published_accuracies()
    assert set(every.mark) == set(MARKS)
    assert every.percent.between(40, 100).all()
    assert not every.duplicated(["dataset", "ways", "shots", "method"]).any()
    assert (every.source != "").all()
    # the paper that this project is about, by its own table
    imaml = every[every.method.str.startswith("iMAML, Hessian-free") & (every.mark == "P")]
    assert imaml.accuracy.tolist() == ["99.50", "99.74", "96.18", "99.14", "49.30"]


def test_findings_name_our_runs_the_papers_and_the_budgets():
    ours, published = accuracy.findings([run(0.568), run(0.8043, "best")])
    assert "after 500 meta-steps of 32 tasks: best 80.43 ± 1.73 %; iMAML, gradient" in ours
    assert "gradient descent 56.80 ± 1.73 %." in ours
    assert "in papers' tables: 95.39 to 99.53 %." in published
    assert "Best of our runs: 80.43 ± 1.73 %. Its budget: 500 meta-steps of 32 tasks." in published
    assert "Budgets in the papers: MAML, 60,000 meta-steps" in published


def test_findings_separate_the_budgets():
    found = accuracy.findings([run(0.5), run(0.6, steps=1000)])
    assert sum("after 500" in f for f in found) == 1
    assert sum("after 1,000" in f for f in found) == 1


def test_tables_hold_our_rows_first_and_marked():
    tables = accuracy.tables([run(0.568)])
    omniglot = tables["Omniglot: test accuracy in %, our runs beside the published figures"]
    columns = list(omniglot.columns)
    assert columns[:5] == ["method"] + [f"{w}-way {s}-shot" for w in (5, 20) for s in (1, 5)]
    assert omniglot.marked == {0}
    ours, *_ = [[cell.text for cell in row] for row in omniglot.rows]
    assert ours[:5] == ["iMAML, gradient descent", "56.80 ± 1.73", "", "", ""]
    by_method = {row[0].text: [cell.text for cell in row] for row in omniglot.rows}
    assert by_method["Meta-SGD"][1:5] == [
        *("99.53 ± 0.26", "99.93 ± 0.09", "95.93 ± 0.38 (unverified)"),
        "98.97 ± 0.19 (unverified)",
    ]
    assert (
        len(omniglot.rows)
        == 1 + published_accuracies().query("dataset == 'omniglot'").method.nunique()
    )
    assert omniglot.rows[0][1].key == 56.8
    keys = {row[0].text: row[1].key for row in omniglot.rows}
    assert keys["MAML"] == 98.7
    (cost,) = tables["What our runs took"].rows
    assert {"235.4", "3ed23ae", SUMMARY["command"]} <= {cell.text for cell in cost}


def test_tables_show_a_run_of_unknown_data_alone():
    unknown = Run("runs/x", "mine", "", None, None, SUMMARY)
    (table, _) = accuracy.tables([unknown]).values()
    assert table.columns[:2] == ["method", "accuracy"]
    assert table.rows[0][1].text == "56.80 ± 1.73"
    assert accuracy.findings([unknown]) == []
    assert accuracy.figures([unknown]) == accuracy.conclusion([unknown]) == []


def test_tables_of_regression_have_no_accuracy():
    summary = {**SUMMARY, "name": "sinusoid_maml"}
    del summary["test_accuracy"]
    tables = accuracy.tables([Run("runs/x", "sinusoid_maml", "", None, None, summary)])
    assert list(tables) == ["What our runs took"]


def test_figures_have_a_point_for_each_run_and_published_accuracy():
    perfect = run(1.0, "$perfect", test_accuracy_interval=0.0)
    (figure,) = accuracy.figures([run(0.568), perfect])
    (axes,) = figure.axes
    figure.canvas.draw()  # "$" is no mathematics, and an error of 0 has a place on the log axis
    assert len(axes.get_yticklabels()) == 2 + len(_of_setting(published_accuracies()))
    assert axes.get_yticklabels()[0].get_text().startswith(r"\$perfect")


def test_the_first_of_many_accuracies_are_the_best_of_ours_and_the_papers():
    best, every = accuracy.figures([run(0.5 + 0.01 * i, f"m{i:02}") for i in range(20)])
    labels = [text.get_text() for text in best.axes[0].get_yticklabels()]
    assert [label[:3] for label in labels if label[0] == "m"] == [
        f"m{i}" for i in range(19, 11, -1)
    ]
    papers = published_accuracies().query("mark == 'P'")
    assert len(labels) == 8 + len(_of_setting(papers))
    assert len(every.axes[0].get_yticklabels()) == 20 + len(_of_setting(published_accuracies()))


def _of_setting(rows):
    return rows.query("dataset == 'omniglot' and ways == 5 and shots == 1")


@pytest.mark.parametrize(
    ("method", "title"),
    [
        ("maml_table", "MAML, symmetric head"),
        (
            "imaml_quick, ensemble of 5",
            "iMAML, gradient descent, symmetric head, quick, ensemble of 5",
        ),
        ("imaml_authors_code", "iMAML, the authors' code"),
        ("ridge_quick", "ridge head, quick"),
        ("ridge_table", "ridge head"),
        ("maml_long", "MAML, long"),
        ("my_run_1", "my_run_1"),
        ("mamlish", "mamlish"),
        ("omniglot_5w1s_maml, changed: tasks.ways", "omniglot_5w1s_maml, changed: tasks.ways"),
    ],
)
def test_a_run_is_named_in_words(method, title):
    assert run_title(run(0.5, method)) == title


def test_the_conclusion_names_the_best_run_and_the_best_short_one():
    runs = [run(0.97, "maml_table", train_s=7200.0), run(0.9, "maml_quick", train_s=600.0)]
    headline, text = accuracy.conclusion([*runs, run(0.8, "imaml")])
    assert headline.startswith("Omniglot 5-way 1-shot: 97.00 ± 1.73 % here, 95.39 to 99.53 %")
    assert "MAML, symmetric head, 500 meta-steps of 32 tasks in 120 min of one thread" in text
    assert "less than 20 minutes is MAML, symmetric head, quick" in text and "90.00 ± 1.73" in text
    assert "less than" not in accuracy.conclusion(runs[1:])[1]  # the best is a short one
    later = replace(run(0.95, "imaml_table", train_s=60.0), init_from="ridge")
    assert accuracy.conclusion([*runs, later]) == accuracy.conclusion(runs)
