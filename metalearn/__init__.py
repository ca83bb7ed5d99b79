"""Differentiating through optimisation: unrolled and implicit meta-gradients, side by side.

The names below are imported on first use, so that `import metalearn` itself loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalearn import (
        bilevel,
        fixed_point,
        implicit,
        inner,
        linear_solve,
        metagrad,
        nn,
        nonlinear_solve,
        problem,
        problems,
        tasks,
    )
    from metalearn.errors import UsageError
    from metalearn.implicit import (
        argmin,
        find_fixed_point,
        least_squares,
        minimise,
        root,
        root_find,
    )
    from metalearn.inner import GradientDescent
    from metalearn.linear_solve import CG, GMRES
    from metalearn.metagrad import FirstOrder, Implicit, Reptile, Unrolled
    from metalearn.nn import Conv4, TaskBatched
    from metalearn.problem import BilevelProblem, FewShot, StochasticProblem, TrainableProblem
    from metalearn.tasks import DatasetTasks, TaskBatch, TensorTasks
    from metalearn.training.from_python import train

__version__ = "0.1.0"

__all__ = [
    "CG",
    "GMRES",
    "BilevelProblem",
    "Conv4",
    "DatasetTasks",
    "FewShot",
    "FirstOrder",
    "GradientDescent",
    "Implicit",
    "Reptile",
    "StochasticProblem",
    "TaskBatch",
    "TaskBatched",
    "TensorTasks",
    "TrainableProblem",
    "Unrolled",
    "UsageError",
    "argmin",
    "bilevel",
    "find_fixed_point",
    "fixed_point",
    "implicit",
    "inner",
    "least_squares",
    "linear_solve",
    "metagrad",
    "minimise",
    "nn",
    "nonlinear_solve",
    "problem",
    "problems",
    "root",
    "root_find",
    "tasks",
    "train",
]

_MODULES = {
    "errors": ("UsageError",),
    "implicit": (
        *("argmin", "find_fixed_point", "least_squares", "minimise", "root", "root_find"),
    ),
    "inner": ("GradientDescent",),
    "linear_solve": ("CG", "GMRES"),
    "metagrad": ("FirstOrder", "Implicit", "Reptile", "Unrolled"),
    "nn": ("Conv4", "TaskBatched"),
    "problem": ("BilevelProblem", "FewShot", "StochasticProblem", "TrainableProblem"),
    "tasks": ("DatasetTasks", "TaskBatch", "TensorTasks"),
    "training.from_python": ("train",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`.

    Raises:
        MissingPackage: it needs a package that is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        if name not in _HOME:
            return importlib.import_module(f"{__name__}.{name}")
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        from metalearn.system.extras import missing_package

        missing = missing_package(error, f"metalearn.{name}")
        raise missing or error from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
