"""The distillation of data, with the images as meta-parameters."""

from __future__ import annotations

from torch import Tensor, nn

from metalearn.problems.protocol import Meta
from metalearn.problems.training_task import Training


class Distillation(Training):
    """The images such that a model trained on them alone does well on real ones (Wang et al. 2018).

    meta = {"images": (n, ...)}, one for each of `labels`. Neither the start nor the outer objective
    depends on meta, so that a first-order meta-gradient does not reach it.
    """

    def __init__(self, model: nn.Module, labels: Tensor, decay: float) -> None:
        super().__init__(model, decay)
        self.labels = labels

    def examples(self, meta: Meta) -> tuple[Tensor, Tensor]:
        return meta["images"], self.labels
