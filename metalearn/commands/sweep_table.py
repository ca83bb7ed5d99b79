"""The table that ends a sweep: the runs of each setting over their seeds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from metalearn.config.sweep import Ended
from metalearn.system.files import replace_text

SEED = "seed"
Run = tuple[Ended, Mapping[str, Any]]
"""A job of a sweep, and the figures of its run's summary; empty if it has not finished."""


def print_sweep(ended: Sequence[Ended], folder: Path) -> None:
    """Print a table of the runs, and write a row for each, also if refused, to `folder`/runs.csv.

    A setting is what the swept options but for the seed are. Its figures are means over its runs,
    with the standard deviation between them (n - 1).
    """
    runs = [(one, read_figures(Path(one.folder)) if one.folder else {}) for one in ended]
    if not any("test_loss" in figures for _, figures in runs):
        return
    print(f"\n{format_table(summarise(runs))}")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "runs.csv", _to_csv(runs))
    print(f"wrote {folder}/runs.csv, a row for each run")


def read_figures(folder: Path) -> dict[str, Any]:
    """Return the test's figures and the times in the summary of a run; empty without a summary."""
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    times = ("step_s", "train_s")
    return {key: value for key, value in summary.items() if key[:5] == "test_" or key in times}


def summarise(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return the rows of the table, a row for each setting, in the order of the runs."""
    accuracy = any("test_accuracy" in figures for _, figures in runs)
    figure, factor, digits = ("test_accuracy", 100, 2) if accuracy else ("test_loss", 1, 4)
    title = "test accuracy in %" if accuracy else "test loss"
    settings: dict[str, list[Run]] = {}
    for one, figures in runs:
        setting = {name: str(value) for name, value in one.swept.items() if name != SEED}
        settings.setdefault(json.dumps(setting), []).append((one, figures))
    rows = []
    for text, own in settings.items():
        scores = [factor * f[figure] for _, f in own if isinstance(f.get(figure), int | float)]
        steps = [f["step_s"] for _, f in own if "step_s" in f]
        unfinished = f" of {len(own)}" if len(scores) < len(own) else ""
        rows.append(
            {
                **json.loads(text),
                "runs": f"{len(scores)}{unfinished}",
                title: f"{mean(scores):.{digits}f}" if scores else "-",
                "deviation": f"{stdev(scores):.{digits}f}" if len(scores) > 1 else "-",
                "s/meta-step": f"{mean(steps):.3f}" if steps else "-",
            }
        )
    return rows


def format_table(rows: Sequence[dict[str, str]]) -> str:
    """Return rows of equal keys as a Markdown table, with columns of equal width."""
    lines = [list(rows[0]), *[list(row.values()) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def _to_csv(runs: Sequence[Run]) -> str:
    rows = [{**one.swept, "run": one.folder, "status": one.status, **f} for one, f in runs]
    text = io.StringIO()
    names = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
