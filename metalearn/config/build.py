"""Objects from configs: Hydra's instantiate, held to what configs are for."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from metalearn.config.interpolation import check_resolved
from metalearn.errors import UsageError, nearest

PACKAGES = (
    *("metalearn.nn", "metalearn.inner", "metalearn.linear_solve", "metalearn.metagrad"),
    *("metalearn.problems", "metalearn.tasks", "metalearn.studies", "torch.nn", "torch.optim"),
)
"""The packages of the classes and functions that a config may name."""
_IMPORTED: set[str] = set()
"""The modules that the command line names by import=, whose classes a config may name too."""
_PLAIN = (bool, int, float, str, list, tuple, type(None))

# What takes an object of one package only, by its name.
_OWN_PACKAGE = {
    "inner": "metalearn.inner",
    "linear_solver": "metalearn.linear_solve",
    "preconditioner": "metalearn.linear_solve",
    "dataset": "metalearn.tasks",
}


def build(config: Any, kind: type | None = None) -> Any:
    """Build the object that a config describes, by calling its `_target_`.

    Wherever the config comes from, it calls only what one of `PACKAGES` defines: a class, or a
    function that its module lists in `BUILDABLE`. A name that leads elsewhere through a module's
    imports (metalearn.system.files.os.system) is refused.

    Args:
        kind: what the object has to be an instance of.

    Raises:
        UsageError: another target, arguments that the target refuses, or an object of another kind.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    path = config._get_full_key("") if isinstance(config, DictConfig) else ""
    for name, node in _nodes(plain, path):
        own = _OWN_PACKAGE.get(name.rpartition(".")[2])
        called = _found(node["_target_"], [own] if own else PACKAGES)
        if own == "metalearn.tasks" and inspect.isclass(called):
            raise UsageError(
                f"{name}._target_={node['_target_']}: expected a function that reads a dataset. "
                "Choose one of configs/tasks/"
            )
        _check_arguments(name, node, called)
        # A dataset alone is called later; which the outermost is, its kind says.
        partial = node.get("_partial_", False)
        if node is not plain and partial is not (own == "metalearn.tasks"):
            raise UsageError(f"{name}._partial_={partial}; leave it as configs/ has it")
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UsageError(f"{plain} names no _target_; expected what configs/ has there")
    target = plain["_target_"]
    check_resolved(plain)  # Hydra would resolve it once more
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


def import_named(modules: Any) -> None:
    """Import the module or modules that `import=` names; their classes may be a `_target_` then.

    A module in the current folder is found too. Only a command line calls this function, never a
    saved config.

    Raises:
        UsageError: a name is no module's, or the module cannot be imported.
    """
    several = isinstance(modules, Sequence) and not isinstance(modules, str)
    for name in modules if several else [modules]:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise UsageError(
                f"import={name}: expected a module's name, such as my_module for my_module.py in "
                "this folder. Leave the ending and the folder out."
            )
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever the code of a user's module raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UsageError(
                f"import={name}: expected a module in this folder or an installed one, and its "
                f"import fails ({reason}). Mend or install it."
            ) from error
        _IMPORTED.add(name)


def find_function(option: str, name: str) -> Callable[..., Any]:
    """Return the function that an option names, of a module that `import=` names.

    Raises:
        UsageError: `import=` names no such module, or the module defines no such function.
    """
    if any(name.startswith(f"{module}.") for module in _IMPORTED):
        try:
            found = pkgutil.resolve_name(name)
        except Exception:  # whatever a name that is not there leads to
            found = None
        own = f"{getattr(found, '__module__', '')}."
        if inspect.isfunction(found) and own.startswith(tuple(f"{m}." for m in _IMPORTED)):
            return found
    if known := _own_names(name, inspect.isfunction):
        raise UsageError(
            f"{option}={name}: expected a function that the module defines{nearest(name, known)}"
        )
    raise UsageError(
        f"{option}={name}: expected a function that a module of yours defines. Name the module by "
        f"import={name.rpartition('.')[0]}"
    )


def _own_names(name: str, kind: Callable[[Any], bool]) -> list[str]:
    """Return the dotted names of what the imported module of `name` defines, of a kind."""
    module = name.rpartition(".")[0]
    if module not in _IMPORTED:
        return []
    found = inspect.getmembers(sys.modules[module], kind)
    return [f"{module}.{own}" for own, value in found if value.__module__ == module]


