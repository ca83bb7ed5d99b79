"""The digest of the code that a study's rows depend on."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import metalearn

PACKAGE = Path(metalearn.__file__).parent

_REPORTS = re.compile(
    r"report(/.+)?|studies/(frame/(colours|draw|findings|groups|index|markup|paper|plot|publish|svg"
    r"|table|published(/.+)?)|[^/]+/(report|figures|findings))"
)
"""The modules that only report rows, by their paths in the package; no digest covers them.

A study may import from them the code that selects its cells, since a row contains its cell. It must
not import from them any code that measures.
"""


def digest_code(source: Path, package: Path = PACKAGE) -> str:
    """Return the SHA-256 of a module and of the modules of `package` that it depends on.

    A module depends on the modules that it imports, anywhere in its code. It also depends on the
    modules whose dotted names are string constants in it, such as a `_target_`. Comments,
    docstrings, layout and the modules that only report rows do not change the digest.

    Args:
        source: the file of the study's module, in the package or elsewhere.
        package: the folder of the package.
    """
    digest = hashlib.sha256()
    for _, code in sorted(find_code(source, package).items()):
        digest.update(code.dump)
    return digest.hexdigest()


class Code(NamedTuple):
    """The content of a module, without its docstrings.

    Args:
        dump: the text of its syntax tree.
        names: the dotted names that it may load.
    """

    dump: bytes
    names: frozenset[str]


def find_code(source: Path, package: Path = PACKAGE) -> dict[Path, Code]:
    """Return the modules that `digest_code` covers, by file."""
    found: dict[Path, Code] = {}
    left = [source]
    while left:
        path = left.pop()
        if path not in found:
            found[path] = _parse(path.read_bytes())
            left += [file for name in found[path].names for file in _files(name, package)]
            if path == package / "config" / "build.py":  # configs name these functions
                left += [f for f in sorted(package.rglob("*.py")) if _is_buildable(f)]
    return found


def _is_buildable(path: Path) -> bool:
    return any(line.startswith("BUILDABLE = ") for line in path.read_text().splitlines())


@cache
def _parse(source: bytes) -> Code:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return Code(ast.dump(tree).encode(), frozenset(_names(tree)))


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _names(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that a module may load; its imports are absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _files(name: str, package: Path) -> Iterator[Path]:
    """Yield the files that an import of `name` runs: its packages first, then its module."""
    first, *parts = name.split(".")
    if first != package.name or not all(map(str.isidentifier, parts)):
        return
    for path in (package.joinpath(*parts[:n]) for n in range(len(parts) + 1)):
        if _REPORTS.fullmatch(path.relative_to(package).as_posix()):
            return
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                yield file
