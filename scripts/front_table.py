#!/usr/bin/env python3
"""README.md's table of Omniglot accuracies, made again from results/ and the published figures.

Usage: .venv/bin/python scripts/front_table.py        (after `metalearn bench fewshot`)
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.bench.fewshot_report import PUBLISHED, name, own_rows, shown
from metalearn.files import replace_text
from metalearn.report.accuracy import published

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {(5, 1): "5w1s", (5, 5): "5w5s", (20, 1): "20w1s", (20, 5): "20w5s"}
BLOCK = re.compile(r"(?<=<!-- scripts/front_table.py -->\n).*?(?=<!-- end -->)", re.DOTALL)

Line = tuple[str, str]
"""A method, and what it was trained for."""


def lines(results: Path) -> dict[Line, dict[str, str]]:
    """Accuracies by line and setting: the longest training of a method first, what was published
    for it last."""
    ours: dict[Line, dict[str, str]] = defaultdict(dict)
    seconds: dict[Line, float] = defaultdict(float)
    for method, how, train_s, setting, accuracy in (*_long(results), *_studies(results)):
        line = (name(method), how)
        ours[line][setting] = accuracy
        seconds[line] = max(seconds[line], train_s)
    longest_first = sorted(ours, key=lambda line: -seconds[line])
    theirs = published()[(published().dataset == "omniglot") & (published().mark == "P")]
    ordered = {}
    for method in PUBLISHED.values():
        for line in longest_first:
            if line[0].removesuffix(", tuned") == method:
                ordered[line] = ours[line]
        part = theirs[theirs.method.isin([method, f"{method}, transductive"])]
        if len(part):
            budget = f", {part.budget.iloc[0]}" if part.budget.iloc[0] else ""
            ordered[method, f"{part.source.iloc[0]}{budget}"] = {
                SETTINGS[r.ways, r.shots]: f"{r.accuracy} ± {r.interval}" for r in part.itertuples()
            }
    return ordered


def _studies(results: Path) -> Iterator[tuple[str, str, float, str, str]]:
    """(method, how it was trained, seconds, setting, accuracy) of the few-shot studies' cells."""
    for path in sorted(results.glob("fewshot*/rows.csv")):
        origin: Any = json.loads((path.parent / "provenance.json").read_text())
        options = origin["options"]
        limit = 60 * options["train_minutes"]
        rows = own_rows(pd.read_csv(path))
        rows = rows[(rows["mode"] == "transductive") & (rows.dataset == "omniglot")]
        for (setting, method), group in rows.groupby(["setting", "method"], sort=False):
            length = _duration(limit) if limit else f"{options['steps']:,} meta-steps"
            device = _threads(origin["threads"]) if options["device"] == "cpu" else "a GPU"
            cell = str(setting).removeprefix("omniglot_")
            seconds = limit or float(group.train_s.max())
            yield str(method), f"here, {length} of {device}", seconds, cell, shown(group)


def _long(results: Path) -> Iterator[tuple[str, str, float, str, str]]:
    for path in sorted((results / "omniglot_long").glob("*.json")):
        run: Any = json.loads(path.read_text())
        _, setting, method, _ = path.stem.split("_")
        mean, half = 100 * run["test_accuracy"], 100 * run["test_accuracy_interval"]
        how = f"here, {_duration(run['train_s'])} of {_threads(run['threads'])}"
        yield f"{method}_tuned", how, run["train_s"], setting, f"{mean:.2f} ± {half:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _threads(n: int) -> str:
    return "one thread" if n == 1 else f"{n} threads"


def table(results: Path) -> str:
    """In Markdown."""
    titles = [f"{ways}-way {shots}-shot" for ways, shots in SETTINGS]
    text = [f"| | trained | {' | '.join(titles)} |", "|" + "---|" * (2 + len(titles))]
    last = ""
    for (method, trained), cells in lines(results).items():
        each = " | ".join(cells.get(setting, "") for setting in SETTINGS.values())
        text.append(f"| {method if method != last else ''} | {trained} | {each} |")
        last = method
    return "\n".join(text) + "\n"


def main() -> None:
    readme = ROOT / "README.md"
    replace_text(readme, BLOCK.sub(lambda _: table(ROOT / "results"), readme.read_text(), count=1))


if __name__ == "__main__":
    main()
