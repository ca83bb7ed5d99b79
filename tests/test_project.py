"""The files beside the code that readers of the repository rely on."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import metalearn
from metalearn.config.old_names import STUDIES, TRAINING
from metalearn.studies.frame.index import read_origins

ROOT = Path(__file__).parent.parent


def test_citation_and_changelog_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert citation["version"] == newest == metalearn.__version__


def test_changelog_names_every_renamed_option():
    table = (ROOT / "CHANGELOG.md").read_text().partition("### Renamed options")[2]
    for old in (*TRAINING, *STUDIES):
        assert f"`{old}=`" in table


def test_every_result_names_its_command_and_a_clean_commit():
    origins = read_origins(ROOT / "results")
    assert origins
    faulty = [
        path.as_posix()
        for path, origin in origins.items()
        if "command" not in origin or not re.fullmatch("[0-9a-f]{40}", origin["commit"])
    ]
    assert not faulty


def test_workflow_and_forms_are_yaml_and_run_the_projects_own_check():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text()))
