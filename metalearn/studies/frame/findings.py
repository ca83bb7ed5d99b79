"""Findings: sentences that a person writes in a template, with the facts of the rows in them."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from metalearn.studies.frame.protocol import Study
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate

TEMPLATE, CONCLUSION = "findings.md.j2", "conclusion.md.j2"


def render_findings(study: Study, rows: pd.DataFrame) -> list[str]:
    """Return a study's findings: the paragraphs of `findings.md.j2` beside its module.

    The template sees what `study.facts(rows)` returns, and these filters:

    - `fmt(".2f")`: a number, or an `Estimate` as "mean ± interval".
    - `bytes`: a number of bytes in its unit.
    - `count("inner step")`: "1 inner step", "5 inner steps".
    - `listed`: "a", "a and b", "a, b and c".

    Raises:
        UndefinedError: the template names a fact that is not there.
    """
    return _paragraphs(study, rows, TEMPLATE)


def render_conclusion(study: Study, rows: pd.DataFrame) -> list[str]:
    """Return what a reader should take away from a study: a headline and a paragraph.

    They are the two paragraphs of `conclusion.md.j2`, a template like that of the findings. The
    list is empty where a study has no such template, or where the template's own conditions on the
    facts leave nothing.
    """
    has_one = (_folder(study) / CONCLUSION).is_file()
    return _paragraphs(study, rows, CONCLUSION) if has_one else []


def _folder(study: Study) -> Path:
    return Path(inspect.getfile(type(study))).parent


def _paragraphs(study: Study, rows: pd.DataFrame, template: str) -> list[str]:
    environment = Environment(
        loader=FileSystemLoader(_folder(study)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fmt": format_number,
        "bytes": lambda value: format_bytes(round(value)),
        "count": format_count,
        "listed": format_list,
    }
    text = environment.get_template(template).render(study.facts(rows))
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def format_number(value: Any, spec: str) -> str:
    """Return a number, or an estimate and its finite interval, in the format `spec`."""
    if not isinstance(value, Estimate):
        return format(value, spec)
    if not math.isfinite(value.interval):
        return format(value.mean, spec)
    return f"{value.mean:{spec}} ± {value.interval:{spec.lstrip('+')}}"


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, "1 step" or "2 steps"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_list(words: list[str]) -> str:
    """Return words as a sentence lists them."""
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last
