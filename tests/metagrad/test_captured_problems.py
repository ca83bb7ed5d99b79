"""Captured inner gradients of problems of one's own, and those that cannot be captured."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured_runs import METHODS, STEPS, agree, gradients
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metalearn import captured
from metalearn.captured import Captured
from metalearn.metagrad import FirstOrder


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Problem:
    """minimise |a params - meta|^2 / 2 in params, where `a` is read as `how` says."""

    def __init__(self, how: str) -> None:
        self.how, self.calls = how, 0
        self.captured: Captured | None = Captured()
        self.factor = torch.tensor(2.0, dtype=torch.double)

    def capture_key(self) -> Hashable:
        return self.how

    def init(self, meta: Any, task: Any) -> dict[str, Tensor]:
        return {"x": meta["m"].expand(len(task), -1) * 1.0}

    def inner_objective(self, params: Any, meta: Any, task: Any) -> Tensor:
        self.calls += 1
        factor: Any = 2.0
        if self.how == "a number of a tensor":
            factor = 2.0 if bool((params["x"] < 1e9).all()) else 1.0
        if self.how == "a list":
            factor = params["x"].tolist()[0][0]
        if self.how == "an array":
            factor = float(params["x"].detach().numpy()[0, 0])
        if self.how == "a number elsewhere":
            factor = float(self.factor)
        if self.how == "a count":
            factor = float(len(params["x"].unique()))
        if self.how == "a mask":
            factor = 2.0 + 0.1 * params["x"][params["x"] > -1e9].tanh().mean()
        if self.how == "a tensor elsewhere":
            factor = self.factor
        if self.how == "counts":
            factor = 1.0 + self.calls % 7
        given = getattr(task, "given", task).sum(1)
        return 0.5 * (factor * params["x"] - meta["m"]).square().sum(1) + given

    def outer_objective(
        self, params: Any, meta: Any, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return params["x"].square().sum(1), {}


META = {"m": torch.tensor([1.0, 2.0], dtype=torch.double)}


TASK = torch.ones(3, 2, dtype=torch.double)


class Tasks:
    """Tasks in a class that torch's pytree does not know."""

    given = TASK

    def __len__(self) -> int:
        return len(self.given)


def uncaptured(how: str) -> Problem:
    problem = Problem(how)
    problem.captured = None
    return problem


def own_gradients(problem: Problem, task: Any) -> list[list[Tensor]]:
    return gradients(METHODS["implicit"], problem, [task] * 4, META)


NUMBER = "it reads a number from a tensor"
SHAPE = "the shape of a tensor depends on the numbers in another"
REASONS = {
    "a number of a tensor": NUMBER,
    "a list": NUMBER,
    "an array": NUMBER,
    "a number elsewhere": NUMBER,
    "a count": SHAPE,
    "a mask": SHAPE,
    "a tensor elsewhere": "it reads a tensor that is in neither params, meta nor task",
}


@pytest.mark.parametrize("how", REASONS)
def test_a_problem_that_cannot_be_captured_runs_as_it_is_and_says_so(how: str) -> None:
    with pytest.warns(UserWarning, match=REASONS[how]) as seen:
        found = own_gradients(Problem(how), TASK)
    assert len(seen) == 1
    agree(found, own_gradients(uncaptured(how), TASK))


def test_tasks_of_an_unknown_class_run_as_they_are_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="holds a Tasks, expected tensors") as seen:
        found = own_gradients(Problem("plain"), Tasks())
    assert len(seen) == 1
    agree(found, own_gradients(uncaptured("plain"), Tasks()))


def test_a_problem_whose_code_changes_what_it_does_runs_as_it_is() -> None:
    with pytest.warns(UserWarning, match="its captured operations give other numbers"):
        FirstOrder(STEPS)(Problem("counts"), META, TASK)


def test_random_numbers_that_the_gradient_does_not_need_are_drawn_all_the_same() -> None:
    """The passes forward and backward would draw other masks, if one of them left them out."""

    class Noisy(Problem):
        def inner_objective(self, params: Any, meta: Any, task: Any) -> Tensor:
            value = super().inner_objective(params, meta, task) + torch.rand(3)
            return value + F.dropout(params["x"], 0.5).sum(1)

    for name in ("implicit", "unrolled", "unrolled, checkpointed", "unrolled, truncated"):
        problem, plain = Noisy("plain"), Noisy("plain")
        plain.captured = None
        found, expected = (
            gradients(METHODS[name], own, [TASK] * 4, META) for own in (problem, plain)
        )
        agree(found, expected)


def test_writing_in_place_through_views_is_captured() -> None:
    class Written(Problem):
        def inner_objective(self, params: Any, meta: Any, task: Any) -> Tensor:
            both = params["x"] * 1.0
            both[:, 0].mul_(3.0)
            torch._foreach_add_([both], 1.0)
            return 0.5 * (both - meta["m"]).square().sum(1)

    problem, plain = Written("plain"), Written("plain")
    plain.captured = None
    agree(own_gradients(problem, TASK), own_gradients(plain, TASK))


def test_more_shapes_than_are_kept_give_the_same_numbers_and_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captured, "MOST_PROGRAMS", 3)
    problem = Problem("plain")
    tasks = [torch.ones(n, 2, dtype=torch.double) for n in (2, 3, 2, 3)]
    with pytest.warns(UserWarning, match="more than 3 sets of shapes") as seen:
        found = gradients(METHODS["implicit"], problem, tasks, META)
    assert len(seen) == 1
    agree(found, gradients(METHODS["implicit"], uncaptured("plain"), tasks, META))


def test_a_problem_of_ones_own_is_captured() -> None:
    problem = Problem("plain")
    own_gradients(problem, TASK)
    problem.calls = 0
    found = gradients(FirstOrder(STEPS), problem, [TASK], META)
    # The figures at the end; the steps are captured.
    assert problem.calls == 1
    agree(found, gradients(FirstOrder(STEPS), uncaptured("plain"), [TASK], META))


def test_under_a_mode_of_torch_the_problem_runs_as_it_is() -> None:
    problem = Problem("plain")
    own_gradients(problem, TASK)
    problem.calls = 0
    with FlopCounterMode(display=False):
        gradients(FirstOrder(STEPS), problem, [TASK], META)
    assert problem.calls == 1 + STEPS.steps


def test_a_compiled_gradient_equals_the_one_that_is_run_as_it_is() -> None:
    problem, method = Problem("plain"), FirstOrder(STEPS)  # which compiles one part alone
    problem.captured = Captured(compiled=True)
    found, expected = (
        gradients(method, own, [TASK] * 4, META) for own in (problem, uncaptured("plain"))
    )
    agree(found, expected)
