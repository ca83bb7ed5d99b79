"""Every experiment of configs/experiment/ composes and trains, on a few tiny images of its kind."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from omegaconf import DictConfig

from metalearn import config
from metalearn.metagrad import FirstOrder, IMAMLAuthorsCode, Implicit, Reptile, Unrolled
from metalearn.nn.head import HEADS
from metalearn.tasks import ImageTasks, LabelledImages
from metalearn.training.experiment import Experiment
from metalearn.tree import leaves_of

NAMES = sorted(path.stem for path in (config.config_folder() / "experiment").glob("*.yaml"))
METHODS = {
    "maml": Unrolled,
    "fomaml": FirstOrder,
    "reptile": Reptile,
    "imaml": Implicit,
    "imaml_hf": Implicit,
    "imaml_authors_code": IMAMLAuthorsCode,
}
SETTINGS = [
    *itertools.product(("omniglot",), (5, 20), (1, 5), METHODS),
    *itertools.product(("mini_imagenet",), (5,), (1, 5), list(METHODS)[:5]),
]


@cache
def composed_once(name: str) -> DictConfig:
    return config.compose("train", [f"experiment={name}"])


def composed(name: str) -> DictConfig:
    return composed_once(name).copy()


@cache
def noise(channels: int, size: int) -> dict[str, LabelledImages]:
    """24 classes of 20 images of noise, the same in each split."""
    images = torch.randint(
        256, (480, channels, size, size), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    labels = torch.arange(24).repeat_interleave(20)
    names = tuple(f"class{i}" for i in range(24))
    return {s: LabelledImages(images, labels, names) for s in ("train", "validation", "test")}


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_gives_a_gradient_of_its_own_problem(name):
    cfg = composed(name)
    assert cfg.name == name
    cfg.model.channels = 4
    cfg.metagrad.inner.steps = min(cfg.metagrad.inner.steps, 2)
    cfg.tasks.dataset = {"_target_": "metalearn.tasks.glyphs.glyphs", "_partial_": True}
    experiment = Experiment.of(cfg)
    assert isinstance(experiment.tasks, ImageTasks)
    experiment.tasks._splits = noise(cfg.tasks.channels, cfg.tasks.image_size)
    task = experiment.tasks.sampler("train", 0, "cpu").sample(1)
    experiment.check(task)
    result = experiment.metagrad(experiment.problem, experiment.meta, task)
    assert any(bool(g.any()) for g in leaves_of(result.grads))


@pytest.mark.parametrize("head", HEADS)
def test_a_training_takes_each_head(head):
    cfg = config.compose("train", ["metagrad=imaml", f"model.head={head}", "model.channels=4"])
    experiment = Experiment.of(cfg)
    assert isinstance(experiment.tasks, ImageTasks)
    experiment.tasks._splits = noise(1, 28)
    experiment.check(experiment.tasks.sampler("train", 0, "cpu").sample(1))


@pytest.mark.parametrize(("dataset", "ways", "shots", "method"), SETTINGS)
def test_each_cell_of_the_published_tables_has_its_experiment(dataset, ways, shots, method):
    cfg = composed(f"{dataset}_{ways}w{shots}s_{method}")
    assert (cfg.tasks.ways, cfg.tasks.shots, cfg.steps) == (ways, shots, 60000)
    assert cfg.tasks.dataset._target_.endswith(f".{dataset}")
    assert cfg.tasks.rotations == (dataset == "omniglot")
    assert cfg.metagrad._target_.endswith(METHODS[method].__name__)
    assert (cfg.problem.prox > 0) == (METHODS[method] is Implicit)
    assert cfg.model.ways == ways and cfg.model.strided == (dataset == "omniglot")


@pytest.mark.parametrize("shots", [1, 5])
def test_the_papers_hyper_parameters(shots):
    for method in ("maml", "fomaml"):
        five, twenty = (composed(f"omniglot_{ways}w{shots}s_{method}") for ways in (5, 20))
        assert (five.meta_batch, five.metagrad.inner.steps, five.metagrad.inner.lr) == (32, 1, 0.4)
        assert (twenty.meta_batch, twenty.metagrad.inner.steps) == (16, 5)
        assert twenty.metagrad.inner.lr == 0.1 and twenty.optimiser.lr == 1e-3
    for method in ("imaml", "imaml_hf", "imaml_authors_code"):
        five, twenty = (composed(f"omniglot_{ways}w{shots}s_{method}") for ways in (5, 20))
        for cfg in (five, twenty):
            assert cfg.metagrad.linear_solver.max_iters == 5
            assert cfg.tasks.queries == cfg.tasks.test_queries == shots
            assert (cfg.metagrad.prox if method.endswith("code") else cfg.problem.prox) == 2.0
            assert cfg.optimiser.eps == (1e-3 if method.endswith("code") else 1e-8)
        if method != "imaml_hf":
            assert (five.metagrad.inner.steps, twenty.metagrad.inner.steps) == (16, 25)
            assert five.metagrad.inner.lr == twenty.metagrad.inner.lr == 0.1


def test_reptile_trains_on_more_shots_than_it_is_tested_with():
    cfg = composed("omniglot_5w1s_reptile")
    cfg.tasks.dataset = {"_target_": "metalearn.tasks.glyphs.glyphs", "_partial_": True}
    tasks = Experiment.of(cfg).tasks
    assert isinstance(tasks, ImageTasks)
    tasks._splits = noise(1, 28)
    assert tasks.sampler("train", 0, "cpu").sample(1).support_x.shape[1] == 50
    assert tasks.sampler("test", 0, "cpu").sample(1).support_x.shape[1] == 5
