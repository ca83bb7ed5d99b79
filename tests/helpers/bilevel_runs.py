"""Bilevel runs in processes of their own, for kills and for several ranks."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from network_problem import SGD, NetworkProblem, loaders

from metalearn.bilevel import F2SA, SABA, SOBA, AmIGO, Certify, Descent, TruncatedUnrolling, train
from metalearn.parallel import ranks
from metalearn.tree import leaves_of

STEPS = 60
METHODS = (SOBA(0.05), AmIGO(2, 2, 0.05), TruncatedUnrolling(2, 2), F2SA(2), SABA(0.05))


def run(folder: Path, method: Any = None, steps: int = STEPS, **options: Any) -> Descent:
    method = method or SOBA(0.05)
    problem = NetworkProblem(dropout=0.2)
    return train(
        problem,
        method,
        problem.begin(),
        *loaders(problem, isinstance(method, SABA)),
        partial(SGD, momentum=0.9),
        partial(torch.optim.Adam, lr=0.01),
        run_dir=folder,
        steps=steps,
        **{"checkpoint_every": 7, "certify": Certify(), "certify_every": 5, **options},
    )


def run_until_killed(folder: Path) -> None:
    """Train or resume, in a process that the test kills."""
    torch.set_num_threads(1)
    run(folder, resume=any(folder.glob("last*.pt")))


def hypergradients(micro_batches: int = 1) -> list[list[torch.Tensor]]:
    """The hypergradients of three outer steps of several methods, on these ranks."""
    with ranks.process_group() as here:
        found = []
        for method in METHODS:
            problem = NetworkProblem()
            torch.manual_seed(0)
            pair = loaders(problem, isinstance(method, SABA))
            options = {"ranks": here, "micro_batches": micro_batches}
            one = Descent(problem, method, problem.begin(), *pair, SGD, SGD, **options)
            found += [leaves_of(one.step().grads) for _ in range(3)]
        return found


def train_on_ranks(folder: Path) -> list[torch.Tensor]:
    return [x.detach() for x in leaves_of(run(folder, steps=10).meta)]


def train_differently_on_ranks(folder: Path) -> str:
    """Each rank has another seed, so that its batches differ."""
    try:
        run(folder, steps=10, seed=int(os.environ["RANK"]))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
