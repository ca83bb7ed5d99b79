"""Accuracy on held-out tasks, with its interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metalearn.errors import UsageError
from metalearn.metagrad import MetaGradient
from metalearn.parallel.batches import OutOfMemory, in_micro_batches
from metalearn.parallel.ranks import ALONE, Ranks
from metalearn.problem import BilevelProblem, Meta, Params, query_predictions
from metalearn.tasks import Sampler, TaskBatch
from metalearn.training.estimate import Estimate


def evaluate(
    problem: BilevelProblem,
    metagrad: MetaGradient,
    meta: Meta,
    sampler: Sampler,
    tasks: int,
    batch: int = 32,
    progress: Callable[[int], Any] = lambda done: None,
    ranks: Ranks = ALONE,
    say: Callable[[str], Any] = print,
) -> dict[str, Estimate]:
    """Return the outer loss and each metric of the problem, over `tasks` tasks.

    Where memory runs out a batch is taken in micro-batches, with the same result, and `say` is
    told so.

    Ranks take the batches in turn; each is to have the same sampler, and gets the same result.
    `progress` is called by all of them together, each having finished a batch.

    Raises:
        OutOfMemory: memory does not hold one task; on every rank, where one has met it.
    """
    return evaluate_each(
        {"": problem}, metagrad, meta, sampler, tasks, batch, progress, ranks, say
    )[""]


def evaluate_each(
    problems: Mapping[str, BilevelProblem],
    metagrad: MetaGradient,
    meta: Meta,
    sampler: Sampler,
    tasks: int,
    batch: int = 32,
    progress: Callable[[int], Any] = lambda done: None,
    ranks: Ranks = ALONE,
    say: Callable[[str], Any] = print,
) -> dict[str, dict[str, Estimate]]:
    """`evaluate` for several problems, such as modes of one. Those of one inner objective solve it
    once a task."""
    member = Member(problems, metagrad, meta)

    def judged(task: TaskBatch) -> _Parts:
        return [{key: _judged(p, params, meta, task) for key, p, params in member.adapt(task)}]

    return _over_batches(judged, sampler, tasks, batch, progress, ranks, say)


@dataclass(frozen=True)
class Member:
    """A trained initialisation under evaluation: its problems by name, and how it adapts.

    The problems are of one inner objective, unless they say `adapts_by_mode`.
    """

    problems: Mapping[str, BilevelProblem]
    metagrad: MetaGradient
    meta: Meta

    def adapt(self, task: TaskBatch) -> Iterator[tuple[str, BilevelProblem, Params]]:
        """Yield each problem with its adapted params."""
        params: Params | None = None
        for name, problem in self.problems.items():
            if params is None or getattr(problem, "adapts_by_mode", False):
                params = self.metagrad.adapt(problem, self.meta, task).params
            yield name, problem, params


def evaluate_ensemble(
    members: Sequence[Member],
    sampler: Sampler,
    tasks: int,
    batch: int = 32,
    ranks: Ranks = ALONE,
    say: Callable[[str], Any] = print,
) -> dict[str, dict[str, Estimate]]:
    """Return the loss and accuracy of the mean of the members' class probabilities on the queries.

    Each member adapts to the same tasks, `batch` at a time; of the others only a batch's
    predictions are in memory. The loss is the cross-entropy of the mean probabilities. The result
    has an entry for each name of `problems`, which is the same for all members. Ranks take the
    batches in turn, as in `evaluate`.

    Raises:
        OutOfMemory: memory does not hold one task.
        UsageError: a problem predicts no classes, or the members differ in the number of outputs.
    """

    def judged(task: TaskBatch) -> _Parts:
        total: dict[str, torch.Tensor] = {}
        for member in members:
            for name, problem, params in member.adapt(task):
                own = _log_probabilities(problem, params, member.meta, task)
                if name in total and total[name].shape != own.shape:
                    raise UsageError(
                        f"the members have {total[name].shape[-1]} and {own.shape[-1]} outputs: "
                        "expected as many of each. Give checkpoints of models with the same ways"
                    )
                total[name] = torch.logaddexp(total[name], own) if name in total else own
        shift = math.log(len(members))
        return [{name: _class_figures(x - shift, task.query_y) for name, x in total.items()}]

    return _over_batches(judged, sampler, tasks, batch, lambda done: None, ranks, say)


@torch.no_grad()
def _log_probabilities(
    problem: BilevelProblem, params: Params, meta: Meta, task: TaskBatch
) -> torch.Tensor:
    """Return the logarithms of the class probabilities in float64, (T, queries, ways)."""
    if task.query_y.is_floating_point():
        raise UsageError(
            "ensemble=true: expected tasks of classes, and these are a regression's. Judge the "
            "checkpoints one by one"
        )
    return query_predictions(problem, params, meta, task).double().log_softmax(dim=-1)


def _class_figures(log_probabilities: torch.Tensor, labels: torch.Tensor) -> _Figures:
    losses = -log_probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    correct = (log_probabilities.argmax(dim=-1) == labels).double()
    return {"loss": losses.mean(dim=1).cpu(), "accuracy": correct.mean(dim=1).cpu()}


def _over_batches(
    judged: Callable[[TaskBatch], _Parts],
    sampler: Sampler,
    tasks: int,
    batch: int,
    progress: Callable[[int], Any],
    ranks: Ranks,
    say: Callable[[str], Any],
) -> dict[str, dict[str, Estimate]]:
    """Return the estimates of the figures that `judged` returns for each batch; see `evaluate`."""
    own: list[_Parts] = []
    failure: OutOfMemory | UsageError | None = None
    done = batches = 0
    micro_batches = 1
    while done < tasks:
        task = sampler.sample(min(batch, tasks - done))
        if batches % ranks.size == ranks.rank and failure is None:
            try:
                values, micro_batches = in_micro_batches(judged, _chained, task, micro_batches, say)
                own.append(values)
            except (OutOfMemory, UsageError) as error:
                failure = error
        done, batches = done + len(task), batches + 1
        if batches % ranks.size == 0 or done == tasks:
            progress(done)
    by_rank = ranks.gather_or_raise(failure or own)
    found = [part for i in range(batches) for part in by_rank[i % ranks.size][i // ranks.size]]
    return {
        key: {
            name: Estimate.of(torch.cat([values[key][name] for values in found]).cpu())
            for name in found[0][key]
        }
        for key in found[0]
    }


_Figures = dict[str, torch.Tensor]
"""The loss and the metrics, (T,) each, on the CPU."""

_Parts = list[dict[str, _Figures]]
"""The values of each figure of each problem, for consecutive parts of a batch."""


def _chained(micro_batches: list[_Parts]) -> _Parts:
    return list(itertools.chain(*micro_batches))


@torch.no_grad()
def _judged(problem: BilevelProblem, params: Params, meta: Meta, task: TaskBatch) -> _Figures:
    loss, metrics = problem.outer_objective(params, meta, task)
    return {name: v.detach().cpu() for name, v in {"loss": loss, **metrics}.items()}
