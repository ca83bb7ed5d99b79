"""Studies are data: what is measured becomes rows, and rows a table, figures and findings.

`run.py` here runs a study; it is not imported, for it takes PyTorch and wandb with it.
"""

from metalearn.studies.frame.protocol import Cell, Row, Study

__all__ = ["Cell", "Row", "Study"]
