"""The numbers of gradients, solvers, memory and time in README and docs/ are those of results/."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator

import pytest
from published_results import RESULTS, check_quotes, findings, first, percent, rows

from metalearn.studies.speed.workloads import WORKLOADS

STEPS = "Conv4-64, 20-way 5-shot: peak memory by inner steps (*italic*: predicted, not run)"
AT_ONCE = STEPS.replace("5-shot:", "5-shot, 4 tasks at once:")
QUARTILES = "one meta-gradient, quartiles in brackets"


def speed() -> Iterator[tuple[str, str]]:
    targets = rows("speed", "Targets")
    shown = {row["workload"]: row for row in targets}
    ratios = [row["library / ours"] for row in targets if row["library / ours"]]
    yield "README", f"{min(ratios, key=float)} to {max(ratios, key=float)} times as fast"
    for name, row in shown.items():
        vmap = [
            r["times ours"] for r in rows("speed", f"{name}: {QUARTILES}") if r["variant"] == "vmap"
        ]
        library = row["fastest library"]
        peer = (
            f"{library}, {row['library / ours']} times"
            if library != "none"
            else "none with this gradient"
        )
        own = f"{row['s']} s | {vmap[0].split()[0]} times | {peer} | {row['ours / floor']} |"
        yield "studies", own


def recomputed() -> Iterator[tuple[str, str]]:
    peaks = {row["method"]: row for row in rows("memory", STEPS)}
    one, implicit = first(peaks["one inner gradient"]["1"]), first(peaks["implicit, 5 CG"]["16"])
    yield "certificates", f"{implicit / one:.1f} times one inner gradient ({implicit} MB a task)"
    peaks = {row["method"]: row for row in rows("memory", AT_ONCE)}
    share = first(peaks["implicit, 5 CG, recomputed"]["16"]) / first(
        peaks["one inner gradient"]["1"]
    )
    yield "certificates", f"peaks at {share:.2f} times one inner gradient"
    for workload, words in (("imaml-20w5s", "takes"), ("imaml-5w1s", "5-way 1-shot take")):
        times = {r["variant"]: r["times ours"] for r in rows("speed", f"{workload}: {QUARTILES}")}
        yield "certificates", f"{words} {first(times['ours, recomputed']):.2f} times the time"


def mixed_mode() -> Iterator[tuple[str, str]]:
    peaks = {row["method"]: row for row in rows("memory", STEPS)}
    times = {
        row["method"]: row
        for row in rows("memory", "Conv4-64, 20-way 5-shot: seconds of one meta-gradient")
    }
    memory, time = (
        first(found["mixed mode"]["64"]) / first(found["checkpointed"]["64"])
        for found in (peaks, times)
    )
    assert first(peaks["mixed mode"]["1"]) > first(peaks["unrolled, batched"]["1"])
    yield "which_gradient", f"takes {memory:.1f} times the memory of checkpoints and {time:.1f}"


def estimate() -> Iterator[tuple[str, str]]:
    summary = json.loads((RESULTS / "certificate/network.json").read_text())["summary"]
    assert {row["tasks"] for row in summary} == {12}
    more = [row for row in summary if row["cg_iterations"] > 2]
    assert {row["covered"] for row in more} == {1.0}
    ratios = [row["ratio_median"] for row in more]
    yield "certificates", f"Its median was {min(ratios):.0f} to {max(ratios):.0f} times the error"
    two = {row["inner_steps"]: row for row in summary if row["cg_iterations"] == 2}
    below = [round(12 * (1 - two[steps]["covered"])) for steps in (16, 64, 256)]
    assert below[0] == 0
    yield "certificates", f"the estimate was below the error for {below[1]} and {below[2]} of the"
    least = min(row["ratio_least"] for row in summary)
    yield "certificates", f"of the 12 tasks, down to {least:.2f} of it"
    times = re.search(r"the least Ritz value is (\d+) times", findings("cg"))
    holds = re.search(r"in (\d+ of \d+ solves after .* minimum)\. Where the m", findings("cg"))
    assert times and holds
    yield "certificates", f"in `results/cg/` it holds in {holds[1]}"
    yield "certificates", f"the least Ritz value is {times[1]} times the least eigenvalue"


def deq() -> Iterator[tuple[str, str]]:
    found = {
        row["applications"]: row
        for row in rows(
            "deq", "Peak memory of a training step against the applications of the cell"
        )
    }
    at = {n: found[str(n)] for n in (8, 16, 128)}
    yield "deq", f"In `results/deq/` it takes {at[8]['DEQ']}. The unrolled twin takes"
    yield "deq", f"takes {at[8]['unrolled']} with 8 applications, and {at[16]['unrolled']} with 16"
    slow = {n: first(x["DEQ, ms a step"]) / first(x["unrolled, ms a step"]) for n, x in at.items()}
    yield "deq", f"takes {slow[16]:.1f} times as long, with 128 {slow[128]:.1f} times"


def rates() -> Iterator[tuple[str, str]]:
    apart = re.findall(r"by at most ([\d.]+) %", findings("rates"))
    yield (
        "bilevel",
        f"by at most {apart[0]} % on all data, and by at most {apart[1]} % on minibatches",
    )


def influence() -> Iterator[tuple[str, str]]:
    found = dict(re.findall(r"loss, ([a-z ]+), Hessian: ([\d.]+ ± [\d.]+)", findings("influence")))
    shown = f"is {found['logistic regression']} for logistic regression and {found['network']} for"
    yield "influence", shown


def minibatches() -> Iterator[tuple[str, str]]:
    ends = []
    for task in ("A penalty for each feature", "A weight for each training example"):
        best, *_, worst = rows("minibatches", task)
        assert (best["method"], worst["method"]) == ("SABA", "F2SA")
        assert "SOBA takes the fewest oracle calls" in findings("minibatches")
        ends.append([row["suboptimality [quartiles]"].split()[0] for row in (best, worst)])
    (near, far), (nearer, farther) = ends
    yield "bilevel", f"at {near} for the penalties, and at {nearer} for the weights"
    yield "bilevel", f"ends farthest, at {far} and {farther}"


def others() -> Iterator[tuple[str, str]]:
    deq = findings("deq")
    by = dict(re.findall(r"([\d.]+) % with (Picard|Anderson|Broyden)", deq))
    means = [float(mean) for mean in by]
    unrolled = re.search(r"is ([\d.]+) % for the unrolled twin", deq)
    growth = re.search(r"grows by a factor of ([\d.]+) for the unrolled", deq)
    assert unrolled and growth and len(means) == 3
    yield "library", f"reach {min(means):.1f} to {max(means):.1f} %"
    yield "library", f"30 unrolled steps reach {float(unrolled[1]):.1f} %"
    yield "library", f"grows {float(growth[1]):.0f} times"
    ranks = [
        float(t) for t in re.findall(r"2 processes .*? train ([\d.]+) times", findings("ranks"))
    ]
    gain = f"{min(ranks):.1f} to {max(ranks):.1f}"
    yield "processes", f"2 processes train {gain} times as fast as one"


def times_ours(variant: str) -> str:
    """Return the range of a variant's time as a multiple of ours over the workloads."""
    found = [
        first(row["times ours"])
        for workload in WORKLOADS
        for row in rows("speed", f"{workload}: {QUARTILES}")
        if row["variant"] == variant
    ]
    return f"{min(found):.2f} to {max(found):.2f} times the time"


