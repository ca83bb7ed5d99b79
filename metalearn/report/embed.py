"""Figures and measurements as they stand in the one file of the page."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from metalearn.errors import UsageError
from metalearn.studies.frame.table import make_table
from metalearn.system.files import damaged


@dataclass(frozen=True)
class Image:
    """A figure's file. A browser runs no scripts in an image, and loads nothing that it names.

    Args:
        content: the file.
        kind: "svg+xml" or "png".
    """

    content: bytes
    kind: str

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"

    @property
    def packed(self) -> str:
        """The file compressed by gzip, in base64: what page.js unpacks once it is looked at."""
        return _packed(self.content)


def read_image(path: Path) -> Image:
    """Read an SVG or PNG file.

    Raises:
        UsageError: the file is absent, or of another kind than its name says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".png":
            sound = content.startswith(b"\x89PNG\r\n")
        else:
            sound = ElementTree.fromstring(content).tag.rpartition("}")[2] == "svg"
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise UsageError(damaged(path)) from error
    if not sound:
        raise UsageError(damaged(path))
    return Image(content, "png" if path.suffix == ".png" else "svg+xml")


@dataclass(frozen=True)
class Rows:
    """All measurements of a study, compressed.

    Args:
        count: the number of rows.
        packed: {"columns", "numeric", "rows"} in JSON, compressed by gzip, in base64.
    """

    count: int
    packed: str


def pack_rows(frame: pd.DataFrame) -> Rows:
    """Compress the measurements; numbers have four digits, as in any table of the page."""
    table = make_table(list(frame.columns), frame.values.tolist())
    rows = [[cell.text for cell in row] for row in table.rows]
    content = {"columns": list(table.columns), "numeric": table.numeric, "rows": rows}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Rows(len(rows), _packed(text.encode(errors="replace")))


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
