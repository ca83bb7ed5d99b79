"""The core of the package, which needs torch and numpy alone, and its extras."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metalearn
from metalearn.system.extras import DISTRIBUTION, EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
CORE = (
    *("implicit", "linear_solve", "fixed_point", "nonlinear_solve", "nn", "inner", "metagrad"),
    "bilevel",
    *("problem", "problems", "tasks", "errors", "tree", "autograd"),
)
LEARN2LEARN = {"learn2learn", "torchvision"}
BLOCK = """
import importlib.abc, sys

CORE = {"torch", "torchgen", "functorch", "numpy", "metalearn"}
CORE |= {"typing_extensions", "sympy", "mpmath", "networkx", "filelock", "fsspec"}  # torch's own

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in CORE and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
"""


def run_blocked(code: str, *allowed: str) -> subprocess.CompletedProcess[str]:
    """Run code where no third party can be imported but torch, numpy and the allowed ones."""
    script = f"{BLOCK}\nCORE |= {set(allowed)}\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def without(command: str, *allowed: str) -> str:
    """Return what a command says without the extras; its exit status is 2."""
    code = f"from metalearn.commands.main import main\nsys.exit(main({command.split()}))"
    done = run_blocked(code, *allowed)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.stderr


def test_the_core_and_the_first_example_need_torch_and_numpy_alone(tmp_path):
    readme = (ROOT / "README.md").read_text()
    example = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    modules = "\n".join(f"import metalearn.{name}" for name in CORE)
    names = ", ".join(name for name in metalearn.__all__ if name != "train")
    done = run_blocked(f"{modules}\nfrom metalearn import {names}\n{example}")
    assert done.returncode == 0, done.stderr


def test_training_from_python_says_what_is_missing():
    done = run_blocked("import metalearn\nmetalearn.train")
    assert "metalearn.train needs the package" in done.stderr
    assert "pip install 'metalearn-implicit[train]'" in done.stderr


@pytest.mark.parametrize(
    "command",
    ["train", "train --help", "evaluate checkpoint=x.pt", "data prepare glyphs", "bench speed"],
)
def test_a_command_without_the_training_extra_says_so(command):
    assert f"metalearn {command.split()[0]} needs the package" in (said := without(command))
    assert "pip install 'metalearn-implicit[train]'" in said


@pytest.mark.parametrize("command", ["bench speed", "solve hpo", "report"])
def test_a_command_without_the_studies_extra_says_so(command):
    allowed = {"antlr4", "yaml", "packaging", "pydantic_core", "typing_inspection"}
    allowed |= {*EXTRAS["train"], *sys.builtin_module_names}
    said = without(command, *(allowed - {"matplotlib", "scipy", "sklearn"}))
    assert "pip install 'metalearn-implicit[studies]'" in said


def test_help_and_version_need_no_extra():
    for words in (["--help"], ["--version"]):
        code = f"from metalearn.commands.main import main\nsys.exit(main({words}))"
        assert run_blocked(code).returncode == 0


def test_unrolling_by_higher_says_what_is_missing():
    code = """
import torch
from metalearn import FewShot, GradientDescent, TaskBatch, Unrolled
model = torch.nn.Linear(3, 2)
x, y = torch.randn(1, 4, 3), torch.tensor([[0, 0, 1, 1]])
Unrolled(GradientDescent(1, 0.1))(FewShot(model), FewShot(model).begin(), TaskBatch(x, y, x, y))
"""
    said = run_blocked(code).stderr
    assert "backend='higher' needs the package higher" in said and "backend='batched'" in said


def test_every_import_is_of_an_extra_and_every_extra_is_installed_by_all():
    known = {module for modules in EXTRAS.values() for module in modules} | LEARN2LEARN
    imported = set()
    for path in (ROOT / "metalearn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    third = imported - set(sys.stdlib_module_names) - {"metalearn", "torch", "numpy", "filelock"}
    assert third <= known
    assert known <= third | {"learn2learn"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    names = {"fontTools": "fonttools", "hydra": "hydra-core", "PIL": "pillow"}
    names |= {"cycler": "matplotlib", "sklearn": "scikit-learn"}
    names |= {"annotated_types": "annotated-types"}
    for extra, modules in EXTRAS.items():
        listed = [re.split("[>=]", line)[0] for line in project["optional-dependencies"][extra]]
        assert {names.get(module, module) for module in modules} <= set(listed), extra


@pytest.mark.parametrize("name", metalearn.__all__)
def test_every_name_of_the_package_is_there(name):
    assert getattr(metalearn, name) is not None and name in dir(metalearn)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        metalearn.nothing  # noqa: B018
