"""scripts/hypergradients_beside_libraries.py: its reference, its table in docs/ and its message."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from metalearn.metagrad import FirstOrder

ROOT = Path(__file__).parents[2]
NAME = "hypergradients_beside_libraries"
SPEC = importlib.util.spec_from_file_location(NAME, ROOT / "scripts" / f"{NAME}.py")
script = sys.modules[NAME] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_the_exact_hypergradient_is_that_of_finite_differences():
    def value(logs: torch.Tensor) -> torch.Tensor:
        inner = script.NewtonCG(30, cg_iters=script.FEATURES, tol=1e-12)
        meta, one = {"l": logs}, range(1)
        params = FirstOrder(inner).adapt(script.WHOLE, meta, one).params
        return script.WHOLE.outer_objective(params, meta, one)[0].sum()

    found = script.exact()
    for i in (0, 7, 19):
        move = 1e-4 * (torch.arange(script.FEATURES) == i)
        logs = script.META["l"]
        # 2e-9: the step's square, and the inner gradient of 1e-12 over the step.
        slope = (value(logs + move) - value(logs - move)) / 2e-4
        assert found[i].item() == pytest.approx(slope.item(), abs=2e-9)


@pytest.mark.parametrize("library", script.OPTIONS)
def test_the_table_of_the_page_is_what_the_script_prints(library, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.setattr(script, "STEPS", script.STEPS[:1])  # 2,000 steps take a minute
    page = (ROOT / "docs" / "other_libraries.md").read_text()
    for row in script.rows(library):
        cells = row.strip("| ").split(" | ")
        (shown,) = [
            line for line in page.splitlines() if line.startswith(row[: row.index(cells[2])])
        ]
        error, cosine = map(float, shown.strip("| ").split(" | ")[2:4])
        # The page rounds to two digits and to four decimals.
        assert float(cells[2]) == pytest.approx(error, rel=0.06)
        assert float(cells[3]) == pytest.approx(cosine, abs=2e-4)


def test_a_library_that_is_not_installed_is_skipped_with_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [NAME])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(script, "OPTIONS", {"betty": {}})
    script.main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "betty is not installed: run .venv/bin/pip install --no-deps betty-ml==0.1.1."
    assert rest[-1].startswith("|---")
