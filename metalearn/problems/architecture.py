"""The search for an architecture, with the shares of the operations as meta-parameters."""

from __future__ import annotations

from torch import Tensor

from metalearn.nn.mixed_cell import MixedCell
from metalearn.problems.protocol import Meta, Params
from metalearn.problems.training_task import Training
from metalearn.tasks.image_splits import Labelled


class Search(Training):
    """The search for mixtures with which a trained network does well on a task's own images.

    DARTS, Liu et al. 2019. meta = `cell.alphas()`, params = `cell.weights()`. The outer objective
    depends on meta directly, so that every meta-gradient applies. With a descent of one step,
    `FirstOrder` is DARTS' first order and `Unrolled(truncate=1)` its second.
    """

    def __init__(self, cell: MixedCell, train: Labelled, decay: float) -> None:
        super().__init__(cell.network, decay)
        self.cell = cell
        self.train = train

    def examples(self, meta: Meta) -> tuple[Tensor, Tensor]:
        return self.train.x, self.train.y

    def predict(self, params: Params, meta: Meta, x: Tensor) -> Tensor:
        return super().predict(self.cell.parameters(params, meta), meta, x)
