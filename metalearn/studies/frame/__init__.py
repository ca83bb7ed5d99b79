"""The common code of all studies: measurements become rows; tables, figures and findings use rows.

`run.py` runs a study. It is not imported here, since it imports PyTorch and wandb.
"""

from metalearn.studies.frame.protocol import Cell, Row, Study

__all__ = ["Cell", "Row", "Study"]
