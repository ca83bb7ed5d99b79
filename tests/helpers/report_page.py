"""The report page, made from a folder and read back."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from metalearn.commands.main import main


class Page(HTMLParser):
    """Its elements, its texts, and its tables as rows of texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.in_cell = False
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data.strip()

    def table(self, *columns: str) -> list[list[str]]:
        return next(t[1:] for t in self.tables if t[0] == list(columns))


def page(tmp_path: Path, results: Path, *words: str) -> Page:
    out = tmp_path / "out" / "report.html"
    assert main(["report", f"results={results}", f"out={out}", *words]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    return Page(out)
