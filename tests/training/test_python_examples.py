"""The examples of docs/python.md; tests/test_readme.py runs them, and each asserts its loss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_there_is_an_example_of_each_kind():
    for kind in ("resnet18", "LSTM", "TransformerEncoderLayer", "LoRA"):
        assert any(kind in block for block in BLOCKS), kind


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_is_short_and_asserts_that_its_loss_falls(block):
    assert len(block.splitlines()) <= (60 if "LoRA" in block else 25)
    assert re.search(r"^assert losses\[-.* < losses\[:", block, re.MULTILINE)
