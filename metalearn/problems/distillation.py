"""Data distillation as a bilevel problem: the images are the meta-parameters."""

from __future__ import annotations

from torch import Tensor, nn

from metalearn.problem import Meta
from metalearn.problems.training_task import Training


class Distillation(Training):
    """Images such that a model trained on them alone does well on real ones (Wang et al. 2018).

    meta = {"images": (n, ...)}, one for each of `labels`. No term of it is in the start or in the
    outer objective: a first-order meta-gradient does not reach it.
    """

    def __init__(self, model: nn.Module, labels: Tensor, decay: float) -> None:
        super().__init__(model, decay)
        self.labels = labels

    def examples(self, meta: Meta) -> tuple[Tensor, Tensor]:
        return meta["images"], self.labels
