"""What the README shows in Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from metalearn.tasks import TaskBatch

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_python_block_runs(block):
    x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).repeat(2, 1)
    exec(block, {"task_batch": TaskBatch(x, y, x, y)})  # the reader's own tasks


def test_there_are_blocks():
    assert len(BLOCKS) >= 3
