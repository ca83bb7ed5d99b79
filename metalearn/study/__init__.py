"""Studies are data: what is measured becomes rows, and rows a table, figures and findings."""

from metalearn.study.protocol import Cell, Row, Study
from metalearn.study.run import run_study

__all__ = ["Cell", "Row", "Study", "run_study"]
