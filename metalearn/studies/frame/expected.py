"""The time that a study will take, said before its first measurement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from metalearn.studies.frame.protocol import Cell, Study
from metalearn.system.duration import format_duration

if TYPE_CHECKING:
    from metalearn.studies.frame.publication import Publication


def describe_expected(
    study: Study, publication: Publication, cells: Sequence[Cell], device: torch.device
) -> str:
    """Return the sentences on the time that the cells will take, and on a way to spend less.

    The time is the study's own estimate on this machine (`expected_seconds`), or what the study
    took when it was last run whole.
    """
    seconds: float | None = None
    if publication.minutes is not None:
        cores = os.cpu_count()
        about = f"The whole takes about {format_duration(60 * publication.minutes)} on 2 cores"
        about += f"; this machine has {cores}." if cores != 2 else "."
    else:
        if expected := getattr(study, "expected_seconds", None):
            seconds = expected(cells, device)
        about = "The time is not known before the first measurement, which shows what is left."
        if seconds is not None:
            about = f"Training takes about {format_duration(seconds)} on this machine."
    if publication.quick_minutes is None:
        return f"{about} For less: shorter lists of options."
    quick = format_duration(60 * publication.quick_minutes)
    return f"{about} For less: preset=quick, about {quick}, or shorter lists of options."
