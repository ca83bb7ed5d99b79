"""Training runs by name, in words."""

from __future__ import annotations

from metalearn.report.runs import Run
from metalearn.studies.frame.accuracy import PUBLISHED

METHODS = {**PUBLISHED, "ridge": "ridge head"}
BUDGETS = {
    "table": "symmetric head",
    "half_hour": "symmetric head, half an hour",
    "quick": "symmetric head, quick",
}
"""The meaning of the ending of an experiment's name."""


def run_title(run: Run) -> str:
    """Return "MAML, symmetric head, quick" for `maml_quick`, and the name of any other run."""
    method, comma, more = run.method.partition(",")
    base = max((m for m in METHODS if f"{method}_".startswith(f"{m}_")), key=len, default=None)
    if base is None:
        return run.method
    ending = method.removeprefix(base).strip("_")
    words = BUDGETS.get(ending, ending.replace("_", " "))
    if base == "ridge":  # whose head is the method itself
        words = words.removeprefix("symmetric head").removeprefix(", ")
    return ", ".join(filter(None, (METHODS[base], words))) + comma + more


def run_title_with_mode(run: Run) -> str:
    """Return the title, and the mode if it is not the papers' own."""
    return f"{run_title(run)}, inductive" if run.mode == "inductive" else run_title(run)
