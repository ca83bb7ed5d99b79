"""The loss of predictions, by the type of their targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metalearn.autograd import concrete
from metalearn.errors import UsageError


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return each task's mean loss, (T,): cross-entropy for integer targets, else squared error.

    Raises:
        UsageError: the targets have another shape than the outputs, or, for labels, than the
            outputs without their last axis.
    """
    tasks, regression = len(targets), targets.is_floating_point()
    shape = predictions.shape if regression else predictions.shape[:2]
    if targets.shape != shape:
        raise UsageError(
            f"targets of shape {tuple(targets.shape)} and type {targets.dtype}: expected "
            f"{tuple(shape)} beside outputs {tuple(predictions.shape)}. Reshape them, or give "
            "class labels as integers (T, n)."
        )
    if regression:
        return F.mse_loss(predictions, targets, reduction="none").reshape(tasks, -1).mean(dim=1)
    losses = F.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(tasks, -1).mean(dim=1)


def refuse_float_classes(targets: Tensor) -> None:
    """Raise UsageError if floating-point targets are both 0.0 and 1.0, and nothing else."""
    if not targets.is_floating_point() or not concrete():
        return
    zero, one = targets == 0, targets == 1
    if zero.any() and one.any() and (zero | one).all():
        raise UsageError(
            "targets are all 0.0 or 1.0: expected integer class labels (T, n), for the "
            "cross-entropy. Give y.long(), or y.argmax(-1) of one-hot rows; or set "
            "FewShot(loss='squared_error')."
        )
