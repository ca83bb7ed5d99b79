"""The numbers of trainings in README and docs/ are those of results/."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from published_results import RESULTS, check_quotes, first, percent, rows, train

from metalearn.studies.frame.published.accuracy import published


def stability() -> Iterator[tuple[str, str]]:
    table = rows("stability", "Each training, by its inner solver")
    for row in table:
        best = f"{row['best validation, %']} at meta-step {row['at meta-step']}"
        cells = [row["seed"], best, row["last validation, %"], row["test, transductive, %"]]
        yield "stability", f"| {' | '.join(cells)} |"
    with (RESULTS / "stability/rows.csv").open() as file:
        parts = [row for row in csv.DictReader(file) if row["part"] == "stretch"]
    course = [row for row in parts if row["solver"] == "fixed rate" and row["seed"] == "0"]
    over = next(row["step"] for row in course if float(row["over_the_edge"]) == 1)
    least, last = min(course, key=lambda row: float(row["inner_grad_norm"])), course[-1]
    norms = [
        f"{float(row['inner_grad_norm']):.2g} at meta-step {row['step']}" for row in (least, last)
    ]
    yield "stability", f"all tasks of seed 0 are over the edge at meta-step {over}"
    yield "stability", f"grows from {norms[0]} to {norms[1]}"
    fixed = [row for row in table if row["inner solver"] == "fixed rate"]
    collapsed = sum(row["collapsed"] == "yes" for row in fixed)
    yield "README", f"collapses in {collapsed} of {len(fixed)} seeds"
    found = [first(row["test, transductive, %"]) for row in table if row not in fixed]
    yield "README", f"reaches {min(found):.1f} to {max(found):.1f} % on Omniglot 5-way 1-shot"


def iterations() -> Iterator[tuple[str, str]]:
    table = rows("iterations", "Omniglot 5-way 1-shot")
    found = {
        (row["curvature"], row["CG iterations"]): first(row["test accuracy, %"]) for row in table
    }
    none = found["none (first-order)", "0"]
    few = [none, *(found[c, n] for c in ("Hessian", "Gauss-Newton") for n in ("1", "2"))]
    yield "stability", f"have means of {min(few):.1f} to {max(few):.1f} %"
    ends = [f"{found['Hessian', n]:.0f}" for n in ("5", "10", "20")]
    yield "stability", f"end at {ends[0]}, {ends[1]} and {ends[2]} % on average"
    ends = [f"{found['Gauss-Newton', n]:.1f}" for n in ("5", "10", "20")]
    yield "stability", f"reach {ends[0]}, {ends[1]} and {ends[2]} % on average"


def distillation() -> Iterator[tuple[str, str]]:
    names = {
        "ten random real images": "ten random real images",
        "ten class means": "ten class means",
        "unrolled": "ten images distilled by unrolling",
        "implicit, CG, Gauss-Newton": "ten distilled by implicit gradients, CG on Gauss-Newton "
        "curvature",
        "the whole training set": "the whole training set",
    }
    found = {row["trained on"]: row["accuracy, %"] for row in rows("distill", "Test accuracy")}
    for name, shown in names.items():
        yield "distill", f"| {shown} | {found[name]} |"
    yield "distill", f"steps ({first(found['unrolled, truncated']):.2f} %)"
    yield "distill", f"CG on the Hessian ({first(found['implicit, CG']):.2f} %)"


def differences() -> Iterator[tuple[str, str]]:
    back = "10, the proximal step back to the start"
    authors = {
        ("queries a class", "15"): "15 queries a class",
        ("outer rate", "0.003"): "larger outer rate, 0.003",
        ("meta-gradient", "MAML, 5 steps"): "MAML's gradient instead: 5 unrolled steps",
        ("meta-gradient", "first-order"): "first-order gradient: without the inverse",
        ("distinct tasks", "200"): "only 200 different tasks",
        ("inner steps", "1"): "one inner step",
        ("lambda", back): "proximal step all the way back to the start (λ = 10)",
        ("algorithm", "the paper's"): "the algorithm of the paper",
        ("outer rate", "0.0003"): "smaller outer rate, 0.0003",
        ("distinct tasks", "1000"): "only 1,000 different tasks",
    }
    for row in rows("differences", "One change at a time from the authors' code"):
        if name := authors.pop((row["change"], row["to"]), None):
            yield "benchmarks", f"| {name} | {first(row['difference']):+.1f} |"
        if row["change"] == "none":
            yield "benchmarks", f"code reaches {first(row['test accuracy, %']):.1f} %"
    assert not authors
    for row in rows("differences", "One change at a time from the paper's algorithm"):
        if row["change"] == "none":
            yield "benchmarks", f"peaks at {first(row['best validation']):.0f} % near meta-step 200"
            yield "benchmarks", f"ends at {first(row['last']):.0f} %"
            yield "benchmarks", f"test accuracy is {first(row['test accuracy, %']):.1f} %"
            yield "benchmarks", f"curvature in {first(row['in all']):.0f} % of all solves"
        if row["change"] == "lambda" and row["to"] in ("0.5", "0.1"):
            yield "benchmarks", f"λ = {row['to']} ({first(row['difference']):+.1f}"


def cleaning() -> Iterator[tuple[str, str]]:
    digits, omniglot = {}, {}
    for row in rows("cleaning", "Learned weights of training examples"):
        (digits if "digits" in row["data and model"] else omniglot)[row["method"]] = row
    least = min(
        first(r["area under the ROC curve"])
        for r in digits.values()
        if r["area under the ROC curve"]
    )
    yield "bilevel", f"with an area of {least:.3f} or more"
    yield "bilevel", f"the area of SOBA is {omniglot['SOBA']['area under the ROC curve']}"
    own, every, clean = (
        omniglot[name]["test accuracy, %"]
        for name in ("SOBA", "all examples, unweighted", "clean examples alone")
    )
    yield "bilevel", f"accuracy there is {own} %, between training on all examples ({every} %)"
    yield "bilevel", f"on the clean ones alone ({clean} %)"
    peaks = rows("cleaning", "Peak memory of a hypergradient")
    flat = [row for row in peaks if not row["method"].startswith("unrolled")]
    assert {row["largest / smallest"] for row in flat} == {"1.00"} and len(flat) == 4


def training() -> Iterator[tuple[str, str]]:
    caption = "Test accuracy after 10,000 steps of SGD"
    fixed, *learned = rows("training", caption)
    again = [first(row["trained again with them, %"]) for row in learned]
    assert max(again) < first(fixed["while learned, %"])
    yield "bilevel", f"fixed values reach {first(fixed['while learned, %']):.1f} %"
    yield "bilevel", f"the network reaches {min(again):.1f} to {max(again):.1f} %"
    gains = {row["learned"]: row["above fixed, points"] for row in rows("training_digits", caption)}
    yield "bilevel", f"augmentation gains {first(gains['augmentation']):.1f} points"


def heads() -> Iterator[tuple[str, str]]:
    authors, paper = (
        {(row["change"], row["to"]): row for row in rows("differences_heads", f"One change {of}")}
        for of in ("at a time from the authors' code", "at a time from the paper's algorithm")
    )

    def gain(table: dict[Any, dict[str, str]], *change: str) -> str:
        return f"{first(table[change]['difference']):+.1f}"

    zero, norm = ("head", "starts at zero"), ("head", "batch norm before it")
    both = ("head", "starts at zero, batch norm before it")
    own = [first(table["none", ""]["test accuracy, %"]) for table in (authors, paper)]
    yield "benchmarks", f"reach {own[0]:.1f} % (authors' code) and {own[1]:.1f} % (paper)"
    yield "benchmarks", f"| head starts at zero | {gain(authors, *zero)} | {gain(paper, *zero)} |"
    yield "benchmarks", f"| not measured | {gain(paper, *both)} |"
    yield "benchmarks", f"({gain(authors, *norm)} and {gain(paper, *norm)} points)"
    rates = [first(row["difference"]) for change, row in paper.items() if "inner" in change[0]]
    yield "benchmarks", f"gain {min(rates):.1f} to {max(rates):.1f} points there"
    ends = [first(paper[zero][name]) for name in ("best validation", "last")]
    yield "benchmarks", f"validation falls from {ends[0]:.0f} % to {ends[1]:.0f} %"
    yield "benchmarks", f"test accuracy is {first(paper[both]['test accuracy, %']):.1f} %"
    widths = [
        row["difference"].split("± ")[1]
        for row in rows("differences", "One change at a time from the paper's algorithm")
        if (row["change"], row["to"]) == ("lambda", "0.5")
    ]
    yield "benchmarks", f"± {float(widths[0]):.1f} points by which runs of the paper's"


def half_hour():
    for name, mode, text in (
        ("omniglot_maml_half_hour", "transductive", "MAML reaches {:.2f} %"),
        ("omniglot_ridge_half_hour", "inductive", "the ridge head {:.2f} % inductive"),
    ):
        yield "benchmarks", text.format(percent(f"omniglot_half_hour/{name}-5-way", mode))
    minutes = train("omniglot_half_hour/omniglot_maml_half_hour")["train_s"] / 60
    yield "benchmarks", f"training of MAML took {minutes:.0f} minutes"


def time_to_accuracy():
    table = rows("time_to_accuracy", "Training time to 95 %")
    by = {row["training"]: row for row in table}
    assert {row["reached"] for row in table} == {"3 of 3", "0 of 3"}
    maml, narrow, ridge = (
        by[f"omniglot_{name}_quick"]["s"].split(" [")[0]
        for name in ("5w1s_maml", "5w1s_maml_bf16", "ridge")
    )
    yield "studies", f"MAML reaches 95 % after {maml} s, MAML in bfloat16 after {narrow} s"
    yield "studies", f"the ridge head after {ridge} s"
    ends = [by[name]["validation at the end, %"] for name in ("learn2learn", "higher")]
    yield "studies", f"learn2learn is at {ends[0]} % and that of higher at {ends[1]} %"


def stable():
    table = rows("differences_stable", "One change at a time from the stable inner loop")
    by = {(row["change"], row["to"]): row for row in table}
    base = by["none", ""]["test accuracy, %"]
    deviation = base.split("(seeds ")[1].rstrip(")")
    reached = f"It reaches {first(base):.1f} % in five seeds, with a standard deviation of"
    yield "benchmarks", f"{reached} {deviation} points"
    changes = (
        ("each class starts ({:+.1f} points)", "head", "its start learned for each class"),
        ("head alone ({:+.1f})", "adapted", "the head alone"),
        ("query a class ({:+.1f})", "queries a class", "1"),
    )
    for text, *change in changes:
        yield "benchmarks", text.format(first(by[tuple(change)]["difference"]))
    gain = first(by["queries a class", "15"]["difference"])
    yield "benchmarks", f"15 queries a class gain {gain:.2f} points"
    one = by["inner steps", "1"]
    yield "benchmarks", f"from {one['best validation']} to {one['last']} %"
    assert {row["in all"] for row in table} == {"0 % of solves"}
    for row in table:
        if row["change"] in ("lambda", "inner rate", "inner solver", "curvature", "rotations"):
            difference, width = row["difference"].split(" ± ")
            assert abs(float(difference)) <= float(width)


def shortfalls():
    papers = published().set_index(["dataset", "method", "ways", "shots"]).percent["omniglot"]

    def above(method: str, title: str, ways: int, shots: int) -> float:
        name = f"omniglot_{method}{'_5shot' if shots == 5 else ''}_table"
        seeds = (RESULTS / "omniglot_table").glob(f"{name}-seed?-{ways}-way.json")
        names = [f"{name}-{ways}-way", *(path.stem for path in seeds)]
        assert len(names) == (3 if shots == 1 else 1)
        mean = statistics.mean(percent(f"omniglot_table/{one}") for one in names)
        return round(mean, 2) - float(papers[title, ways, shots])

    maml = {at: above("maml", "MAML", *at) for at in ((5, 1), (20, 1), (5, 5), (20, 5))}
    assert abs(maml[20, 1]) < 0.1 and 0 < maml[5, 1] < 0.4
    yield "README", f"with five it is {-maml[5, 5]:.2f} and {-maml[20, 5]:.2f} points below"
    imaml = {at: above("imaml", "iMAML, gradient descent", *at) for at in maml}
    yield "README", f"Our iMAML is {imaml[20, 1]:.2f} points above its paper at 20-way 1-shot"
    below = [f"{-imaml[at]:.2f}" for at in ((5, 1), (5, 5), (20, 5))]
    yield (
        "README",
        f"{below[0]}, {below[1]} and {below[2]} points below in the other three settings",
    )


QUOTES = (
    time_to_accuracy,
    stable,
    shortfalls,
    stability,
    iterations,
    distillation,
    differences,
    heads,
    cleaning,
    training,
    half_hour,
)


@pytest.mark.parametrize("quotes", QUOTES, ids=lambda quotes: quotes.__name__)
def test_a_quoted_number_is_that_of_the_results(quotes):
    check_quotes(quotes())
