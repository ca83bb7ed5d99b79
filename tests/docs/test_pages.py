"""The pages: their place in the site, and the tables that they quote from results/."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"
PAGES = sorted((ROOT / "docs").glob("*.md"))
TABLES = runpy.run_path(str(ROOT / "scripts" / "page_tables.py"))
FIELDS = """study: memory
table: Conv4-64, 20-way 5-shot: seconds of one meta-gradient by inner steps
columns: method | 16 = 16 steps
rows: first-order
"""


def test_the_site_has_every_page_once():
    sections = runpy.run_path(str(SITE / "pages.py"))["SECTIONS"]
    shown = [page for pages in sections.values() for page in pages]
    assert len(set(shown)) == len(shown)
    own = {f"docs/{page.stem}" for page in PAGES if page.stem != "tutorials"}
    assert own == {page for page in shown if page.count("/") == 1 and page.startswith("docs/")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_those_of_the_results(page):
    text = page.read_text()
    assert TABLES["made"](text, ROOT / "results") == text, "run scripts/page_tables.py"
    assert text.count("scripts/page_tables.py\n") == len(TABLES["BLOCK"].findall(text))


def test_a_table_has_the_columns_and_rows_that_are_asked_for():
    lines = TABLES["table"](FIELDS, ROOT / "results").splitlines()
    assert lines[0] == "| method | 16 steps |" and len(lines) == 3
    shown = re.search(
        r"^\| first-order +\|.*", (ROOT / "results/memory/table.md").read_text(), re.M
    )
    assert shown and lines[2].startswith("| first-order | ")
    assert (
        TABLES["table"](FIELDS.replace("rows: first-order\n", ""), ROOT / "results").count("\n") > 9
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("columns: method | 16 = 16 steps", "", "a table without columns"),
        ("by inner steps", "by steps", "is not a table of results/memory"),
        ("16 = 16 steps", "17", "'17' is not a column"),
        ("first-order", "second-order", "'second-order' is not a row: expected one of 'one inner"),
    ],
)
def test_a_table_that_the_results_lack_is_refused(old, new, said):
    with pytest.raises(SystemExit, match=said):
        TABLES["table"](FIELDS.replace(old, new), ROOT / "results")


def test_markup_and_links_of_the_pages_are_valid_and_a_bad_link_is_noticed(tmp_path):
    for name, left_out in (("docs", "gallery"), ("results", "*.pt")):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(left_out))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
        elif not (tmp_path / path.name).exists():
            (tmp_path / path.name).symlink_to(path)
    with (tmp_path / "docs/faq.md").open("a") as page:
        page.write("\n[a](bilevel.md#no-heading) [b](no-page.md)\n")
    options = ["-c", str(tmp_path / "docs/site"), "-D", "plot_gallery=0", "-t", "pages", "-W", "-q"]
    words = [sys.executable, "-m", "sphinx", "-b", "dummy", "--keep-going", *options]
    folders = [str(tmp_path), str(tmp_path / ".out")]
    done = subprocess.run([*words, *folders], capture_output=True, text=True, check=False)
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 2, done.stderr
    assert "no-heading" in done.stderr and "no-page" in done.stderr


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path):
    options = ["-c", str(SITE), "-d", str(tmp_path / "trees"), "-D", "plot_gallery=0", "-W", "-q"]
    words = [sys.executable, "-m", "sphinx", *options, str(ROOT), str(tmp_path / "site")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert (tmp_path / "site" / "index.html").exists() and len(pages) > 50
    fetched = r"<(?:script|img|iframe)[^>]*src=\"https?:|<link[^>]*stylesheet[^>]*href=\"https?:"
    for page in pages:
        assert not re.search(fetched, page.read_text()), page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", sheet.read_text()), sheet
