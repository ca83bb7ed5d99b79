"""The page as a text: what stands in it, and what must not."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_up import SUMMARY
from report_page import page

from metalearn.commands.main import main

ROOT = Path(__file__).parents[2]


def test_it_begins_with_the_conclusions_then_figures_tables_and_details(tmp_path, results, capsys):
    made = page(tmp_path, results)
    parts = (
        "3 conclusions",
        "Numbers grow with n.",
        "There are 12 of them",
        "Omniglot 5-way 1-shot: ",
    )
    parts += (
        "Contents",
        "The cube of n against n.",
        "Sizes",
        "Details: 1 finding",
        "It grows 12 times.",
    )
    at = [made.text.index(part) for part in parts]
    assert at == sorted(at)
    assert "It grows again." in made.text
    assert "after 500 meta-steps of 32 tasks: iMAML, gradient descent 56.80" in made.text
    linked = {a["href"] for tag, a in made.elements if tag == "a"}  # beside the conclusions
    images = {a["id"] for tag, a in made.elements if tag == "img" and "id" in a}
    growth = {f"s-{where}-1" for where in ("memory", "quick--memory")}
    assert growth <= images and {f"#{id}" for id in growth} <= linked
    assert "<em>each</em>" in made.source and "*each*" not in made.source
    assert "2 studies, 1 run, 1 other result" in capsys.readouterr().out


def test_studies_stand_in_the_readers_order_and_have_no_file_names_for_titles(tmp_path, results):
    for name in ("fewshot_20w1s", "deq", "mine", "gradient"):
        folder = shutil.copytree(results / "memory", results / name)
        origin = json.loads((folder / "provenance.json").read_text())
        page_json = json.loads((folder / "page.json").read_text())
        (folder / "page.json").write_text(json.dumps({**page_json, "subject": f"on {name[:3]}"}))
        (folder / "provenance.json").write_text(json.dumps({**origin, "title": "A study"}))
    made = page(tmp_path, results)
    names = ("memory", "gradient", "deq", "mine", "fewshot_20w1s")
    ids = [a["id"] for tag, a in made.elements if tag in ("h2", "summary") and "id" in a]
    places = [next(i for i in ids if i.startswith(f"s-{n.partition('_')[0]}")) for n in names]
    assert sorted(places, key=ids.index) == places
    assert "A study: on few" in made.text and "fewshot_20w1s" not in made.text
    assert "growth" not in {a.get("alt") for _, a in made.elements}


def test_its_tables_are_complete(tmp_path, results):
    made = page(tmp_path, results)
    rows = pd.read_csv(results / "memory" / "rows.csv", keep_default_na=False)
    expected = [[str(r.n), r.method, f"{r.cube:.4g}"] for r in rows.itertuples()]
    packed = next(
        a["data-packed"] for tag, a in made.elements if tag == "div" and "data-packed" in a
    )
    measured = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert measured["columns"] == ["n", "method", "cube"] and measured["rows"] == expected
    assert measured["numeric"] == [True, False, True]
    assert made.table("n", "method", "cube") == expected
    assert "None" in {row[1] for row in expected}  # a word of the study's, not a missing value
    sizes = made.table("n", "method", "cube", "size", "steps", "bound")
    assert [row[-1] for row in sizes] == ["inf", "1e-08", "2.5", ""]
    assert made.table("radius", "solver") == [["0.5", "GMRES"], ["0.9", "CG"]]
    assert any(row[:2] == ["iMAML, Hessian-free", "99.50 ± 0.26"] for t in made.tables for row in t)
    assert any("a course report" in cell for t in made.tables for row in t for cell in row)


def test_provenance_stands_with_each_result(tmp_path, results):
    made = page(tmp_path, results)
    origin = json.loads((results / "memory" / "provenance.json").read_text())
    for part in (origin["command"], origin["date"], origin["machine"], "seeds=[0, 1]"):
        assert part in made.text
    assert "circle.py" in made.text and "meta_steps=7" in made.text
    assert "a.b" not in made.text  # _target_ is the code's affair


def test_it_asks_nobody_for_anything(tmp_path, results):
    made = page(tmp_path, results)
    for tag, attributes in made.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "audio", "video")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                assert re.match(r"#|data:", str(value)), (tag, name, value)
            assert not re.search(r"https?:|url\((?!#)", str(value)), (tag, name, value)
    for block in re.findall(r"<(?:style|script)>(.*?)</", made.source, re.DOTALL):
        assert not re.search(r"https?:|//|@import|url\(", block)


def test_no_two_ids_are_equal(tmp_path, results):
    ids = [a["id"] for _, a in page(tmp_path, results).elements if "id" in a]
    assert len(ids) == len(set(ids)) >= 10


def test_hostile_texts_are_only_shown(tmp_path, results):
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'
    folder = results / "memory"
    origin = json.loads((folder / "provenance.json").read_text())
    origin |= {"title": hostile, "command": hostile, "machine": hostile}
    origin["options"] = {hostile: hostile}
    (folder / "provenance.json").write_text(json.dumps(origin))
    (folder / "findings.json").write_text(json.dumps([hostile]))
    table = {"columns": [hostile], "rows": [[hostile]]}
    (folder / "tables.json").write_text(json.dumps({hostile: table}))
    (folder / "growth.svg").rename(folder / "a'><b id=x onload=y>.svg")
    summary = {**SUMMARY, "name": hostile, "command": hostile}
    (results / "run.json").write_text(json.dumps(summary))
    made = page(tmp_path, results)
    tags = [tag for tag, _ in made.elements]
    assert tags.count("script") == 1
    assert all(re.match("data:image/", a.get("src", "data:image/")) for _, a in made.elements)
    assert not any(name.startswith("on") for _, a in made.elements for name in a)
    assert made.text.count(hostile) >= 8


def test_the_same_files_make_the_same_page(tmp_path, results):
    once, twice = (page(tmp_path / n, results).source for n in "ab")
    assert once == twice


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    made = page(tmp_path, tmp_path / "results")
    assert "There is nothing yet" in made.text
    assert made.tables == [] and "Contents" not in made.text
    assert "0 studies, 0 runs, 0 other results" in capsys.readouterr().out


def test_chosen_runs_stand_beside(tmp_path, results):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    summary = {**SUMMARY, "name": "glyphs_maml", "test_accuracy": 0.51}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(
        "tasks: {dataset: {_target_: metalearn.tasks.glyphs.glyphs}, ways: 5, shots: 1}\n"
    )
    steps = [{"step": n, "validation_accuracy": n / 100} for n in (10, 20)] + [{"step": 21}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(s)}\n" for s in steps) + '{"st')
    for given in (folder, tmp_path / "runs"):
        made = page(tmp_path / given.name, results, f"runs=[{given}]")
        assert (
            "Glyphs 5-way 1-shot after 500 meta-steps of 32 tasks: glyphs_maml 51.00" in made.text
        )
        assert "Validation accuracy over training" in made.source


@pytest.mark.parametrize("name", ["SECRET", "${x}"])
def test_a_runs_config_brings_no_secret_into_the_page(tmp_path, results, monkeypatch, name):
    monkeypatch.setenv("SECRET", "0123456789abcdef")
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, "name": "from elsewhere"}))
    call = f"'${{oc.env:{name}}}'"
    (folder / "config.yaml").write_text(
        f"x: SECRET\ntasks: {{dataset: {{_target_: {call}}}, ways: {call}, shots: {call}}}\n"
    )
    made = page(tmp_path / "r", results, f"runs=[{folder}]")
    assert "from elsewhere" in made.text and "0123456789abcdef" not in made.text


@pytest.mark.parametrize("content", [b"", b"{", b"7", b"\xff\xfe\x00"], ids=repr)
@pytest.mark.parametrize(
    "name", ["provenance.json", "findings.json", "tables.json", "page.json", "growth.svg"]
)
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path, results, capsys, name, content):
    damage(tmp_path, results, capsys, name, content)


@pytest.mark.parametrize("content", [b"", b"n,m\n1,2\n1,2,3,4\n", b"\xff\xfe\x00"], ids=repr)
def test_damaged_rows_are_one_sentence_that_names_them(tmp_path, results, capsys, content):
    damage(tmp_path, results, capsys, "rows.csv", content)


def damage(tmp_path, results, capsys, name, content):
    path = results / "memory" / name
    path.write_bytes(content)
    out = tmp_path / "report.html"
    out.write_text("the page of yesterday")
    assert main(["report", f"results={results}", f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1 and "Traceback" not in said
    assert out.read_text() == "the page of yesterday"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", [{"test_accuracy": "high"}, {"steps": None, "test_loss": []}])
def test_a_damaged_summary_is_one_sentence(tmp_path, results, capsys, change):
    path = results / "omniglot_500" / "omniglot_5w1s_imaml.json"
    path.write_text(json.dumps({**SUMMARY, **change}))
    assert main(["report", f"results={results}", f"out={tmp_path}/r.html"]) == 2
    assert str(path) in capsys.readouterr().err


def test_it_needs_no_pytorch(tmp_path, results):
    """Which is what takes long to import."""
    program = (
        "import sys; from metalearn.commands.main import main\n"
        f"assert main(['report', 'results={results}', 'out={tmp_path}/report.html']) == 0\n"
        "assert not {'torch', 'wandb', 'learn2learn', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("size", ["", 'width="1e999pt"', 'width="." height="9"', 'viewBox="x"'])
def test_a_figure_of_any_size_is_shown_and_cannot_act(tmp_path, results, size):
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><script>alert(1)</script></svg>'
    (results / "memory" / "growth.svg").write_text(text)
    made = page(tmp_path, results)
    image = next(a["src"] for tag, a in made.elements if a.get("id") == "s-memory-1")
    assert base64.b64decode(image.removeprefix("data:image/svg+xml;base64,")).decode() == text


@pytest.mark.parametrize(
    "content",
    [
        {"options": ["a", 1], "versions": ["x"]},
        {"findings": 7},
        {"findings": {"a": 1}, "title": ["t"]},
        {"rows": [{"x": 10**400}, {"x": -(10**400)}, {"y": None}]},
        {"date": 5, "command": None, "commit": 7, "rows": [{"\ud800": "\ud800 | \n"}]},
    ],
)
def test_odd_values_of_a_lone_result_are_shown(tmp_path, results, content):
    lone = {"command": "x.py", "date": "2026-01-01", **content}
    encoding = {"findings": "utf-8-sig", "options": "utf-16"}.get(next(iter(content)), "utf-8")
    (results / "lone.json").write_text(json.dumps(lone), encoding=encoding)
    page(tmp_path, results)


@pytest.mark.parametrize(
    "table",
    [
        {"columns": ["a"], "rows": [["1", "2"]], "keys": [[1, 2]]},
        {"columns": ["a", "b"], "rows": [["1"]], "keys": [[1]]},
        {"columns": ["a"], "rows": [["1"]], "keys": [[10**400]]},
        {"columns": 7, "rows": []},
        {"columns": ["a"], "rows": [["1"]], "keys": [[1]], "marked": 3},
    ],
)
def test_a_table_of_another_form_is_one_sentence(tmp_path, results, capsys, table):
    content = json.dumps({"Sizes": table}).encode()
    damage(tmp_path, results, capsys, "tables.json", content)


def test_longer_rows_than_the_header_are_one_sentence(tmp_path, results, capsys):
    damage(tmp_path, results, capsys, "rows.csv", b"n,m\n1,2,3\n4,5,6\n")
