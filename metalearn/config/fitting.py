"""Options that a class does not take, left out of the group that chose the class."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from metalearn.config.build import read_arguments


def fit_targets(config: DictConfig, given: Collection[str]) -> None:
    """Leave out what an overridden `_target_` does not take, of its group's other options.

    An option that refers to one of these is left out too.

    Args:
        given: the names of the overridden options, which stay in any case.
    """
    left_out: list[str] = []
    for name in given:
        group, _, last = name.rpartition(".")
        if last != "_target_":
            continue
        node = OmegaConf.select(config, group)
        taken = read_arguments(node["_target_"])
        if taken is None:
            continue
        for key in [key for key in node if not str(key).startswith("_") and key not in taken]:
            option = f"{group}.{key}"
            if not any(f"{other}.".startswith(f"{option}.") for other in given):
                with open_dict(node):
                    del node[key]
                left_out.append(option)
    references = tuple(f"${{{option}{end}" for option in left_out for end in (".", "}"))
    for node in config.values():
        if isinstance(node, DictConfig):
            _leave_references_out(node, references)


def _leave_references_out(group: DictConfig, beginnings: tuple[str, ...]) -> None:
    """Leave out the options whose values begin in one of these ways."""
    plain: Any = OmegaConf.to_container(group)
    for key, value in plain.items():
        if str(value).startswith(beginnings):
            with open_dict(group):
                del group[key]


def leave_prox_out(problem: DictConfig, given: Collection[str]) -> None:
    """Leave out prox, which a choice of metagrad= sets, of a problem whose file has none."""
    if "problem.prox" not in given and "prox" in problem:
        with open_dict(problem):
            del problem["prox"]
