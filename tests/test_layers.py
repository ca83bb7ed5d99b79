"""The rooms of the package: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import metalearn

PACKAGE = Path(metalearn.__file__).parent
FLOORS = (
    ("errors",),
    ("system",),
    ("autograd",),
    ("tree", "traced", "captured"),
    ("config", "linear_solve", "tasks"),
    ("inner", "fixed_point", "nonlinear_solve", "implicit"),
    ("nn",),
    ("problems",),
    ("problem",),
    ("metagrad",),
    ("parallel",),
    ("training",),
    ("bilevel",),
    ("studies",),
    ("report", "play"),
    ("commands",),
)
"""From the ground up. A room imports from lower floors, and on its own floor to its left."""
ORDER = [room for floor in FLOORS for room in floor]


def imports() -> Iterator[tuple[str, str, str]]:
    """Yield (importing file, its room, imported room), of imports between rooms."""
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                first, *rest = name.split(".")
                if first == "metalearn" and rest and rest[0] in ORDER and rest[0] != room:
                    yield str(path.relative_to(PACKAGE)), room, rest[0]


def test_rooms_import_downwards_only():
    rooms = [room for room in ORDER if not room.startswith("__")]
    upwards = [
        f"{file} imports {other}"
        for file, room, other in imports()
        if room in rooms and rooms.index(other) > rooms.index(room)
    ]
    assert not upwards


def test_every_module_is_in_a_room():
    found = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert found - {"__init__", "__main__"} == set(ORDER)
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_problems_do_not_import_meta_gradients():
    assert "problems" not in {room for _, room, other in imports() if other == "metagrad"}


def test_configs_import_neither_training_nor_tasks():
    assert not {other for _, room, other in imports() if room == "config"} & {"training", "tasks"}
