"""The glossary of metrics has every key that runs log, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bilevel_runs
import pytest
from tiny_run import rows, run

from metalearn.bilevel import BOME, F2SA, SOBA, Certify
from metalearn.metagrad.smoothness import Smoothness

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
METHODS = {
    "imaml": ["metagrad=imaml"],
    "learned prox": ["metagrad=imaml_learned_prox"],
    "ridge": ["problem=ridge", "metagrad=implicit_closed_form"],
}


def keys_of(part: str) -> set[str]:
    return {
        key
        for row in re.findall(r"^\| (`.*?) \| ", part, re.MULTILINE)
        for key in re.findall(r"`(\w+)`", row)
    }


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"metrics.jsonl": set(), "summary.json": set()}
    for name, words in METHODS.items():
        folder = tmp_path_factory.mktemp("runs") / name
        assert run(folder, *words, "steps=3", "wandb=disabled") == 0
        found["metrics.jsonl"] |= {key for row in rows(folder) for key in row}
        found["summary.json"] |= set(json.loads((folder / "summary.json").read_text()))
    return found


@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json"])
def test_the_glossary_has_each_key_and_no_other(logged, file):
    part = PAGE.partition(f"## {file}\n")[2].partition("\n## ")[0]
    listed = keys_of(part)
    # "with `_interval` too" stands for the intervals of the problem's own metrics.
    own = {f"{key}_interval" for key in listed if key.endswith(("_prox", "_penalty", "_scale"))}
    listed |= {key for key in own if not key.startswith("query")}
    assert logged[file] - listed == set()
    assert listed - logged[file] == set()


def test_the_glossary_has_each_key_of_a_bilevel_run_and_no_other(tmp_path):
    constants = Smoothness(strong_convexity=1.0, mixed_norm=1.0, outer_lipschitz=1.0)
    logged: set[str] = set()
    for method in (SOBA(0.05), F2SA(2), BOME(2, 0.01)):
        for batches in (3, "all"):
            folder = tmp_path / f"{type(method).__name__}-{batches}"
            certify = {"certify": Certify(batches, constants), "certify_every": 1}
            bilevel_runs.run(folder, method, steps=2, **certify)
            logged |= {key for row in rows(folder) for key in row}
    part = PAGE.partition("## A run of bilevel.train\n")[2]
    for key in json.loads((folder / "summary.json").read_text()):
        assert f"`{key}`" in part.partition("`summary.json` has")[2], key
    shown = keys_of(part)
    shown |= {key.replace("estimated_", "measured_") for key in shown}
    shown |= {"measured_relative_residual"}
    squares = {key for key in shown if key.endswith("_square")}
    shown |= {f"{key}_error" for key in squares}
    shown |= {key.replace("_square", "_noise") for key in squares}
    assert logged - shown == set()
    assert keys_of(part) - logged == set()
