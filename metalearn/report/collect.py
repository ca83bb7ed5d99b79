"""Reading and checks of the results in `results/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.errors import UsageError
from metalearn.report.names import run_title
from metalearn.report.runs import (
    Run,
    evaluated_path,
    is_evaluation,
    is_summary,
    read_evaluations,
    read_run,
    supersede,
)
from metalearn.studies.frame.published import FOLDER
from metalearn.studies.frame.table import Table, make_table
from metalearn.system.files import damaged, read_json

_OF_A_STUDY = ("provenance.json", "findings.json", "tables.json", "page.json")
# The keys of a result's provenance; the other keys of a single file are its content.
_ORIGIN = ("command", "commit", "machine", "date", "versions", "threads", "measure_s", "options")


@dataclass(frozen=True)
class Result:
    """A result: the folder of a study, or a single JSON file with its provenance.

    Args:
        where: the path below the results folder, without `provenance.json`; unique.
        title: the heading of the result.
        conclusion: what to take away, as a headline and a text; empty if the result has none.
        findings: the findings as sentences.
        tables: the tables by caption.
        rows: all measurements of a study; None for a single file.
        figures: pairs (SVG or PNG file, caption), the main one first.
        origin: the provenance.
    """

    where: str
    title: str
    conclusion: Sequence[str]
    findings: Sequence[str]
    tables: Mapping[str, Table]
    rows: pd.DataFrame | None
    figures: Sequence[tuple[Path, str]]
    origin: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.where.rpartition("/")[2]


def results(folder: Path) -> tuple[list[Result], list[Result], list[Run]]:
    """Return the studies, the single results and the runs in `folder`, at any depth.

    A single JSON file counts if it is the summary of a run, or names the command that made it.

    Raises:
        UsageError: `folder` is not a folder, or a file in it is damaged or has another content.
    """
    if not folder.is_dir():
        raise UsageError(
            f"results={folder} is no folder; give the one that holds the studies, or only runs="
        )
    studies, lone, runs, evaluations, titles = [], [], {}, {}, {}
    for path in sorted(folder.rglob("*.json")):
        below = path.relative_to(folder)
        if any(part.startswith(".") for part in below.parts) or not path.is_file():
            continue
        if path.name == "provenance.json":
            studies.append(_study(path.parent, below.parent.as_posix()))
        elif path.name not in _OF_A_STUDY:
            content = read_json(path)
            if not isinstance(content, dict):
                continue
            if is_summary(content):
                runs[path] = read_run(path, below.as_posix(), content)
            elif "command" in content:
                lone.append(_lone(path, below.as_posix(), content))
                if is_evaluation(content):
                    evaluations[path] = content
    by_run: dict[str, list[Run]] = {}
    for path, content in evaluations.items():
        if run := runs.get(evaluated_path(path)):
            where = path.relative_to(folder).as_posix()
            found = read_evaluations(run, path, where, content)
            by_run.setdefault(run.where, []).extend(found)
            if found and "title" not in content:
                whose = f"{run_title(found[0])}, trained on {run.setting}"
                titles[where] = f"Evaluation: {whose}, tested on {found[0].setting}"
    lone = [replace(result, title=titles.get(result.where, result.title)) for result in lone]
    trained = supersede(list(runs.values()), by_run)
    shared = Counter(study.title for study in studies)
    studies = [
        replace(study, title=f"{study.title} ({study.where})") if shared[study.title] > 1 else study
        for study in studies
    ]
    return sorted(studies, key=lambda s: (s.where.count("/"), s.where)), lone, trained


def published(name: str) -> Table | None:
    """Return the published figures on the subject of a study; None if none are published."""
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        return None
    frame = _csv(path)
    return make_table(list(frame.columns), frame.values.tolist())


def _study(folder: Path, where: str) -> Result:
    origin = read_json(folder / "provenance.json")
    if not isinstance(origin, dict) or not {"title", "command", "date"} <= set(origin):
        raise UsageError(damaged(folder / "provenance.json"))
    findings, tables = read_json(folder / "findings.json"), read_json(folder / "tables.json")
    subject, conclusion, captions = _page(folder / "page.json")
    if not isinstance(findings, list):
        raise UsageError(damaged(folder / "findings.json"))
    try:
        shown = {str(c): Table.from_json(t) for c, t in tables.items()}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(damaged(folder / "tables.json")) from error
    return Result(
        where=where,
        title=f"{origin['title']}: {subject}" if subject else str(origin["title"]),
        conclusion=conclusion,
        findings=[str(f) for f in findings],
        tables=shown,
        rows=_csv(folder / "rows.csv"),
        figures=_figures(folder, captions),
        origin=origin,
    )


def _page(path: Path) -> tuple[str, list[str], dict[str, str]]:
    """Read a study's subject, its conclusion, and its figures' captions by name.

    A study of an earlier release has no such file.
    """
    if not path.is_file():
        return "", [], {}
    page = read_json(path)
    try:
        conclusion, captions = list(page["conclusion"]), dict(page["figures"])
        if len(conclusion) not in (0, 2):
            raise ValueError("a conclusion is a headline and a text")
        texts = {str(name): str(caption) for name, caption in captions.items()}
        return str(page["subject"]), [str(part) for part in conclusion], texts
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(damaged(path)) from error


def _figures(folder: Path, captions: Mapping[str, str]) -> list[tuple[Path, str]]:
    """Return the figures with their captions, in order; those without a caption come last."""
    paths = {path.stem: path for path in sorted(folder.glob("*.svg"))}
    named = [name for name in captions if name in paths]
    return [(paths[n], captions.get(n, "")) for n in dict.fromkeys([*named, *paths])]


def _lone(path: Path, where: str, content: dict[str, Any]) -> Result:
    tables, rest = {}, {}
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            columns = list(dict.fromkeys(name for row in value for name in row))
            rows = [[row.get(name) for name in columns] for row in value]
            tables[key.replace("_", " ")] = make_table([c.replace("_", " ") for c in columns], rows)
        elif key not in ("title", "findings"):
            rest[key] = value
    own = {key: value for key, value in rest.items() if key not in _ORIGIN}
    origin = {key: value for key, value in rest.items() if key in _ORIGIN}
    options = origin.get("options") or {}
    origin["options"] = {**own, **(options if isinstance(options, dict) else {"options": options})}
    return Result(
        where=where,
        title=str(content.get("title") or _titled(where)),
        conclusion=[],
        findings=_texts(content.get("findings")),
        tables=tables,
        rows=None,
        figures=[(p, "") for s in (".svg", ".png") if (p := path.with_suffix(s)).is_file()][:1],
        origin=origin,
    )


def _texts(value: Any) -> list[str]:
    """Return a list's items as texts; a single value is a list of one, and None of none."""
    several = value if isinstance(value, list) else [value] * (value is not None)
    return [str(one) for one in several]


def _titled(where: str) -> str:
    """Return a title for a path: "Exercises: conditioning" for `exercises/conditioning.json`."""
    words = where.removesuffix(".json").replace("_", " ").replace("/", ": ")
    return words[:1].upper() + words[1:]


def _csv(path: Path) -> pd.DataFrame:
    """Read a CSV file; "None" and "NA" are texts in it, and only an empty cell is missing."""
    try:
        # Without a header, since pandas would take the first cells of longer rows for their names.
        pd.read_csv(path, header=None, dtype=str, encoding="utf-8-sig")
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(damaged(path)) from error
    return frame.astype(object).where(frame.notna(), None)
