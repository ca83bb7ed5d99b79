"""The solvers of z = f(z) on pytrees, for many systems at once.

The package can be called: `metalearn.fixed_point(function, solution, *args)` attaches the
derivative of a fixed point, as `metalearn.implicit.fixed_point`, which has the same name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import metalearn
from metalearn.fixed_point.anderson import Anderson
from metalearn.fixed_point.broyden import Broyden
from metalearn.fixed_point.newton import NewtonGMRES
from metalearn.fixed_point.picard import Picard
from metalearn.fixed_point.search import FixedPointSolver

__all__ = ["Anderson", "Broyden", "FixedPointSolver", "NewtonGMRES", "Picard"]


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return `metalearn.implicit.fixed_point(*args, **options)`."""
        return metalearn.implicit.fixed_point(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
