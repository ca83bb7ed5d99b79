"""Our runs beside the published few-shot accuracies."""

from __future__ import annotations

from made_up import SUMMARY

from metalearn.report import accuracy
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
    assert "after 500 meta-steps of 32 tasks: best 80.43 ± 1.73 %; imaml 56.80 ± 1.73 %." in ours
    assert "in papers' tables: 95.39 to 99.53 %." in published
    assert "Best of our runs: 80.43 ± 1.73 %. Its budget: 500 meta-steps of 32 tasks." in published
    assert "Budgets in the papers: MAML, 60,000 meta-steps" in published


def test_findings_separate_the_budgets():
    found = accuracy.findings([run(0.5), run(0.6, steps=1000)])
    assert sum("after 500" in f for f in found) == 1
    assert sum("after 1000" in f for f in found) == 1


def test_tables_hold_our_rows_first_and_marked():
    tables = accuracy.tables([run(0.568)])
    omniglot = tables["Omniglot: test accuracy in %, our runs beside the published figures"]
    columns = list(omniglot.columns)
    assert columns[:5] == ["method"] + [f"{w}-way {s}-shot" for w in (5, 20) for s in (1, 5)]
    assert omniglot.marked == {0}
    by_method = {row[0].text: [cell.text for cell in row] for row in omniglot.rows}
    assert by_method["imaml"][1:5] == ["56.80 ± 1.73", "", "", ""]
    assert by_method["Meta-SGD"][1:5] == [
        *("99.53 ± 0.26", "99.93 ± 0.09", "95.93 ± 0.38 (unverified)"),
        "98.97 ± 0.19 (unverified)",
    ]
    assert (
        len(omniglot.rows)
        == 1 + published_accuracies().query("dataset == 'omniglot'").method.nunique()
    )
    keys = {row[0].text: row[1].key for row in omniglot.rows}
    assert keys["imaml"] == 56.8 and keys["MAML"] == 98.7
    (cost,) = tables["What our runs took"].rows
    assert {"235.4", "3ed23ae", SUMMARY["command"]} <= {cell.text for cell in cost}


def test_tables_show_a_run_of_unknown_data_alone():
    unknown = Run("runs/x", "mine", "", None, None, SUMMARY)
    (table, _) = accuracy.tables([unknown]).values()
    assert table.columns[:2] == ["method", "accuracy"]
    assert table.rows[0][1].text == "56.80 ± 1.73"
    assert accuracy.findings([unknown]) == []
    assert accuracy.figures([unknown]) == {}


def test_tables_of_regression_have_no_accuracy():
    summary = {**SUMMARY, "name": "sinusoid_maml"}
    del summary["test_accuracy"]
    tables = accuracy.tables([Run("runs/x", "sinusoid_maml", "", None, None, summary)])
    assert list(tables) == ["What our runs took"]


def test_figures_have_a_point_for_each_run_and_published_accuracy():
    perfect = run(1.0, "$perfect", test_accuracy_interval=0.0)
    (figure,) = accuracy.figures([run(0.568), perfect]).values()
    (axes,) = figure.axes
    figure.canvas.draw()  # "$" is no mathematics, and an error of 0 has a place on the log axis
    published = published_accuracies().query("dataset == 'omniglot' and ways == 5 and shots == 1")
    assert len(axes.get_yticklabels()) == 2 + len(published)
    assert axes.get_yticklabels()[-1].get_text().startswith(r"\$perfect, ours")
