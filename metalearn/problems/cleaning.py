"""Data hyper-cleaning on minibatches: a learned weight for each training example.

minimise over meta  the mean loss on clean validation examples at params*(meta)
where               params*(meta) minimises  mean_i sigmoid(logit_i) loss_i + decay / 2 |params|^2
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.problems.classifier import Classifier
from metalearn.problems.protocol import Meta, Params


class Cleaning(Classifier):
    """A `StochasticProblem` of classification; Franceschi et al. 2017, section 5.1.

    meta is {"logits": (n,)}, one for each training example. An inner batch is (x, y, i), where i
    has the places of the examples in the training set, (b,) int64. An outer batch is (x, y).

    Args:
        model: as in `Classifier`.
        decay: the decay of all params.

    Raises:
        UsageError: the model has buffers of floating-point numbers, or the decay is negative.
    """

    def __init__(self, model: nn.Module, decay: float = 0.0) -> None:
        super().__init__(model)
        if not 0 <= decay < math.inf:
            raise UsageError(f"decay={decay}: expected a number of at least 0. Give one.")
        self.decay = decay

    def begin(self, examples: int) -> Meta:
        """Return the meta in which every training example has the weight 1/2."""
        return {"logits": next(self.model.parameters()).new_zeros(examples)}

    def inner_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        x, y, i = batch
        losses = F.cross_entropy(self.predict(params, x), y, reduction="none")
        squares = sum(p.square().sum() for p in params.values()) if self.decay else 0.0
        return (torch.sigmoid(meta["logits"][i]) * losses).mean() + self.decay / 2 * squares
