"""The sections of the page, in the order in which a reader needs them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metalearn.report import collect
from metalearn.report.embed import Image, Rows, pack_rows, read_image
from metalearn.report.runs import Run
from metalearn.studies.frame.table import Table

RUNS = "runs"
"""The place of the training runs in `ORDER`."""
ORDER = (
    *("memory", "gradient", "stability", RUNS, "speed", "time", "cg", "properties", "iterations"),
    *("differences", "hpo", "influence", "distill", "nas", "deq"),
)
"""The first word of a result's folder: what the gradients are, what they train, other uses."""
ASIDE = ("fewshot", "ranks", "soak")
"""The studies that only some readers need: they are folded, after the others."""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        id: the id of the heading, with which the ids of the figures begin.
        kind: "study", "runs" or "result".
        title: the heading.
        conclusion: what to take away, as a headline and a text; empty: nothing.
        findings: the findings as sentences.
        figures: pairs (image, caption), the main one first.
        tables: the tables by caption, the main one first.
        published: the published figures on the subject.
        rows: all measurements of a study.
        command: the command that made the result.
        note: a remark on the result, or "".
        origin: pairs (key, value) of the provenance, in order, without the command.
        folded: the section is closed at first.
    """

    id: str
    kind: str
    title: str
    findings: Sequence[str]
    figures: Sequence[tuple[Image, str]]
    tables: Mapping[str, Table]
    conclusion: Sequence[str] = ()
    published: Table | None = None
    rows: Rows | None = None
    command: str = ""
    note: str = ""
    origin: Sequence[tuple[str, str]] = field(default_factory=list)
    folded: bool = False


def make_sections(
    studies: Sequence[collect.Result], lone: Sequence[collect.Result], runs: Sequence[Run]
) -> list[Section]:
    """Return the sections of the studies, the runs and the single results, in order.

    Raises:
        UsageError: a figure is damaged.
    """
    placed = [(_place(study.name), _of_result(study, "study")) for study in studies]
    if runs:
        placed.append((_place(RUNS), _of_runs(runs)))
    placed.sort(key=lambda pair: pair[0])
    return [section for _, section in placed] + [_of_result(result, "result") for result in lone]


def _place(name: str) -> int:
    """Return the place of a study by its folder; one of another name stands before those aside."""
    first = name.partition("_")[0]
    if first in ASIDE:
        return len(ORDER) + 1 + ASIDE.index(first)
    return ORDER.index(first) if first in ORDER else len(ORDER)


def _of_result(result: collect.Result, kind: str) -> Section:
    options = result.origin.get("options")
    preset = options.get("preset") if isinstance(options, Mapping) else None
    return Section(
        id=_id(result.where),
        kind=kind,
        title=result.title,
        conclusion=result.conclusion,
        findings=result.findings,
        figures=[(read_image(path), text or result.title) for path, text in result.figures],
        tables=result.tables,
        published=collect.published(result.name) if kind == "study" else None,
        rows=None if result.rows is None else pack_rows(result.rows),
        command=str(result.origin["command"]),
        note="a quick version: fewer measurements" if preset == "quick" else "",
        origin=_origin(result.origin),
        folded=kind == "result" or result.name.partition("_")[0] in ASIDE,
    )


def _of_runs(runs: Sequence[Run]) -> Section:
    from metalearn.report import accuracy
    from metalearn.studies.frame.plot import caption_of, style, svg

    with style():
        drawn = accuracy.figures(runs)
    return Section(
        id=RUNS,
        kind="runs",
        title="Few-shot accuracy: our runs beside published figures",
        conclusion=accuracy.conclusion(runs),
        findings=accuracy.findings(runs),
        figures=[(Image(svg(f).encode(), "svg+xml"), caption_of(f)) for f in drawn],
        tables=accuracy.tables(runs),
    )


def _origin(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the provenance as texts, with the versions and the options one by one."""
    found = []
    for key in ("commit", "machine", "threads", "date", "measure_s"):
        if origin.get(key) is not None:
            found.append((key.removesuffix("_s").replace("measure", "seconds"), str(origin[key])))
    for key in ("versions", "options"):
        values = origin.get(key)
        if isinstance(values, Mapping) and values:
            named = [(k, v) for k, v in values.items() if not str(k).startswith("_")]
            found.append((key, ", ".join(f"{k}={_word(v)}" for k, v in named)))
        elif values:
            found.append((key, _word(values)))
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _id(where: str) -> str:
    """Return an id of letters, digits and dashes; different paths have different ids."""
    return "s-" + re.sub(r"[^a-zA-Z0-9]", lambda m: f"-{ord(m[0]):x}-", where).replace("-2f-", "--")
