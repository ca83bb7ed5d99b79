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

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import metalearn
from metalearn.errors import UsageError
from metalearn.report import collect
from metalearn.report.svg import Figure, inline
from metalearn.studies.frame.table import Table

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        id: the id of the heading, with which the ids of the figures begin.
        kind: "study", "runs" or "result".
        title: the heading.
        findings: the findings as sentences.
        figures: SVG figures by caption.
        images: figures that are not SVG, as data URIs by caption.
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
    figures: Mapping[str, Figure]
    images: Mapping[str, str]
    tables: Mapping[str, Table]
    published: Table | None
    rows: Table | None
    command: str
    note: str
    origin: Sequence[tuple[str, str]]


def make_page(results: Path, runs: Sequence[Path], out: Path) -> dict[tuple[str, str], int]:
    """Write the page to `out`.

    Args:
        results: the folder of the studies and of the other results.
        runs: folders of further runs.
        out: the HTML file.

    Returns:
        The numbers of studies, runs and other results, by the singular and plural of their nouns.

    Raises:
        UsageError: `results`, a folder of `runs` or a file in them is not valid, or `out` cannot be
            written. No file is written in these cases.
    """
    studies, lone, trained = collect.results(results)
    trained += collect.runs(runs)
    sections = [_of_result(study, "study") for study in studies]
    if trained:
        sections.append(_of_runs(trained))
    sections += [_of_result(result, "result") for result in lone]
    _write(out, render(sections))
    return {
        ("study", "studies"): len(studies),
        ("run", "runs"): len(trained),
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
    id = _id(result.where)
    figures, images = {}, {}
    for path in result.figures:
        caption = path.stem.replace("_", " ")
        if path.suffix == ".svg":
            figures[caption] = inline(_text(path), f"{id}-{_id(path.stem)}", str(path))
        else:
            data = base64.b64encode(path.read_bytes()).decode()
            images[caption] = f"data:image/png;base64,{data}"
    preset = (result.origin.get("options") or {}).get("preset")
    return Section(
        id=id,
        kind=kind,
        title=result.title,
        findings=result.findings,
        figures=figures,
        images=images,
        tables=result.tables,
        published=collect.published(result.name) if kind == "study" else None,
        rows=result.rows,
        command=str(result.origin["command"]),
        note="a quick version: fewer measurements" if preset == "quick" else "",
        origin=_origin(result.origin),
    )


def _of_runs(runs: Sequence[collect.Run]) -> Section:
    from metalearn.report import accuracy
    from metalearn.studies.frame.plot import svg

    drawn = enumerate(accuracy.figures(runs).items())
    return Section(
        id="runs",
        kind="runs",
        title="Few-shot accuracy: our runs beside published figures",
        findings=accuracy.findings(runs),
        figures={c: inline(svg(figure), f"runs-{i}", c) for i, (c, figure) in drawn},
        images={},
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
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _id(where: str) -> str:
    """Return an id of letters, digits and dashes; different paths have different ids."""
    return "s-" + re.sub(r"[^a-zA-Z0-9]", lambda m: f"-{ord(m[0]):x}-", where).replace("-2f-", "--")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read; run its command again") from error


def _write(out: Path, page: str) -> None:
    from metalearn.system.files import replace_text

    if out.is_dir():
        raise UsageError(
            f"out={out} is a folder; give the file to write, such as {out}/report.html"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, page)
    except OSError as error:
        raise UsageError(
            f"out={out} cannot be written ({error.strerror}); choose another file"
        ) from error
