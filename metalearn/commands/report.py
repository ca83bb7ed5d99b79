"""`metalearn report`: one HTML page of the results and of chosen runs."""

from __future__ import annotations

import os
from pathlib import Path

from metalearn import config
from metalearn.errors import UsageError
from metalearn.report.page import make_page


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
    if cfg.runs and "results" not in config.keys(words) and not os.path.isdir(cfg.results):
        results = None  # away from a checkout, where there are one's own runs alone

    shown = make_page(results, [Path(run) for run in cfg.runs], Path(cfg.out))
    counted = ", ".join(f"{n} {what if n == 1 else plural}" for (what, plural), n in shown.items())
    print(f"wrote {cfg.out} ({os.path.getsize(cfg.out) / 1e3:.0f} kB): {counted}")
    return 0
