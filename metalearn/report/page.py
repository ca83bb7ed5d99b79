"""The report page: the collected results in one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import metalearn
from metalearn.errors import UsageError
from metalearn.report import collect
from metalearn.report.runs import Run, find_runs
from metalearn.studies.frame.table import Table
from metalearn.system.files import damaged, replace_bytes

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        id: the id of the heading, with which the ids of the figures begin.
        kind: "study", "runs" or "result".
        title: the heading.
        findings: the findings as sentences.
        figures: the figures as data URIs, by caption.
        tables: the tables by caption.
        published: the published figures on the subject.
        rows: all measurements of a study.
        command: the command that made the result.
        note: a remark on the result, or "".
        origin: pairs (key, value) of the provenance, in order, without the command.
    """

    id: str
    kind: str
    title: str
    findings: Sequence[str]
    figures: Mapping[str, str]
    tables: Mapping[str, Table]
    published: Table | None
    rows: Table | None
    command: str
    note: str
    origin: Sequence[tuple[str, str]]


def make_page(results: Path | None, runs: Sequence[Path], out: Path) -> dict[tuple[str, str], int]:
    """Write the page to `out`.

    Args:
        results: the folder of the studies and of the other results; None: only `runs` are shown.
        runs: folders of further runs.
        out: the HTML file.

    Returns:
        The numbers of studies, runs and other results, by the singular and plural of their nouns.

    Raises:
        UsageError: `results`, a folder of `runs` or a file in them is not valid, or `out` cannot be
            written. No file is written in these cases.
    """
    studies, lone, trained = collect.results(results) if results else ([], [], [])
    trained += find_runs(runs)
    sections = [_of_result(study, "study") for study in studies]
    if trained:
        sections.append(_of_runs(trained))
    sections += [_of_result(result, "result") for result in lone]
    _write(out, render(sections))
    return {
        ("study", "studies"): len(studies),
        ("run", "runs"): sum(not run.evaluated for run in trained),
        ("other result", "other results"): len(lone),
    }


def render(sections: Sequence[Section]) -> str:
    """Return the HTML of the page; equal sections give an equal page."""
    from metalearn.studies.frame.published.accuracy import MARKS

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        sections=sections,
        marks=MARKS,
        version=metalearn.__version__,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _of_result(result: collect.Result, kind: str) -> Section:
    options = result.origin.get("options")
    preset = options.get("preset") if isinstance(options, Mapping) else None
    return Section(
        id=_id(result.where),
        kind=kind,
        title=result.title,
        findings=result.findings,
        figures={path.stem.replace("_", " "): _image(path) for path in result.figures},
        tables=result.tables,
        published=collect.published(result.name) if kind == "study" else None,
        rows=result.rows,
        command=str(result.origin["command"]),
        note="a quick version: fewer measurements" if preset == "quick" else "",
        origin=_origin(result.origin),
    )


def _of_runs(runs: Sequence[Run]) -> Section:
    from metalearn.report import accuracy
    from metalearn.studies.frame.plot import svg

    drawn = accuracy.figures(runs).items()
    return Section(
        id="runs",
        kind="runs",
        title="Few-shot accuracy: our runs beside published figures",
        findings=accuracy.findings(runs),
        figures={c: _data_uri(svg(figure).encode(), "svg+xml") for c, figure in drawn},
        tables=accuracy.tables(runs),
        published=None,
        rows=None,
        command="",
        note="",
        origin=[],
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


def _image(path: Path) -> str:
    """Return an SVG or PNG file as a data URI.

    A browser shows an image without running scripts in it and without loading what it refers to.

    Raises:
        UsageError: the file is absent, or of another kind than its name says.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".png":
            sound = data.startswith(b"\x89PNG\r\n")
        else:
            sound = ElementTree.fromstring(data).tag.rpartition("}")[2] == "svg"
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise UsageError(damaged(path)) from error
    if not sound:
        raise UsageError(damaged(path))
    return _data_uri(data, "png" if path.suffix == ".png" else "svg+xml")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _write(out: Path, page: str) -> None:
    if out.is_dir():
        raise UsageError(
            f"out={out} is a folder; give the file to write, such as {out}/report.html"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(out, page.encode(errors="replace"))  # a lone surrogate has no UTF-8
    except OSError as error:
        raise UsageError(
            f"out={out} cannot be written ({error.strerror}); choose another file"
        ) from error
