"""The tables and figures of a study as files for a paper."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from metalearn.studies.frame.markup import latex, plain
from metalearn.studies.frame.plot import pdf
from metalearn.studies.frame.table import Table


def paper_files(
    tables: Mapping[str, Table], figures: Mapping[str, Figure]
) -> dict[str, str | bytes]:
    """Return the content of each file by its name.

    A table has table_N.md, .csv and .tex, numbered from 1 in their order. A figure has NAME.pdf.
    Its NAME.svg is the study's own file.
    """
    files: dict[str, str | bytes] = {}
    for i, (caption, table) in enumerate(tables.items(), start=1):
        files[f"table_{i}.md"] = f"{' '.join(caption.split())}\n\n{table.to_markdown()}\n"
        texts = table.texts().rename(columns=plain).map(plain)
        files[f"table_{i}.csv"] = texts.to_csv(index=False, lineterminator="\n")
        files[f"table_{i}.tex"] = to_latex(caption, table)
    return files | {f"{name}.pdf": pdf(figure) for name, figure in figures.items()}


def to_latex(caption: str, table: Table) -> str:
    """Return a table environment with its caption; it needs the package booktabs alone."""
    body = [[latex(cell.text) for cell in row] for row in table.rows]
    lines = [" & ".join(row) + r" \\" for row in body]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{latex(' '.join(caption.split()))}}}",
            f"\\begin{{tabular}}{{{''.join('r' if n else 'l' for n in table.numeric)}}}",
            r"\toprule",
            " & ".join(map(latex, table.columns)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
