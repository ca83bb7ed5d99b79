"""Options that a class does not take, left out of the group that chose the class."""

from __future__ import annotations

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf, open_dict

from metalearn.config.build import read_arguments


def fit_targets(config: DictConfig, given: Collection[str]) -> None:
    """Leave out what an overridden `_target_` does not take, of its group's other options.

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


def leave_prox_out(config: DictConfig, given: Collection[str]) -> None:
    """Leave out problem.prox, which a choice of metagrad= sets, of a problem that has none."""
    problem = config.get("problem")
    if not isinstance(problem, DictConfig) or "problem.prox" in given or "prox" not in problem:
        return
    taken = read_arguments(problem["_target_"])
    if taken is not None and "prox" not in taken:
        with open_dict(problem):
            del problem["prox"]
