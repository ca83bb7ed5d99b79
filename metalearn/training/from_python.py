"""Training from Python: the same loop and run folder, around objects that the caller made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from metalearn.config import OBJECTS, read_defaults, run_name
from metalearn.config.types import check_type, flatten
from metalearn.errors import UsageError, nearest
from metalearn.metagrad import MetaGradient
from metalearn.parallel.ranks import process_group
from metalearn.problem import BilevelProblem, Meta
from metalearn.system.machine import use_threads
from metalearn.system.random_state import seed_all, untouched
from metalearn.tasks import Sampler
from metalearn.training import checkpoint, loop
from metalearn.training.agreement import check_same, describe_options, on_every_rank
from metalearn.training.checks import begun_by_this_job
from metalearn.training.experiment import Setup, as_leaves
from metalearn.training.forecast import SHORTER
from metalearn.training.given import (
    GivenSamplers,
    MakeOptimiser,
    check_meta,
    check_meta_gradient,
    check_methods,
    check_sampler,
    describe,
    over_leaves,
)
from metalearn.training.held_out import HeldOut, rewound
from metalearn.training.options import check_options
from metalearn.training.state import TrainingState

_NOT_OPTIONS = ("import", "init_from", "frozen", "resume", "run_dir", "device")
_OF_SAMPLERS = ("validation.seed", "test.seed")


def train(
    problem: BilevelProblem,
    meta_gradient: MetaGradient,
    meta: Meta,
    sampler: Sampler,
    optimiser: torch.optim.Optimizer | MakeOptimiser,
    *,
    run_dir: str | os.PathLike[str],
    steps: int,
    validation: Sampler | None = None,
    test: Sampler | None = None,
    resume: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train meta-parameters into the folder `run_dir`, as `metalearn train` does.

    The folder gets config.yaml, metrics.jsonl, checkpoints, summary.json and a W&B run, which stays
    offline. Under torchrun every process calls this function, and the processes share the tasks of
    a meta-step. A run that was interrupted and is resumed equals one that was not, bit for bit on a
    CPU.

    Training changes the tensors of `meta` in place. At the end they hold the chosen values: the
    best of the validation, or the last without one. The random states of the process are restored.

    Args:
        problem: any `BilevelProblem`, such as `FewShot`.
        meta_gradient: a `MetaGradient`, such as `Implicit(GradientDescent(10, lr=0.1))`.
        meta: the start, a pytree of floating-point tensors on one device.
        sampler: the training tasks, on the device of meta.
        optimiser: makes an optimiser over a list of tensors, such as
            `functools.partial(torch.optim.Adam, lr=1e-3)`; or an optimiser over the leaves of meta.
        run_dir: a folder without a run; with `resume` that of the run.
        steps: the number of meta-steps, with those of a resumed run.
        validation: the tasks that the best meta-parameters are chosen by, another object than
            `sampler`. It is taken back to its start for every validation, and at the end.
        test: the tasks of the figures in summary.json; taken back as `validation`.
        resume: True: go on with the run in `run_dir`. All arguments are as they were, except for
            `steps` and the options that `metalearn train resume=` takes.
        options: of configs/train.yaml, such as `meta_batch=16`, `wandb="disabled"` or
            `average=0.99`. A point becomes an underscore: `validation_every`, `validation_tasks`,
            `test_tasks`. `seed` is that of the random states in training, such as dropout's.

    Returns:
        The summary, as in summary.json.

    Raises:
        UsageError: an argument cannot be trained with; nothing is written then.
        TrainingStopped: a guard stopped the run, or the folder takes no more.
        TrainingInterrupted: a signal asked the run to leave; it can be resumed.
    """
    folder = Path(run_dir)
    samplers = {"train": sampler, "validation": validation, "test": test}

    def build() -> tuple[DictConfig, Setup]:
        setup = _setup(problem, meta_gradient, meta, samplers, optimiser)
        objects = {"problem": problem, "meta_gradient": meta_gradient, **samplers}
        described = {name: describe(x) for name, x in objects.items()}
        described["optimiser"] = describe(setup.optimiser(setup.leaves))
        return _config(folder, steps, setup.device, options, described), setup

    with untouched(), process_group() as ranks:
        config, setup = on_every_rank(ranks, build)
        if ranks.size > 1:
            check_same(ranks, describe_options(config))
        goes_on = ranks.on_rank_zero(lambda: _goes_on(folder, config, resume))
        use_threads(config.threads)
        seed_all(config.seed)
        state = on_every_rank(ranks, lambda: TrainingState(config, setup, ranks))
        given = setup.tasks.samplers  # type: ignore[attr-defined]
        at_start = {split: rewound(one) for split, one in given.items() if split != "train"}
        held_out = HeldOut(at_start.get("validation"), at_start.get("test"))

        def prepare() -> tuple[TrainingState, HeldOut]:
            loop.try_first_task(state)
            return state, held_out

        try:
            shorter = [name.replace(".", "_") for name in SHORTER]
            summary = loop.run(config, folder, goes_on, ranks, prepare, shorter)
        finally:
            for rewind in at_start.values():
                rewind()
        assert state.best.first is not None  # the last meta-step keeps one
        setup.load(state.best.first.meta)
    return summary


