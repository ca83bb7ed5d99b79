"""What the README and the pages in docs/ show in Python runs as it stands there, and the README's
front table is what results/ holds."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest

from metalearn.studies.cg.rows import certified_rows

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.stem}-{i}": block
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_python_block_runs_alone_as_pasted(block, tmp_path, monkeypatch):
    for peer in re.findall(r"^import (torchopt|jax)$|^from (betty)\b", block, re.MULTILINE):
        pytest.importorskip("".join(peer))  # not among what the tests install
    monkeypatch.chdir(tmp_path)  # some blocks write files
    exec(compile(block, "<README>", "exec"), {"__name__": "__main__"})


def test_the_certificates_failures_stand_beside_its_successes():
    rows = certified_rows(pd.read_csv(ROOT / "results" / "cg" / "rows.csv"))
    text = " ".join((ROOT / "docs" / "certificates.md").read_text().split())
    for place in ("adapted", "minimum"):
        holds = rows[rows.point == place].holds
        assert f"{holds.sum()} of {len(holds)}" in text


def test_there_are_blocks():
    assert {"README", "hpo", "library"} <= {name.partition("-")[0] for name in BLOCKS}


def test_an_example_on_a_page_is_short():
    for name, block in BLOCKS.items():
        assert len(block.splitlines()) <= (60 if "LoRA" in block else 40), name


@pytest.fixture(scope="module")
def front_table():
    return runpy.run_path(str(ROOT / "scripts" / "front_table.py"))


def test_the_tables_of_accuracies_are_of_the_results(front_table):
    for name, table in front_table["pages"](ROOT / "results").items():
        shown = front_table["BLOCK"].search((ROOT / name).read_text())
        assert shown and shown.group() == table, f"{name}: run scripts/front_table.py"
    run = json.loads(
        (ROOT / "results/omniglot_half_hour/omniglot_maml_half_hour-5-way.json").read_text()
    )
    rows = {row["mode"]: row for row in run["rows"]}
    mean, half = (100 * rows["transductive"][key] for key in ("accuracy", "accuracy_interval"))
    assert f"| {mean:.2f} ± {half:.2f}" in (ROOT / "README.md").read_text()


def test_the_tables_refuse_a_training_that_is_not_the_experiments(front_table, tmp_path):
    shutil.copytree(ROOT / "results" / "omniglot_table", tmp_path / "omniglot_table")
    path = tmp_path / "omniglot_table" / "omniglot_maml_table.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "command": f"{run['command']} metagrad=imaml"}))
    with pytest.raises(SystemExit, match=r"omniglot_maml_table, changed: .*metagrad"):
        front_table["pages"](tmp_path)


def test_seeds_share_a_cell_of_the_tables(front_table, tmp_path):
    folder = tmp_path / "omniglot_table"
    shutil.copytree(
        ROOT / "results" / "omniglot_table", folder, ignore=shutil.ignore_patterns("*-seed*")
    )
    names = "omniglot_ridge_table", "omniglot_imaml_table"
    for name, seed in itertools.product(names, (1, 2)):
        run = json.loads((folder / f"{name}.json").read_text())
        first = f" init_from={names[0]}-seed{seed}" if name == names[1] else ""
        run |= {"command": f"metalearn train experiment={name}{first}", "seed": seed}
        (folder / f"{name}-seed{seed}.json").write_text(json.dumps(run))
        judged = json.loads((folder / f"{name}-5-way.json").read_text())
        for row in judged["rows"]:
            row["accuracy"] -= seed / 100
        (folder / f"{name}-seed{seed}-5-way.json").write_text(json.dumps(judged))
    lines = front_table["pages"](tmp_path)["README.md"].splitlines()
    imaml, ridge = (
        next(line.split(" | ")[2] for line in lines if f"{method} | here" in line)
        for method in ("from the weights of omniglot_ridge_table", "ridge head (inductive)")
    )
    mean = {}
    for name in names:
        judged = json.loads((folder / f"{name}-seed1-5-way.json").read_text())
        for row in judged["rows"]:
            half = 100 * row["accuracy_interval"]
            mean[name, row["mode"]] = f"{100 * row['accuracy']:.2f}", f"{half:.2f}"
    centre, half = mean[names[1], "transductive"]
    assert imaml == f"{centre} ± {half} ({mean[names[1], 'inductive'][0]}), seeds 1.00"
    assert ridge == "{} ± {}, seeds 1.00".format(*mean[names[0], "inductive"])
    path = folder / f"{names[1]}-seed1.json"
    path.write_text(path.read_text().replace(f"{names[0]}-seed1", f"{names[0]}-seed2"))
    with pytest.raises(SystemExit, match="omniglot_imaml_table, changed: init_from"):
        front_table["pages"](tmp_path)


def test_the_tables_take_the_experiments_own_trainings_once(front_table, tmp_path):
    for name in ("fewshot", "omniglot_long"):
        shutil.copytree(ROOT / "results" / name, tmp_path / name)
    once = front_table["pages"](tmp_path)
    mine = tmp_path / "fewshot_mine"
    shutil.copytree(tmp_path / "fewshot", mine)
    with pytest.raises(SystemExit, match="5w1s more than once"):
        front_table["pages"](tmp_path)
    origin = json.loads((mine / "provenance.json").read_text())
    origin["options"]["overrides"] = ["model.channels=8"]
    (mine / "provenance.json").write_text(json.dumps(origin))
    assert front_table["pages"](tmp_path) == once
    (tmp_path / "omniglot_long" / "another_long.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"another_long.json: expected omniglot_SETTING"):
        front_table["pages"](tmp_path)


def test_every_link_of_the_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", PAGES[0].read_text()))
    assert {page.name for page in PAGES[1:]} <= linked
