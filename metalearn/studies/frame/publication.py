"""The place, the name and the options of a study that is published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Publication:
    """The place and the name of a published study.

    Args:
        name: of its folder in `results` and in `scratch`.
        options: all of them, by which an interrupted study knows itself again.
        results: the parent folder; its README.md is the index, made anew.
        scratch: the parent folder of what is not published: rows on the way, and the W&B run.
        minutes: what it took when it was last run whole on 2 cores; None: not known.
        quick_minutes: what preset=quick takes on 2 cores; None: not known, or it is chosen.
        wandb: offline, online or disabled.
        measure: False takes the rows that are published already.
        extend: measure only the cells that are not among the published rows.
        share: other processes that run the same command measure some of the cells.
        paper: make the files for a paper too (`paper_files`).
    """

    name: str
    options: dict[str, Any]
    results: Path
    scratch: Path
    minutes: float | None = None
    quick_minutes: float | None = None
    wandb: Any = "offline"
    measure: bool = True
    extend: bool = False
    share: bool = False
    paper: bool = False
