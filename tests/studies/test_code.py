"""The digest of a study's code follows what its rows depend on, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.studies.frame.code import PACKAGE, digest_code, find_code

FRAME = "metalearn.studies.frame"
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture
def package(tmp_path):
    """A copy of the package's code, to be edited."""
    return shutil.copytree(
        PACKAGE, tmp_path / "metalearn", ignore=lambda _, names: [n for n in names if "pub" in n]
    )


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_no_docstring_comment_or_report_counts(package):
    study = package / "studies" / "cg" / "study.py"
    before = digest_code(study, package)
    assert before == digest_code(PACKAGE / "studies" / "cg" / "study.py")
    edit(package / "training" / "loop.py", '"""The outer loop', '"""The loop outside')
    options = package / "training" / "options.py"
    edit(options, "MOST_TASKS = 100_000", "# far more than fit\n\nMOST_TASKS = (100_000)")
    edit(package / "training" / "state.py", '"""Move the meta-parameters', '"""Shift them')
    for report in ("cg/report", "memory/report", "frame/plot", "frame/index"):
        with (package / "studies" / f"{report}.py").open("a") as file:
            file.write("\nWIDTH = 4\n")
    for other in ("studies/speed/study", "commands/main", "studies/frame/run", "studies/hpo/study"):
        with (package / f"{other}.py").open("a") as file:
            file.write("\nOTHER = 4\n")
    assert digest_code(study, package) == before


EDITS = [
    ("studies/cg/study.py", '"experiment=glyphs_cg"', '"experiment=glyphs"'),
    ("training/options.py", "MOST_TASKS = 100_000", "MOST_TASKS = 100_001"),
    ("linear_solve/cg.py", "max_iters: int = 10", "max_iters: int = 11"),
    ("nn/__init__.py", "from metalearn.nn.mlp", "from metalearn.nn.conv4"),
    # What only a config names, by a text of metalearn.config.build.
    ("tasks/glyphs.py", "import torch", "import torch as torch"),
]


def test_a_statement_of_what_is_measured_counts(package):
    study = package / "studies" / "cg" / "study.py"
    digests = [digest_code(study, package)]
    for file, old, new in EDITS:
        edit(package / file, old, new)
        digests.append(digest_code(study, package))
    assert len(set(digests)) == len(EDITS) + 1


@pytest.mark.parametrize("study", ["ranks", "soak"])
def test_a_study_of_processes_depends_on_what_they_run(study):
    found = find_code(PACKAGE / "studies" / study / "study.py")
    assert PACKAGE / "training" / "loop.py" in found and PACKAGE / "commands" / "train.py" in found


LOAD = """
import sys
from unittest.mock import MagicMock
study, *reports = sys.argv[1:]
sys.modules.update({name: MagicMock(__file__="") for name in reports})
__import__(study)
print(*(m.__file__ for name, m in sys.modules.items() if name.startswith("metalearn")))
"""


@pytest.mark.parametrize(
    "study",
    [
        "fewshot",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("speed", "nas")),
    ],
)
def test_all_that_python_loads_for_a_study_beside_its_reports_counts(study):
    ends = (".report", ".figures", ".findings")
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES]
    reports = [n for n in names if n.startswith("metalearn.studies.") and n.endswith(ends)]
    reports += [n for n in names if n.startswith(("metalearn.report.", f"{FRAME}.published"))]
    drawing = ("colours", "draw", "groups", "markup", "paper", "plot", "publish", "svg", "table")
    reports += ["metalearn.report", *(f"{FRAME}.{name}" for name in drawing)]
    command = [sys.executable, "-c", LOAD, f"metalearn.studies.{study}.study", *reports]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {Path(file) for file in done.stdout.split()}
    source = PACKAGE / "studies" / study / "study.py"
    assert source in loaded and len(loaded) > 20
    assert loaded <= set(find_code(source))
