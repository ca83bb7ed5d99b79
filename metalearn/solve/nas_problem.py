"""Architecture search as a bilevel problem: the shares of the operations are meta-parameters."""

from __future__ import annotations

from torch import Tensor

from metalearn.problem import Meta, Params
from metalearn.solve.image_splits import Labelled
from metalearn.solve.nas_model import MixedCell
from metalearn.solve.training import Training


class Search(Training):
    """Mixtures such that a network trained with them does well on a task's own images (DARTS, Liu
    et al. 2019).

    meta = `cell.alphas()`, params = `cell.weights()`. The outer objective depends on meta directly,
    so that every meta-gradient applies: with a descent of one step `FirstOrder` is DARTS' first
    order and `Unrolled(truncate=1)` its second.
    """

    def __init__(self, cell: MixedCell, train: Labelled, decay: float) -> None:
        super().__init__(cell.network, decay)
        self.cell = cell
        self.train = train

    def examples(self, meta: Meta) -> tuple[Tensor, Tensor]:
        return self.train.x, self.train.y

    def predict(self, params: Params, meta: Meta, x: Tensor) -> Tensor:
        return super().predict(self.cell.parameters(params, meta), meta, x)
