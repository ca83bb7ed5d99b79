#!/usr/bin/env python3
"""Check the prose: how docstrings begin, and how long the sentences of README.md and docs/ are."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPENERS = {
    "Of",
    "What",
    "Whether",
    "Where",
    "How",
    "Whose",
    "By",
    "As",
    "In",
    "Those",
    "Their",
    "Its",
}
OPENERS |= {"It", "That", "Which", "With", "From", "For", "To", "So"}
"""Words that begin no docstring. An imperative verb does, or "The" or "A" with a noun."""
MOST_WORDS = 30


def check_docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        # A text that stands alone documents the module, class, function or name before it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            words = node.value.value.split() if isinstance(node.value.value, str) else []
            if words and words[0].strip(",.:") in OPENERS:
                where = f"{path}:{node.lineno}"
                yield f"{where}: a docstring begins with {words[0]!r}; begin with a verb or a noun"


def check_sentences(path: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```|<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=[-*|#>]|\d+\. | {4})", text):
        if block.startswith(("|", "    ", "#", "![")):
            continue  # a table, a command, a heading or a figure
        for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(block.split())):
            if len(words := re.findall(r"\w[^\s]*", sentence)) > MOST_WORDS:
                yield f"{path}: {len(words)} words in '{sentence[:60]}...'; at most {MOST_WORDS}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        help=".py or .md; default: the package, the pages at the top and docs/",
    )
    files = parser.parse_args().files
    for path in files:
        if path.suffix not in (".py", ".md") or not path.is_file():
            parser.error(f"{path} is no .py or .md file")
    files = files or [*ROOT.glob("metalearn/**/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    found: list[str] = []
    for path in sorted(files):
        found += (check_sentences if path.suffix == ".md" else check_docstrings)(path)
    print("\n".join(found) or "prose: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
