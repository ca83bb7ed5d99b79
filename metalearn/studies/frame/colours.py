"""The colours of the figures: one table, in which a method has one colour everywhere.

The hues are those of Okabe & Ito 2008 and of Tol's muted scheme, which colour-blind readers tell
apart. Variants of one method share its colour, and differ in their lines and markers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import cycle
from typing import Any

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BLACK, GREY = "#56B4E9", "#E69F00", "#000000", "#767676"
WINE, INDIGO, OLIVE, TEAL, BROWN = "#882255", "#332288", "#999933", "#44AA99", "#7F4F24"

METHODS = {
    "one inner gradient": GREY,
    "SOBA": SKY,
    "SABA": INDIGO,
    "AmIGO": VERMILLION,
    "stocBiO": ORANGE,
    "F2SA": PURPLE,
    "BOME": BROWN,
    "first-order": PURPLE,
    "fomaml": PURPLE,
    "Reptile": BLACK,
    "reptile": BLACK,
    "truncated": GREEN,
    "checkpointed": SKY,
    "Gauss-Newton": WINE,
    "Neumann": ORANGE,
    "Nyström": TEAL,
    "Jacobi": BROWN,
    "Hessian-free": INDIGO,
    "authors' code": OLIVE,
    "implicit": VERMILLION,
    "iMAML": VERMILLION,
    "imaml": VERMILLION,
    "DEQ": VERMILLION,
    "CG": VERMILLION,
    "Hessian": VERMILLION,
    "unrolled": BLUE,
    "MAML": BLUE,
    "maml": BLUE,
}
"""The colour of a method by the first of these words that its name has."""
OURS, PEERS, ASIDE = BLUE, VERMILLION, GREY
"""The colours of this library, of what it is compared with, and of what stands aside."""
OTHERS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, BLACK)
"""The colours of names that are no methods of the table, in order."""
VARIANTS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""The line and marker of the first, second, ... name of one colour in a figure."""


def method_colour(name: str) -> str | None:
    """Return the colour of a method, None if the table has no word of its name."""
    return next((colour for word, colour in METHODS.items() if word in name), None)


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the color, linestyle and marker of each name of a figure, in order."""
    known = {name: method_colour(name) for name in names}
    spare = cycle([c for c in OTHERS if c not in known.values()] or OTHERS)
    found, times = {}, Counter[str]()
    for name, colour in known.items():
        colour = colour or next(spare)
        line, marker = VARIANTS[times[colour] % len(VARIANTS)]
        times[colour] += 1
        found[name] = {"color": colour, "linestyle": line, "marker": marker}
    return found