def read_arguments(target: Any) -> set[str] | None:
    """Return the names of the arguments that a config's `_target_` takes; None: any.

    Raises:
        UsageError: a config may not name `target`.
    """
    parameters = inspect.signature(_found(target, PACKAGES)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if takes_any else set(parameters)


def read_argument_defaults(target: Any) -> dict[str, Any]:
    """Read the plain defaults in the signature of a config's `_target_`, by argument.

    Raises:
        UsageError: a config may not name `target`.
    """
    return signature_defaults(_found(target, PACKAGES))


def signature_defaults(called: Callable[..., Any]) -> dict[str, Any]:
    """Read the plain defaults in a signature, by argument.

    Tuples become lists, as configs hold them. Arguments without a default, or with an object as
    their default, are left out.
    """
    parameters = inspect.signature(called).parameters.values()
    plain = {p.name: p.default for p in parameters if isinstance(p.default, _PLAIN)}
    return {name: list(x) if isinstance(x, tuple) else x for name, x in plain.items()}


def _nodes(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every dict with a `_target_` in a nest of plain values, with its option's name."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, inner in value.items():
            yield from _nodes(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner, path)


def _found(target: Any, packages: Sequence[str]) -> Any:
    """Return the class or function of that name, if a config may name it."""
    packages = [*packages, *_IMPORTED]
    inside = re.compile(rf"({'|'.join(map(re.escape, packages))})(\.[A-Za-z]\w*)+")
    if isinstance(target, str) and inside.fullmatch(target):
        try:
            found = pkgutil.resolve_name(target)
        except Exception:  # whatever a module that is not there, or no module, leads to
            found = None
        module = str(getattr(found, "__module__", ""))
        if f"{module}.".startswith(tuple(f"{package}." for package in packages)) and (
            inspect.isclass(found)
            or (inspect.isfunction(found) and _is_buildable(sys.modules[module], found.__name__))
        ):
            return found
    if isinstance(target, str) and (own := _own_names(target, inspect.isclass)):
        raise UsageError(
            f"_target_={target}: expected a class that the module defines{nearest(target, own)}"
        )
    raise UsageError(
        f"_target_={target} is not built from a config; expected a class of {', '.join(packages)}, "
        "or of a module of yours that import= names"
    )


def _is_buildable(module: ModuleType, name: str) -> bool:
    if module.__name__.startswith("metalearn."):
        return name in getattr(module, "BUILDABLE", ())
    return any(f"{module.__name__}.".startswith(f"{own}.") for own in _IMPORTED)


def _check_arguments(path: str, node: dict[str, Any], called: Any) -> None:
    """Raise UsageError for a partial's unknown argument, or a plain value of another type.

    An object that is built at once refuses unknown arguments itself.
    """
    if node.get("_partial_", False) and not inspect.isclass(called):
        known = inspect.signature(called).parameters
        for key in node.keys() - known.keys() - {"_target_", "_partial_"}:
            raise UsageError(
                f"{path and path + '.'}{key}={node[key]}: {called.__name__} has no such option"
                f"{nearest(key, known)}"
            )
    try:
        hints = get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (NameError, TypeError):  # names that only a type checker imports; no Python signature
        return
    for key, value in node.items():
        if key in hints and not _fits(value, hints[key]):
            raise UsageError(
                f"{path and path + '.'}{key}={value}; expected {_in_words(hints[key])}"
            )


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    plain |= {type(None): "null", Path: "a path"}
    if hint in plain:
        return plain[hint]
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, inner))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        count = f"{len(inner)} values" if inner[-1:] != (...,) and len(inner) > 1 else "values"
        return f"a list of {count}, each {_in_words(inner[0])}" if inner else "a list"
    name = getattr(hint, "__name__", str(hint))
    return f"the options of {'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a plain value is of a type; other types always fit."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, dict) or hint in (Any, object) or isinstance(hint, TypeVar):
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint is type(None) or value is None:
        return value is None and hint is type(None)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float)
        return number and not isinstance(value, bool) and math.isfinite(value)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is Path:
        return isinstance(value, str)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        if not isinstance(value, list):
            return False
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return not inner or all(_fits(one, inner[0]) for one in value)
    return not isinstance(value, bool | int | float | str)
