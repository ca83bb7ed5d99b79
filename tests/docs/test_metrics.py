"""The glossary of metrics has every key that runs log, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_run import rows, run

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