def bfloat16_and_captured():
    def accuracy(name: str) -> str:
        return f"{percent(f'omniglot_quick/omniglot_5w1s_{name}_quick-5-way'):.2f}"

    yield "memory_and_speed", f"takes {times_ours('ours, bf16')} of float32"
    yield "memory_and_speed", f"`replay` takes {times_ours('ours, captured')} of the default"
    with (RESULTS / "speed/rows.csv").open() as file:
        peaks = {
            (row["workload"], row["competitor"]): float(row["peak_bytes"] or 0)
            for row in csv.DictReader(file)
            if row["part"] == "workload"
        }
    more = [peaks[w, "ours, captured"] / peaks[w, "ours"] for w in WORKLOADS]
    yield "memory_and_speed", f"peak memory is {min(more):.2f} to {max(more):.2f} times as large"
    table = rows("time_to_accuracy", "Training time to 95 %")
    by = {row["training"]: 1000 * first(row["s"]) / first(row["meta-steps"]) for row in table}
    steps = (by[f"omniglot_5w1s_{name}_quick"] for name in ("maml_bf16", "maml"))
    yield "memory_and_speed", "takes {:.0f} ms in place of {:.0f}".format(*steps)
    maml, imaml = (f"{accuracy(f'{m}_bf16')} % ({accuracy(m)}" for m in ("maml", "imaml"))
    yield "memory_and_speed", f"MAML reaches {maml} in float32) and iMAML {imaml})"


QUOTES = (
    bfloat16_and_captured,
    speed,
    recomputed,
    mixed_mode,
    estimate,
    deq,
    rates,
    influence,
    minibatches,
    others,
)


@pytest.mark.parametrize("quotes", QUOTES, ids=lambda quotes: quotes.__name__)
def test_a_quoted_number_is_that_of_the_results(quotes):
    check_quotes(quotes())
