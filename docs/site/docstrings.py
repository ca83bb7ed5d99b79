"""The markup of docstrings: plain text with names in backticks, made into reStructuredText.

A docstring is written to be read in the source. It has Google's sections, which napoleon knows, and
three more conventions, which this module translates:

- `name` is code. It is a link where it is the name of a documented object.
- A block that is indented more than the text before it, after an empty line, is a formula or code.
- |x|, A'* and the like are meant literally.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.roles import XRefRole
from sphinx.util.nodes import make_refnode

CODE = re.compile(r"(`+[^`]+`+)")
EMPHASIS = re.compile(r"(?<![\w*])(\*\w(?:[^*\n]*\w)?\*)(?![\w*])")


def escaped(line: str) -> str:
    """Escape the characters of markup outside of code and emphasis."""
    pieces = CODE.split(line)
    for i in range(0, len(pieces), 2):
        words = EMPHASIS.split(pieces[i])
        words[::2] = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", word) for word in words[::2]]
        pieces[i] = "".join(words)
    return "".join(pieces)


def translated(lines: list[str]) -> Iterator[str]:
    """Yield the lines as reStructuredText, with formulas as literal blocks."""
    above, literal, bullets = 0, 0, -1  # the indents of the text, a formula and a list
    after_empty = True
    for line in lines:
        if not line.strip():
            after_empty = True
            yield line
            continue
        indent = len(line) - len(line.lstrip())
        bullet = line.lstrip().startswith("- ")
        listed = indent > bullets >= 0 or (bullet and indent == bullets)
        ends = (literal and indent < literal) or (bullets >= 0 and not listed)
        starts = bullet and not literal and not listed
        if (ends or starts) and not after_empty:
            yield ""
        if ends:
            literal, bullets = 0, -1
        if starts:
            bullets = indent
        elif not literal and bullets < 0 and after_empty and indent > above:
            literal = indent
            yield from (" " * above + "::", "")
        if not literal:
            above = indent
        yield line if literal else escaped(line)
        after_empty = False


def translate(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Translate a docstring in place; a handler of `autodoc-process-docstring`."""
    lines[:] = translated(lines)
    if what in ("attribute", "data", "property"):
        # Markup for nothing: else napoleon takes the words before the first colon for a type.
        lines.insert(0, "\\ ")


class NameRole(XRefRole):
    """The role of text in single backticks: a link to the Python object of that name, or code."""

    def __init__(self) -> None:
        super().__init__(innernodeclass=nodes.literal)

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if not re.fullmatch(r"[\w.]+", self.text):
            return [nodes.literal(self.rawtext, self.text)], []
        self.refdomain, self.reftype, self.classes = "py", "obj", ["xref", "py", "py-obj"]
        return self.create_xref_node()

    def process_link(
        self, env: Any, refnode: Any, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        refnode["py:module"] = env.ref_context.get("py:module")
        refnode["py:class"] = env.ref_context.get("py:class")
        refnode["in_backticks"] = True
        return title, target


def link_or_code(app: Sphinx, env: Any, node: Any, text: nodes.Node) -> nodes.Node | None:
    """Link a name in backticks to the one documented object of that name, or keep it as code.

    A handler of `missing-reference`, which sees the names that are not of the module at hand.
    """
    if not node.get("in_backticks"):
        return None
    domain, name = env.domains["py"], node["reftarget"]
    found = [
        (title, entry)
        for title, entry in domain.find_obj(env, None, None, name, None, searchmode=1)
        if not entry.aliased
        and (
            entry.objtype in ("class", "exception") or (entry.objtype == "function" and "_" in name)
        )
    ]
    if len(found) != 1:
        return text
    title, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, title)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("name", NameRole())
    app.connect("autodoc-process-docstring", translate, priority=400)  # before napoleon's
    app.connect("missing-reference", link_or_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
