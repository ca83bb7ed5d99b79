"""Tables and figures for a paper, and the inline Markdown that they are made from."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from metalearn.studies.frame import markup
from metalearn.studies.frame.paper import paper_files, to_latex
from metalearn.studies.frame.plot import canvas
from metalearn.studies.frame.table import Table, make_table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "plain", "html", "latex"),
    [
        ("*12 MB* & `a_b`", "12 MB & a_b", "<em>12 MB</em> &amp; <code>a_b</code>",
         r"\emph{12 MB} \& \texttt{a\_b}"),
        ("[rows.csv](rows.csv), part", "rows.csv, part", "rows.csv, part", "rows.csv, part"),
        ("[x](javascript:alert(1))", "x)", "x)", "x)"),
        ("vmap * and 2 * 3 * 4, a*b*c", *["vmap * and 2 * 3 * 4, a*b*c"] * 3),
        ("<b> 98 ± 1 %", "<b> 98 ± 1 %", "&lt;b&gt; 98 ± 1 %",
         r"\textless{}b\textgreater{} 98 $\pm$ 1 \%"),
        ("*<i>*", "<i>", "<em>&lt;i&gt;</em>", r"\emph{\textless{}i\textgreater{}}"),
    ],
)  # fmt: skip
def test_inline_marks_in_each_form(text, plain, html, latex):
    assert markup.plain(text) == plain
    assert markup.html(text) == html
    assert markup.latex(text) == latex


def test_a_table_and_a_figure_have_their_files():
    table = make_table({"m|n": None, "size, %": ".1f"}, [["*a, b*", 1.25], ["c_d", None]])
    figure, _ = canvas()
    files = paper_files({"All *of*\nit": table}, {"growth": figure})
    assert list(files) == ["table_1.md", "table_1.csv", "table_1.tex", "growth.pdf"]
    assert list(csv.reader(io.StringIO(str(files["table_1.csv"])))) == [
        ["m|n", "size, %"],
        ["a, b", "1.2"],
        ["c_d", ""],
    ]
    assert str(files["table_1.md"]).splitlines()[0] == "All *of* it"
    assert bytes(files["growth.pdf"]).startswith(b"%PDF-")


def test_latex_has_a_line_for_each_row_and_escapes_what_latex_would_read():
    table = make_table(["a&b", "n"], [["50 %", 1], ["#2 {x} \\y", 2]])
    lines = to_latex("Cost in $ of λ", table).splitlines()
    assert lines[2] == r"\caption{Cost in \$ of $\lambda$}"
    assert lines[3] == r"\begin{tabular}{lr}"
    assert lines[5] == r"a\&b & n \\"
    assert lines[7:9] == [r"50 \% & 1 \\", r"\#2 \{x\} \textbackslash{}y & 2 \\"]


def test_latex_knows_every_character_of_the_published_tables():
    """LaTeX alone sets ASCII and the accented letters of Latin-1."""
    for path in (ROOT / "results").glob("*/tables.json"):
        for caption, content in json.loads(path.read_text()).items():
            text = to_latex(caption, Table.from_json(content))
            assert not re.findall(r"[^\x00-\x7fÀ-ÿ]", text), path
