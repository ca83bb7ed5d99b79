"""The ranges of training's own options; what an option's group builds checks its own."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from metalearn.config.options import STRICT, Count, Positive, Seed, one_sentence
from metalearn.errors import UsageError
from metalearn.training.tracking import Labels

MOST_TASKS = 100_000
"""The most tasks of a meta-step; 5-way 1-shot tasks of Omniglot then take 3 GB."""

Sample = Annotated[int, Ge(2)]
"""A number of tasks; one task has no interval."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class TrainOptions:
    """The options of `metalearn train` that are plain values with a range."""

    seed: Seed
    steps: Count
    meta_batch: Annotated[int, Ge(1), Le(MOST_TASKS)]
    micro_batches: Count | None
    schedule: Literal["constant", "cosine"]
    clip_norm: Positive | None
    average: Annotated[float, Ge(0), Lt(1)]
    wandb: Literal["offline", "online", "disabled"]
    checkpoint_every: Count
    keep_checkpoints: Count
    keep_best: Count
    validation_every: Count = Field(alias="validation.every")
    validation_tasks: Sample = Field(alias="validation.tasks")
    validation_seed: Seed = Field(alias="validation.seed")
    test_tasks: Sample = Field(alias="test.tasks")
    test_seed: Seed = Field(alias="test.seed")

    def __post_init__(self) -> None:
        if self.micro_batches is not None and self.micro_batches > self.meta_batch:
            raise UsageError(
                f"micro_batches={self.micro_batches}: expected at most "
                f"meta_batch={self.meta_batch}. Leave micro_batches= out."
            )


def check_options(config: DictConfig) -> None:
    """Check the ranges of training's options.

    Raises:
        UsageError: a value is out of its range.
    """
    fields: dict[str, FieldInfo] = TrainOptions.__pydantic_fields__  # type: ignore[attr-defined]
    names = [field.alias or name for name, field in fields.items()]
    TrainOptions(**{name: OmegaConf.select(config, name) for name in names})
    Labels.of(config)
