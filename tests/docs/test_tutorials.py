"""The tutorials run, from an empty folder, and hold what they assert."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_the_page_of_tutorials_lists_each_in_order():
    page = (TUTORIALS[0].parents[1] / "tutorials.md").read_text()
    assert re.findall(r"\]\(tutorials/(\w+)\.py\)", page) == [path.stem for path in TUTORIALS]
