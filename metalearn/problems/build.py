"""The problems that configs/problem/ names, each built around a model."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from metalearn.captured import Capture
from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.nn.body import Statistics, body_and_head, can_split
from metalearn.nn.precision import Precision
from metalearn.problems.convex_head import ConvexHead
from metalearn.problems.few_shot import FewShot
from metalearn.problems.learned import LearnedProx, LearnedRates
from metalearn.problems.prediction_loss import Loss
from metalearn.problems.protocol import TrainableProblem
from metalearn.problems.with_body import WithBody

BUILDABLE = ("few_shot", "convex_head")


def few_shot(
    model: nn.Module,
    prox: float = 0.0,
    prox_head: float | None = None,
    adapt: str | list[str] = "all",
    transductive: bool = True,
    statistics: Statistics = "task",
    learn_rates: bool | Literal["layers"] = False,
    rate_steps: int = 1,
    learn_prox: bool = False,
    loss: str | Loss | None = None,
    query_training: bool | None = None,
    precision: Precision = "full",
    capture: Capture = "none",
) -> TrainableProblem:
    """Build `FewShot`, under a shared body where only the head adapts, with its learned parts.

    Args:
        prox, prox_head, adapt, transductive, loss, query_training, capture: as in `FewShot`.
        precision: as in `FewShot`; of the body alone where only the head adapts.
        statistics: as in `WithBody`; "population" needs adapt="head".
        learn_rates: True: a learned inner rate for each number; "layers": for each tensor and step.
        rate_steps: the number of inner steps with a rate of their own.
        learn_prox: True: learn the proximal strength too, from `prox` on.

    Raises:
        UsageError: the options contradict each other.
    """
    if learn_prox and not 0 < prox <= MAX_FLOAT32:
        raise UsageError(
            f"problem.prox={prox}: expected a number above 0, up to {MAX_FLOAT32:.1e}, at which "
            "learn_prox=true starts. Set one."
        )
    if learn_prox and prox_head is not None:
        raise UsageError(
            f"problem.prox_head={prox_head}: expected null beside learn_prox=true, which learns "
            "one strength for all parameters. Leave prox_head out."
        )
    learned = learn_prox or learn_rates
    if adapt == "head" and can_split(model) and not learned and query_training is None:
        body, head = body_and_head(model)
        _check_statistics(statistics, transductive)
        on_features = FewShot(head, prox, prox_head=prox_head, loss=loss, capture=capture)
        return WithBody(body, on_features, transductive, statistics, precision)
    if statistics != "task":
        raise UsageError(
            f"problem.statistics={statistics}: expected a body that all tasks share and nothing "
            "else that is learned. Set problem.adapt=head or problem=ridge, without learn_prox and "
            "learn_rates."
        )
    own = (0.0, None) if learn_prox else (prox, prox_head)
    problem: Any = FewShot(
        model, own[0], transductive, adapt, own[1], loss, query_training, precision, capture
    )
    if learn_prox:
        problem = LearnedProx(problem, prox)
    if learn_rates:
        problem = LearnedRates(problem, learn_rates == "layers", rate_steps)
    found: TrainableProblem = problem
    return found


def convex_head(
    model: nn.Module,
    loss: Literal["squared", "cross_entropy"] = "squared",
    penalty: float = 1.0,
    scale: float = 10.0,
    transductive: bool = True,
    statistics: Statistics = "task",
    prox: float = 0.0,
    precision: Precision = "full",
) -> WithBody:
    """Build a `ConvexHead` in the place of the model's head.

    Args:
        loss, penalty, scale: as in `ConvexHead`.
        transductive, statistics, precision: as in `WithBody`.
        prox: 0, since the head has its own penalty.

    Raises:
        UsageError: the options contradict each other, or the model has no body and head.
    """
    if prox:
        raise UsageError(
            f"problem.prox={prox}: expected 0, for the head learns its own penalty. Choose "
            "metagrad=implicit_closed_form (ridge) or implicit_newton, or problem.prox=0."
        )
    _check_statistics(statistics, transductive)
    body, _ = body_and_head(model)
    return WithBody(body, ConvexHead(loss, penalty, scale), transductive, statistics, precision)


def _check_statistics(statistics: str, transductive: bool) -> None:
    if statistics == "population" and transductive:
        raise UsageError(
            "problem.statistics=population: expected problem.transductive=false, by which the "
            "model is then chosen. Set problem.transductive=false."
        )
