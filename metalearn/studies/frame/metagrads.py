"""Further meta-gradients of a study, by their names in configs/metagrad or their classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from metalearn import config
from metalearn.config.build import build
from metalearn.errors import UsageError, check_known
from metalearn.inner import GradientDescent, InnerSolver
from metalearn.metagrad import MetaGradient

INNER = {"_target_": "metalearn.inner.GradientDescent", "steps": 1, "lr": 0.1}
"""The inner solver that a class is built with, until the study's own takes its place."""


def named_metagrad(name: str, inner: InnerSolver) -> MetaGradient:
    """Build a meta-gradient with the study's inner solver in place of its own.

    Args:
        name: a choice of configs/metagrad, or the `_target_` of a class, my_module.MyClass.

    Raises:
        UsageError: there is no such meta-gradient, or it cannot be built so.
    """
    made: Any = build(read_config(name), MetaGradient)
    try:
        return replace(made, inner=inner)
    except TypeError as error:
        raise UsageError(
            f"metagrads={name}: expected a dataclass with the field inner ({error}). Make it one."
        ) from error


def read_config(name: str) -> dict[str, Any]:
    """Read the options of a meta-gradient, its `_target_` among them; raise as `named_metagrad`."""
    if "." in name:
        return {"_target_": name, "inner": INNER}
    folder = config.config_folder() / "metagrad"
    check_known("metagrads", [name], sorted(path.stem for path in folder.glob("*.yaml")))
    default, chosen = (config.compose("train", w) for w in ([], [f"metagrad={name}"]))
    # Without their references, such as to the number of inner steps.
    own, other = (OmegaConf.to_container(x.problem) for x in (chosen, default))
    if {**own, "prox": None} != {**other, "prox": None}:  # type: ignore[dict-item]
        raise UsageError(
            f"metagrads={name}: expected a meta-gradient alone, and configs/metagrad/{name}.yaml "
            "changes the problem too. Name another, such as maml_batched."
        )
    options: Any = OmegaConf.to_container(chosen.metagrad, resolve=True)
    return options


def check_metagrads(names: Sequence[str], own: Collection[str], exact: bool = False) -> None:
    """Check the further meta-gradients of a study.

    Args:
        own: the names of the study's own methods.
        exact: the study compares each with the exact gradient that it estimates.

    Raises:
        UsageError: a name is one of `own`, twice there or unknown, or its meta-gradient does not
            say which exact gradient it estimates, where the study asks for it.
    """
    for name in names:
        if name in own or list(names).count(name) > 1:
            raise UsageError(
                f"metagrads={list(names)}: expected names that differ from each other and from "
                f"{', '.join(own)}. Leave {name} out."
            )
        if named_metagrad(name, GradientDescent(1, 0.1)).estimates is None and exact:
            raise UsageError(
                f"metagrads={name}: expected a meta-gradient whose `estimates` names the exact "
                "gradient to compare it with, 'unrolled' or 'implicit'. Name another."
            )
