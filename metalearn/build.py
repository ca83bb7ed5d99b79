"""Objects from configs: Hydra's instantiate, held to what configs are for."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from metalearn.errors import UsageError

PACKAGES = (
    *("metalearn.nn", "metalearn.inner", "metalearn.linear_solve", "metalearn.metagrad"),
    *("metalearn.tasks", "metalearn.bench", "metalearn.solve", "torch.nn", "torch.optim"),
)
"""Where the classes are that a config may name."""
FUNCTIONS = (
    *("metalearn.tasks.glyphs.glyphs", "metalearn.tasks.omniglot.omniglot"),
    *("metalearn.tasks.vision.mini_imagenet", "metalearn.tasks.vision.tiered_imagenet"),
    *("metalearn.tasks.vision.cifar_fs", "metalearn.tasks.vision.fc100"),
    "metalearn.metagrad.implicit_by_iterations",
)
"""And the functions: no other is called."""

# What takes an object of one package only, by its name.
_OWN_PACKAGE = {
    "inner": "metalearn.inner",
    "linear_solver": "metalearn.linear_solve",
    "preconditioner": "metalearn.linear_solve",
    "dataset": "metalearn.tasks",
}


def build(config: Any, kind: type | None = None) -> Any:
    """Calls the config's `_target_`; a constructor's refusal becomes a user's error.

    Wherever the config comes from, nothing is called but a class that is defined in one of
    `PACKAGES` and a function of `FUNCTIONS`; a name that leads elsewhere through a module's imports
    (metalearn.files.os.system) is not one of them.

    Args:
        kind: what the object has to be an instance of.

    Raises:
        UsageError: another target, arguments that the target refuses, or an object of another kind.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    for name, target in _targets(plain):
        _check(target, _OWN_PACKAGE.get(name))
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UsageError(f"{plain} names no _target_; expected what configs/ has there")
    target = plain["_target_"]
    try:
        made = hydra.utils.instantiate(plain, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, UsageError) and cause.__cause__:
            cause = cause.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        reason = " ".join(str(cause or error).split())
        raise UsageError(f"{target} cannot be built: {reason}") from error
    if kind is not None and not isinstance(made, kind):
        what = "with _partial_" if isinstance(made, functools.partial) else f"no {kind.__name__}"
        raise UsageError(f"_target_={target} is {what}; choose one of configs/ instead")
    return made


def _targets(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every `_target_` in a nest of plain values, and the name of what it makes."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield name, node["_target_"]
        for key, value in node.items():
            yield from _targets(value, str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value, name)


def _check(target: Any, package: str | None) -> None:
    expected = [package] if package else PACKAGES
    inside = re.compile(rf"({'|'.join(map(re.escape, expected))})(\.[A-Za-z]\w*)+")
    if isinstance(target, str) and inside.fullmatch(target):
        if target in FUNCTIONS:
            return
        try:
            found = hydra.utils.get_object(target)
        except Exception:  # whatever a module that is not there, or no module, leads to
            found = None
        if inspect.isclass(found) and found.__module__.startswith(tuple(f"{p}." for p in expected)):
            return
    raise UsageError(
        f"_target_={target} is not built from a config; expected a class of {', '.join(expected)}"
    )
