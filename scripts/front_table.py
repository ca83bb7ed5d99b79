#!/usr/bin/env python3
"""Make the tables of Omniglot accuracies from results/ and the published figures.

docs/benchmarks.md has every training, README.md those of symmetric and convex heads.

Run it after `metalearn bench fewshot`: .venv/bin/python scripts/front_table.py
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.report.runs import read_run
from metalearn.studies.frame.accuracy import PUBLISHED, accuracy_cell, method_title, own_rows
from metalearn.studies.frame.published.accuracy import published, published_cell, select_papers
from metalearn.system.files import replace_text

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {(5, 1): "5w1s", (5, 5): "5w5s", (20, 1): "20w1s", (20, 5): "20w5s"}
BLOCK = re.compile(r"(?<=<!-- scripts/front_table.py -->\n).*?(?=<!-- end -->)", re.DOTALL)

Line = tuple[str, str]
"""A method, and a description of its training."""


@dataclass
class Training:
    """A line of the table: a method's trainings to one budget, one for each setting."""

    where: str
    seconds: list[float] = field(default_factory=list)
    cells: dict[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> str:
        return f"here, {_duration(min(self.seconds), max(self.seconds))} of {self.where}"


def lines(results: Path) -> dict[Line, dict[str, str]]:
    """Return the accuracies by line and setting.

    A method's longest training comes first, and its published accuracies last.

    Raises:
        SystemExit: two results are of one cell, or of a training that is not known.
    """
    ours: dict[tuple[str, str, str], Training] = {}
    for method, budget, where, seconds, setting, accuracy in (
        *trained(results),
        *_long(results),
        *_studies(results),
    ):
        training = ours.setdefault((method, budget, where), Training(where))
        if setting in training.cells:
            raise SystemExit(
                f"results/ has {method}, {budget} of {where}, {setting} more than once; leave one "
                "of the folders out"
            )
        training.seconds.append(seconds)
        training.cells[setting] = accuracy
    ordered = {}
    convex = [(key[0], t) for key, t in ours.items() if _base(key[0]).startswith("implicit")]
    theirs = published()[published().dataset == "omniglot"]
    for method in PUBLISHED.values():
        own = [(key[0], t) for key, t in ours.items() if _base(key[0]) == method]
        for title, training in sorted(own, key=lambda item: -round(min(item[1].seconds) / 60)):
            ordered[title, training.trained] = training.cells
        part = select_papers(theirs, method)
        if len(part):
            budget = f", {part.budget.iloc[0]}" if part.budget.iloc[0] else ""
            ordered[method, f"{part.source.iloc[0]}{budget}"] = {
                SETTINGS[row["ways"], row["shots"]]: published_cell(row).text
                for _, row in part.iterrows()
            }
    for title, training in sorted(convex, key=lambda item: -min(item[1].seconds)):
        ordered[title, training.trained] = training.cells
    return ordered


def _studies(results: Path) -> Iterator[tuple[str, str, str, float, str, str]]:
    """Yield the (method, budget, where, seconds, setting, accuracy) of few-shot studies' cells.

    A study counts if its trainings are the experiments' own and at least 1,000 tasks judge them.
    """
    for path in sorted(results.glob("fewshot*/rows.csv")):
        origin: Any = json.loads((path.parent / "provenance.json").read_text())
        options = origin["options"]
        if options.get("overrides", options.get("words")) or options["test_tasks"] < 1000:
            continue
        limit = options["train_minutes"]
        budget = f"{limit} minutes" if limit else f"{options['steps']} meta-steps"
        rows = own_rows(pd.read_csv(path), "transductive")
        rows = rows[rows.dataset == "omniglot"]
        for (setting, method), group in rows.groupby(["setting", "method"], sort=False):
            cell = str(setting).removeprefix("omniglot_")
            seconds = float(group.train_s.mean())
            where = _where(options["device"], int(group.threads.iloc[0]))
            accuracy = accuracy_cell(group).text
            yield method_title(str(method)), budget, where, seconds, cell, accuracy


def _long(results: Path) -> Iterator[tuple[str, str, str, float, str, str]]:
    for path in sorted((results / "omniglot_long").glob("*_long.json")):
        run: Any = json.loads(path.read_text())
        found = re.fullmatch(r"omniglot_(\d+w\ds)_(\w+)_long", path.stem)
        if found is None or found[2] not in PUBLISHED:
            raise SystemExit(f"{path.name}: expected omniglot_SETTING_METHOD_long.json")
        mean, half = 100 * run["test_accuracy"], 100 * run["test_accuracy_interval"]
        budget, where = f"{run['steps']} meta-steps", _where("cpu", run["threads"])
        method = f"{PUBLISHED[found[2]]}: long, 5 queries a class"
        yield method, budget, where, run["train_s"], found[1], f"{mean:.2f} ± {half:.2f}"


METHODS = {
    "maml": "MAML: symmetric head",
    "imaml": "iMAML, gradient descent: symmetric head",
    "ridge": "implicit, ridge head (inductive)",
}
"""The titles by the last part of an experiment's name."""


def trained(results: Path) -> Iterator[tuple[str, str, str, float, str, str]]:
    """Yield the cells of `scripts/train_experiments`, in the form of `_studies`.

    Their networks have a symmetric head and are judged on 4,000 tasks. The time of a training that
    starts from another's weights includes that of the other. Seeds share a cell.
    """
    seeds: dict[tuple[str, str, str, str], list[Judged]] = {}
    for path in sorted(results.glob("omniglot_*/*-way.json")):
        experiment, ways = path.name.removesuffix("-way.json").rsplit("-", 1)
        if path.parent.name == "omniglot_long":
            continue  # `_long` has them, of free heads
        training, _, ensemble = experiment.partition("-ensemble")
        training += ensemble  # the seed's ending
        summary = path.parent / f"{training}.json"
        run: Any = json.loads(summary.read_text())
        followed = read_run(summary, summary.name, run)
        if "changed" in followed.method:
            raise SystemExit(f"{summary}: {followed.method}. Leave it out of results/.")
        found: Any = json.loads(path.read_text())
        by_mode = {row["mode"]: row for row in found["rows"]}
        setting = f"{ways}w{by_mode['inductive']['shots']}s"
        name = re.fullmatch(
            r"omniglot_(?:(\d+w\ds)_)?(\w+?)(?:_5shot)?(_bf16)?_(?:quick|half_hour|table)",
            training.split("-seed")[0],
        )
        if name is None or name[2] not in METHODS:
            raise SystemExit(
                f"{path.name}: expected omniglot_METHOD_BUDGET, a method among "
                f"{', '.join(METHODS)}. Leave it out of results/."
            )
        if name[1] not in (None, setting):
            continue  # of other ways than it was trained for
        method = METHODS[name[2]] + (", products in bfloat16" if name[3] else "")
        modes = ("inductive",) if name[2] == "ridge" else ("transductive", "inductive")
        seconds = run["train_s"]
        if first := followed.init_from:
            earlier = path.parent / f"{first}.json"
            if not earlier.is_file():
                raise SystemExit(f"{summary} starts from {first}: expected {earlier}. Train it.")
            # The trainings of one line start from trainings of as many shots, of their own seeds.
            common = first.removesuffix(f"-seed{run['seed']}").replace("_5shot", "")
            method += f", from the weights of {common}"
            seconds += json.loads(earlier.read_text())["train_s"]
        if "-ensemble" in experiment:
            method += f", ensemble of {by_mode['inductive']['ensemble']} checkpoints"
        key = method, path.parent.name, _where("cpu", run["threads"]), setting
        judged = Judged(seconds, [by_mode[mode] for mode in modes])
        seeds.setdefault(key, []).append(judged)
    for (method, budget, where, setting), each in seeds.items():
        seconds = statistics.mean(one.seconds for one in each)
        yield method, budget, where, seconds, setting, _cell([one.rows for one in each])


@dataclass(frozen=True)
class Judged:
    """A trained seed: its seconds of training, and its accuracies by mode."""

    seconds: float
    rows: Sequence[Any]


def _cell(seeds: Sequence[Sequence[Any]]) -> str:
    """Return "98.93 ± 0.08 (98.53), seeds 0.05", in percent, of the rows of each seed.

    The numbers are the mean over seeds, the 95 % interval over tasks (averaged over seeds), the
    mean inductive accuracy if the first one is not inductive, and the standard deviation over
    seeds if there are several.
    """
    means = [[100 * row["accuracy"] for row in by_seed] for by_seed in zip(*seeds, strict=True)]
    half = statistics.mean(100 * rows[0]["accuracy_interval"] for rows in seeds)
    first, *others = means
    text = f"{statistics.mean(first):.2f} ± {half:.2f}"
    text += "".join(f" ({statistics.mean(mean):.2f})" for mean in others)
    return text + (f", seeds {statistics.stdev(first):.2f}" if len(first) > 1 else "")


def _duration(least: float, most: float) -> str:
    unit, factor = ("min", 60) if most < 6000 else ("h", 3600)
    low, high = (f"{s / factor:.{0 if unit == 'min' else 1}f}" for s in (least, most))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _base(title: str) -> str:
    return title.split(":")[0].removesuffix(", tuned")


def _where(device: str, threads: int) -> str:
    if device != "cpu":
        return "a GPU"
    return "one thread" if threads == 1 else f"{threads} threads"


def headline(every: dict[Line, dict[str, str]]) -> dict[Line, dict[str, str]]:
    """Return the lines of symmetric and convex heads, and of the papers of the same methods."""
    papers = {PUBLISHED[key] for key in ("maml", "imaml", "imaml_hf")}
    chosen = {}
    for (method, trained), cells in every.items():
        paper = method in papers and not trained.startswith("here")
        head = ": symmetric head" in method or _base(method).startswith("implicit")
        if paper or (head and "ensemble" not in method and "bfloat16" not in method):
            chosen[method.replace(": symmetric head", ""), trained] = cells
    return chosen


def table(rows: dict[Line, dict[str, str]]) -> str:
    """Return the table in Markdown."""
    titles = [f"{ways}-way {shots}-shot" for ways, shots in SETTINGS]
    text = [f"| | trained | {' | '.join(titles)} |", "|" + "---|" * (2 + len(titles))]
    last = ""
    for (method, trained), cells in rows.items():
        each = " | ".join(cells.get(setting, "") for setting in SETTINGS.values())
        text.append(f"| {method if method != last else ''} | {trained} | {each} |")
        last = method
    return "\n".join(text) + "\n"


def pages(results: Path) -> dict[str, str]:
    """Return the table of each page."""
    every = lines(results)
    return {"README.md": table(headline(every)), "docs/benchmarks.md": table(every)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for name, text in pages(ROOT / "results").items():
        page = ROOT / name
        before = BLOCK.split(page.read_text(), maxsplit=1)
        replace_text(page, text.join(before))


if __name__ == "__main__":
    main()
