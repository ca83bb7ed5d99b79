"""Options that pydantic checks: no value passes for another, and a mistake is one sentence."""

from __future__ import annotations

import math
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass

from metalearn.config.options import STRICT, Count, Distinct, Positive, Seed, one_of, one_sentence
from metalearn.errors import UsageError


@one_sentence
@dataclass(frozen=True, config=STRICT)
class Options:
    steps: Count = 1
    lr: Positive = 0.1
    seeds: Distinct[Seed] = (0,)
    kind: Annotated[str, one_of(("a", "b"))] = "a"

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise UsageError("steps=13: expected another number. Choose 12.")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("steps", True, "steps=True: expected a whole number."),
        ("steps", 1.0, "steps=1.0: expected a whole number."),
        ("steps", "1", "steps=1: expected a whole number."),
        ("steps", 0, "steps=0: expected at least 1."),
        ("lr", math.nan, "lr=nan: expected a finite number."),
        ("lr", 0.0, "lr=0.0: expected a number above 0."),
        ("lr", "x", "lr=x: expected a number."),
        ("seeds", [], "seeds=[]: expected at least 1 value."),
        ("seeds", [1, 1], "seeds=[1, 1]: expected no two equal values."),
        ("seeds", [0, 2**32], "seeds[1]=4294967296: expected a number below 4294967296."),
        ("seeds", 3, "seeds=3: expected a list."),
        ("kind", "c", "kind=c: expected one of a, b."),
        ("steps", 13, "steps=13: expected another number. Choose 12."),
    ],
)
def test_options_refuse_in_one_sentence(name, value, sentence):
    with pytest.raises(UsageError) as error:
        Options(**{name: value})
    assert str(error.value).startswith(sentence)


@given(
    st.integers(1, 12),
    st.floats(0, 1e300, exclude_min=True),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, unique=True),
    st.sampled_from("ab"),
)
def test_options_keep_valid_values(steps, lr, seeds, kind):
    options = Options(steps=steps, lr=lr, seeds=seeds, kind=kind)
    assert (options.steps, options.lr, list(options.seeds), options.kind) == (
        steps,
        lr,
        seeds,
        kind,
    )