def _setup(
    problem: Any, meta_gradient: Any, meta: Any, samplers: dict[str, Any], optimiser: Any
) -> Setup:
    """Return the objects of the run.

    Raises:
        UsageError: one of them is not what is expected.
    """
    check_methods("problem", problem, "init", "inner_objective", "outer_objective")
    check_meta_gradient(meta_gradient)
    device = check_meta(meta)
    given = {split: one for split, one in samplers.items() if split == "train" or one is not None}
    for split, one in given.items():
        check_sampler("sampler" if split == "train" else split, one)
        if split != "train" and one is samplers["train"]:
            raise UsageError(
                f"{split} is the training sampler: expected a sampler of its own, since it is "
                "taken back to its first task. Make another one, with another seed."
            )
    leaves = as_leaves(meta, device)
    made = over_leaves(optimiser, leaves)
    return Setup(problem, leaves, meta_gradient, GivenSamplers(given), device, lambda leaves: made)


def _goes_on(folder: Path, config: DictConfig, resume: bool) -> bool:
    """Return True if the run in the folder is to be resumed.

    Raises:
        UsageError: `resume` asks for a run that is absent, or the folder holds a run and `resume`
            is False.
    """
    if not resume:
        return begun_by_this_job(folder, config)
    if not checkpoint.generations(folder):
        raise UsageError(
            f"resume=True, run_dir={folder}: expected the folder of a run, with a last.pt. Leave "
            "resume out for a new run."
        )
    return True


def _config(
    folder: Path, steps: int, device: torch.device, options: dict[str, Any], objects: dict[str, Any]
) -> DictConfig:
    """Return the run's config: the options of configs/train.yaml, and what the objects are.

    Raises:
        UsageError: an option is unknown, of another type or out of its range.
    """
    config = OmegaConf.create(read_defaults("train"))
    assert isinstance(config, DictConfig)
    defaults = {
        key.replace(".", "_"): (key, default)
        for key, default in flatten(config).items()
        if default is not ... and key not in (*_NOT_OPTIONS, *_OF_SAMPLERS)
    }
    for name, value in {**options, "steps": steps}.items():
        if name not in defaults:
            raise UsageError(f"{name} is no option of metalearn.train{nearest(name, defaults)}")
        key, default = defaults[name]
        check_type(f"{name}={value!r}", key, value, default)
        OmegaConf.update(config, key, value)
    config.device, config[OBJECTS] = str(device), objects
    config.name = config.name or folder.absolute().name
    config.name = run_name(config, {})
    check_options(config)
    return config
