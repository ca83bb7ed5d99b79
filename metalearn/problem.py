"""The contract of a problem: its protocols, and the few-shot problem of MAML and iMAML."""

from metalearn.problems.few_shot import FewShot, try_inputs
from metalearn.problems.prediction_loss import prediction_loss
from metalearn.problems.protocol import (
    BilevelProblem,
    CompositeProblem,
    FeatureProblem,
    Meta,
    Params,
    PredictingProblem,
    RatedProblem,
    ReducedProblem,
    TrainableProblem,
    in_full_precision,
    query_predictions,
)
from metalearn.problems.stochastic import FullBatch, RatedStochasticProblem, StochasticProblem

__all__ = [
    "BilevelProblem",
    "CompositeProblem",
    "FeatureProblem",
    "FewShot",
    "FullBatch",
    "Meta",
    "Params",
    "PredictingProblem",
    "RatedProblem",
    "RatedStochasticProblem",
    "ReducedProblem",
    "StochasticProblem",
    "TrainableProblem",
    "in_full_precision",
    "prediction_loss",
    "query_predictions",
    "try_inputs",
]
