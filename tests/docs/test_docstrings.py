"""The docstrings of the reference are valid markup, and the reference has every public name."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import roles
from sphinx.ext.napoleon import Config, GoogleDocstring

import metalearn

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "site"))
from docstrings import translated  # noqa: E402

REFERENCE = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.rst")))
MODULES = re.findall(r"automodule:: (\S+)", REFERENCE)


def _name(role, rawtext, text, line, inliner, options=None, content=()):
    return [nodes.literal(rawtext, text)], []


def parsed(docstring: str) -> Any:
    """Parse a docstring as the site does, except that no name is looked up.

    Raises:
        docutils.utils.SystemMessage: docutils has a warning.
    """
    roles.register_local_role("name", _name)
    lines = list(translated(inspect.cleandoc(docstring).splitlines()))
    markup = "\n".join(
        GoogleDocstring(lines, Config(napoleon_use_rtype=False, napoleon_use_ivar=True)).lines()
    )
    settings = {"report_level": 5, "halt_level": 2}
    return publish_doctree(f".. default-role:: name\n\n{markup}", settings_overrides=settings)


def documented(module: Any) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of a module, of its public names and of their own methods."""
    yield module.__name__, module.__doc__
    for name in getattr(module, "__all__", vars(module)):
        value = getattr(module, name)
        if name[0] == "_" or not getattr(value, "__module__", "").startswith("metalearn"):
            continue
        if value.__doc__:
            yield name, value.__doc__
        for method, member in vars(value).items() if inspect.isclass(value) else ():
            if method[0] != "_" and isinstance(getattr(member, "__doc__", None), str):
                yield f"{name}.{method}", member.__doc__


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_valid_markup(name):
    found = dict(documented(importlib.import_module(name)))
    assert found
    for member, docstring in found.items():
        try:
            parsed(docstring)
        except Exception as error:
            raise AssertionError(f"{name}, {member}: {error}") from error


def test_a_formula_is_literal_and_bars_and_stars_are_meant():
    tree = parsed(
        """Return |A'* v|, of *all* rows.

        At the minimum

            x = -A^-1 *b*

        for `rows`:
        - one,
          and a half,
        - two.
        Then

            y = |x|

        ends.

        Args:
            v: |v| as in a_ and b_c:
                - first
                - second
            *more: others.
        """
    )
    assert [block.astext() for block in tree.findall(nodes.literal_block)] == [
        "x = -A^-1 *b*",
        "y = |x|",
    ]
    assert tree.astext().startswith("Return |A'* v|, of all rows.")
    assert [text.astext() for text in tree.findall(nodes.emphasis)][:1] == ["all"]
    assert [len(found) for found in tree.findall(nodes.bullet_list)] == [2, 2]
    assert "|v| as in a_ and b_c:" in tree.astext()


def test_bad_markup_is_noticed():
    with pytest.raises(Exception, match="Literal block expected"):
        parsed("Return x::\n\ny")


def test_the_reference_has_every_public_name():
    shown = {f"{name}.{member}" for name in MODULES for member in _names(name)}
    for name, module in {n: m for m, ns in metalearn._MODULES.items() for n in ns}.items():
        home = f"metalearn.{module}.{name}"
        assert home in shown or f"autofunction:: metalearn.{name}\n" in REFERENCE, home
    assert {f"metalearn.{name}" for name in metalearn._MODULES if "." not in name} <= set(MODULES)


def _names(module: str) -> list[str]:
    found = importlib.import_module(module)
    return list(getattr(found, "__all__", vars(found)))
