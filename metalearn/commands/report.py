"""`metalearn report`: one HTML page of the results and of chosen runs."""

from __future__ import annotations

import os
from pathlib import Path

from metalearn import config
from metalearn.errors import UsageError
from metalearn.report.page import make_page

QUICK, RUNS = Path("runs/quick"), Path("runs")
"""The places of one's own studies and runs, away from a checkout."""


def run(words: list[str]) -> int:
    """Make the page; return the exit status.

    Raises:
        UsageError: a word is no option, or the results are not what they should be.
    """
    cfg = config.plain("report", words)
    if not cfg.results or not cfg.out:
        raise UsageError("results= or out= is empty; give a path, or leave it out")

    if "" in cfg.runs:
        raise UsageError("runs= has an empty path; give the folder of a run, or leave it out")
    results: Path | None = Path(cfg.results)
    runs = [Path(run) for run in cfg.runs]
    if "results" not in config.keys(words) and not os.path.isdir(cfg.results):
        results, runs = _own(runs)

    shown = make_page(results, runs, Path(cfg.out))
    counted = ", ".join(f"{n} {what if n == 1 else plural}" for (what, plural), n in shown.items())
    print(f"wrote {cfg.out} ({os.path.getsize(cfg.out) / 1e3:.0f} kB): {counted}")
    return 0


def _own(runs: list[Path]) -> tuple[Path | None, list[Path]]:
    """Return the results and the runs to show where there is no folder of results.

    Raises:
        UsageError: there is nothing to show.
    """
    if runs:
        return None, runs
    quick = QUICK if QUICK.is_dir() else None
    found = [RUNS] if any(RUNS.rglob("summary.json")) else []
    if quick is None and not found:
        raise UsageError(
            "there is neither results/ nor a finished run in runs/ here: expected something to "
            "show. Run `metalearn train` first, or give results= or runs="
        )
    return quick, found
