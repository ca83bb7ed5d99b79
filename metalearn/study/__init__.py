"""Studies are data: what is measured becomes rows, and rows a table, figures and findings.

`metalearn.study.run` runs one; it is not imported here, for it takes PyTorch and wandb with it.
"""

from metalearn.study.protocol import Cell, Row, Study

__all__ = ["Cell", "Row", "Study"]
