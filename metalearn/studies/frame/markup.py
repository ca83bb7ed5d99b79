"""The inline Markdown of captions, cells and findings, in other forms.

Emphasis, code and links count, as `*text*`, "`text`" and `[text](address)`. An address, which holds
in the repository alone, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

_MARKED = re.compile(
    r"\[(?P<link>[^\]\[]*)\]\([^)\s]*\)|`(?P<code>[^`]+)`|(?<!\w)\*(?P<em>\S(?:[^*]*\S)?)\*(?!\w)"
)
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "√": r"$\surd$", "−": "$-$"},
    **{"λ": r"$\lambda$", "κ": r"$\kappa$", "θ": r"$\theta$", "φ": r"$\phi$", "µ": r"$\mu$"},
    **{"²": "$^2$", "³": "$^3$", "°": r"$^\circ$", "→": r"$\rightarrow$", "∞": r"$\infty$"},
    **{"≤": r"$\leq$", "≥": r"$\geq$", "∇": r"$\nabla$", "…": r"\ldots{}", "ᵀ": "$^T$"},
    **{"–": "--", "—": "---", "“": "``", "”": "''", "’": "'"},
}
"""The form of a character in LaTeX without further packages."""


def plain(text: Any) -> str:
    """Return the text without its marks."""
    return _render(str(text), str, lambda kind, inner: inner)


def html(text: Any) -> Markup:
    """Return the text as HTML, escaped, with its emphasis and code."""

    def mark(kind: str, inner: str) -> str:
        return inner if kind == "link" else f"<{kind}>{inner}</{kind}>"

    return Markup(_render(str(text), lambda part: str(escape(part)), mark))


def latex(text: Any) -> str:
    """Return the text for LaTeX, with its emphasis and code."""
    commands = {"em": r"\emph", "code": r"\texttt"}

    def mark(kind: str, inner: str) -> str:
        return inner if kind == "link" else f"{commands[kind]}{{{inner}}}"

    return _render(str(text), lambda part: "".join(_LATEX.get(c, c) for c in part), mark)


def _render(text: str, escaped: Callable[[str], str], mark: Callable[[str, str], str]) -> str:
    parts, end = [], 0
    for found in _MARKED.finditer(text):
        kind = str(found.lastgroup)
        parts += [escaped(text[end : found.start()]), mark(kind, escaped(found[kind]))]
        end = found.end()
    return "".join([*parts, escaped(text[end:])])
