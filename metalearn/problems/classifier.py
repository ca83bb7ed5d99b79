"""A classifier that is trained on minibatches, without what is learned about its training."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.errors import UsageError
from metalearn.problems.protocol import Meta, Params


class Classifier:
    """The part of a `StochasticProblem` that is the model's: all but the inner loss.

    An outer batch is (x, y), with labels (b,) int64. The outer loss is the mean cross-entropy.

    Args:
        model: classifies x. Its tensors are the params at which a training begins. Without running
            statistics, since these are no params.

    Raises:
        UsageError: the model has buffers of floating-point numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        if any(b.is_floating_point() for b in model.buffers()):
            raise UsageError(
                "model has floating-point buffers: expected none, for they would change from one "
                "evaluation to the next. Give track_running_stats=False to its batch norms."
            )
        self.model = model

    def init(self, meta: Meta) -> Params:
        return dict(self.model.named_parameters())

    def outer_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.predict(params, x), y)

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Return the logits of the classes, (b, classes)."""
        logits: Tensor = functional_call(self.model, params, (x,))
        return logits
