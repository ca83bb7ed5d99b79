"""scripts/hypergradients_beside_libraries.py: its reference, its table in docs/ and its message."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from metalearn.metagrad import FirstOrder

ROOT = Path(__file__).parents[2]
NAME = "hypergradients_beside_libraries"
SPEC = importlib.util.spec_from_file_location(NAME, ROOT / "scripts" / f"{NAME}.py")
RECORDED = json.loads((ROOT / "results/libraries/hypergradients.json").read_text())["rows"]
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
def test_the_figures_are_those_of_the_results(library, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.setattr(script, "STEPS", script.STEPS[:1])  # 2,000 steps take a minute
    recorded = {(row["library"], row["option"]): row for row in RECORDED}
    for row in script.rows(library):
        own = recorded[row["library"], row["option"]]
        # Float64 on another processor may round in another order.
        assert row["error, 100 steps"] == pytest.approx(own["error, 100 steps"], rel=1e-4)
        assert row["cosine, 100 steps"] == pytest.approx(own["cosine, 100 steps"], abs=1e-6)


def test_the_table_of_the_page_is_that_of_the_results():
    page = (ROOT / "docs" / "other_libraries.md").read_text()
    table = page.partition("| library | option |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == sum(map(len, script.OPTIONS.values()))
    assert table == [script.line(row) for row in RECORDED]


def test_a_library_that_is_not_installed_is_skipped_with_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [NAME])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(script, "OPTIONS", {"betty": {}})
    script.main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "betty is not installed: run .venv/bin/pip install --no-deps betty-ml==0.1.1."
    assert rest[-1].startswith("|---")
