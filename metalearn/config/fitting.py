"""Options that a class does not take, left out of the group that chose the class."""

from __future__ import annotations

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError

from metalearn.config.build import read_arguments


def fit_targets(config: DictConfig, given: Collection[str]) -> None:
    """Leave out what an overridden `_target_` does not take, of its group's other options.

    An option of another group that refers to one of these is left out too.

    Args:
        given: the names of the overridden options, which stay in any case.
    """
    for name in given:
        group, _, last = name.rpartition(".")
        if last != "_target_":
            continue
        node = OmegaConf.select(config, group)
        taken = read_arguments(node["_target_"])
        for key in list(node):
            plain = not str(key).startswith("_") and f"{group}.{key}" not in given
            if taken is not None and plain and key not in taken:
                with open_dict(node):
                    del node[key]
    if any(name.endswith("._target_") for name in given):
        for node in config.values():
            if isinstance(node, DictConfig):
                _leave_unresolved_out(node)


def _leave_unresolved_out(group: DictConfig) -> None:
    for key in list(group):
        try:
            group[key]
        except InterpolationKeyError:
            with open_dict(group):
                del group[key]


def leave_prox_out(problem: DictConfig, given: Collection[str]) -> None:
    """Leave out prox, which a choice of metagrad= sets, of a problem whose file has none."""
    if "problem.prox" not in given and "prox" in problem:
        with open_dict(problem):
            del problem["prox"]
