"""A body that all tasks share: dense passes equal those task by task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.nn import MLP, Body, Conv4, TaskBatched, body_and_head


@pytest.fixture
def conv_body() -> nn.Sequential:
    torch.manual_seed(0)
    body, _ = body_and_head(Conv4(5, channels=4, head="zero", feature_norm=True))
    return body.double()


def images(tasks: int, n: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(tasks, n, 1, 28, 28, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("transductive", [True, False])
def test_body_by_task_equals_separate_parameters(
    conv_body: nn.Sequential, transductive: bool
) -> None:
    params = dict(conv_body.named_parameters())
    support, query = images(3, 4, 1), images(3, 6, 2)
    dense = Body(conv_body)(params, support, query, transductive)
    each = {name: p.expand(3, *p.shape) for name, p in params.items()}
    apart = TaskBatched(conv_body)
    if transductive:
        expected = torch.cat([apart(each, support), apart(each, query)], dim=1)
    else:
        expected = apart(each, torch.cat([support, query], dim=1), statistics_from=4)
    torch.testing.assert_close(dense, expected, rtol=1e-10, atol=1e-12)


def test_population_body_in_training_normalises_all_images_together(
    conv_body: nn.Sequential,
) -> None:
    params = dict(conv_body.named_parameters())
    support, query = images(2, 3, 1), images(2, 5, 2)
    found = Body(conv_body, "population")(params, support, query, False)
    together = conv_body(torch.cat([support, query], dim=1).flatten(0, 1))
    torch.testing.assert_close(found.flatten(0, 1), together)


def test_settled_body_predicts_each_image_by_itself(conv_body: nn.Sequential) -> None:
    params = dict(conv_body.named_parameters())
    body = Body(conv_body, "population").settled(params, images(1, 40, 3)[0])
    support, query = images(2, 3, 1), images(2, 5, 2)
    found = body(params, support, query, False)
    other = query.clone()
    other[:, 1:] = torch.rand_like(other[:, 1:])
    again = body(params, support, other, False)
    torch.testing.assert_close(again[:, :4], found[:, :4], rtol=0, atol=1e-14)


def test_settled_statistics_are_those_of_the_images() -> None:
    """A single batch norm takes the mean and the unbiased variance, as torch keeps them."""
    norm = nn.Sequential(nn.BatchNorm1d(3, affine=False, track_running_stats=False)).double()
    g = torch.Generator().manual_seed(0)
    sample = 2 + 3 * torch.randn(50, 3, generator=g, dtype=torch.float64)
    x = torch.randn(1, 4, 3, generator=g, dtype=torch.float64)
    found = Body(norm, "population").settled({}, sample)({}, x, x[:, :0], False)
    expected = (x - sample.mean(0)) / (sample.var(0) + norm[0].eps).sqrt()
    torch.testing.assert_close(found, expected)


def test_body_and_head_keep_names() -> None:
    model = MLP([4, 3, 2])
    body, head = body_and_head(model)
    names = [name for name, _ in model.named_parameters()]
    assert [n for part in (body, head) for n, _ in part.named_parameters()] == names
    with pytest.raises(UsageError, match="a body and a head"):
        body_and_head(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="statistics="):
        Body(model, "running")  # type: ignore[arg-type]
