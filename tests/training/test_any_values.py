"""Whatever the options are given: they are taken, or refused in one sentence; never a traceback.

Everything is done but the work itself: configs are composed, and tasks, models and optimisers are
built and tried on each other, and a first meta-gradient measured, up to the moment when a run's
first file would be written, a study's first cell measured, or a checkpoint evaluated.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from omegaconf import OmegaConf
from tiny_run import run

from metalearn import config
from metalearn.commands.main import main
from metalearn.config.types import flatten
from metalearn.studies.frame import options
from metalearn.training.run_folder import RunFolder


class Sound(Exception):
    """The options were taken."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Commands stop where the work would begin; the path is a checkpoint's."""
    folder = tmp_path_factory.mktemp("finished") / "r"
    assert run(folder, "wandb=disabled", "steps=2", "validation.every=2") == 0

    def sound(*args: object, **options: object) -> None:
        raise Sound

    def cells(study: options.Study, *_: object) -> None:
        list(study.cells())
        raise Sound

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "start", sound)
        patch.setattr("metalearn.training.protocol.evaluate_each", sound)
        patch.setattr("metalearn.training.protocol.evaluate_ensemble", sound)
        patch.setattr("metalearn.studies.frame.run.run_study", cells)
        yield folder / "best.pt"


# Numbers at the edges of what is meaningful; what lies between them and would take long to try,
# such as a model of a billion weights, is left out.
WHOLE = [-(2**70), -1, 0, 1, 2, 3, 5, 8, 2**63, 10**30]
NUMBERS = ["0.0", "-0.0", "0.5", "1.5", "-1e-3", "1e-300", "1e300", "-1e300", "nan", "inf", "-inf"]
OTHERS = ["null", "true", "false", "''", "''''", "text", "é", "'a b'", "a/b", "../x", "'\\x00'"]
OTHERS += ["[]", "[1]", "[0,1]", "[-1]", "[1.5,x]", "[null]", "[[1]]", "[1,1]", "{}", "{a: 1}"]
OTHERS += ["${seed}", "${nothing}", "${prox}", "${.}", "a,b", "1,2", "range(3)", "x" * 300, "all"]
OTHERS += ["auto", "cpu", "cuda:7", "none", "'1'", "0x10", "1_000", "{_target_: os.system}"]
OTHERS += ["{_target_: metalearn.nn.MLP}", "os.system", "metalearn.nn.MLP", "cg", "[cg]"]
VALUES = st.sampled_from([*map(str, WHOLE), *NUMBERS, *OTHERS]) | st.text(max_size=4)

# What is built anew for each value, and takes seconds.
FEW = {
    "tasks.dataset.drawings": ["4", "0", "-1", "1.5", "null", str(10**30)],
    "tasks.dataset.seed": ["0", "-1", "x"],
    "threads": ["1", "0", "-1", "x", "null", "99999"],
    "meta_batch": ["2", "1", "0", "-1", "1.5", "null", "x", "[]"],
}
ENDLESS = {str(2**63), str(10**30), "1_000"}  # of a meta-gradient's steps and products

# So that a first meta-gradient takes a fraction of a second, where nothing else is asked for.
SMALL = {"tasks.dataset.drawings": "4", "meta_batch": "2", "threads": "1"}
SMALL |= {"model.channels": "4", "model.widths": "[4,4,4,4]"}


def value(key: str, default: object) -> SearchStrategy[str]:
    """Of any kind, or, as often, one of the option's own kind."""
    if key in FEW:
        return st.sampled_from(FEW[key])
    own = ["null"] if default is None else [str(default)]
    if isinstance(default, bool):
        own = ["true", "false"]
    elif isinstance(default, int):
        own += ["1", "2", "3", "7"]
    elif isinstance(default, float):
        own += ["0", "0.3", "1", "2.5", "1e-9"]
    values = VALUES.filter(lambda v: v not in ENDLESS) if key.startswith("metagrad.") else VALUES
    return values | st.sampled_from(own)


@cache
def defaults(*choices: str) -> dict[str, object]:
    """The options of training with these choices."""
    composed = config.compose("train", list(choices))
    return {k: v for k, v in flatten(composed).items() if "source" not in k}


def some(draw: DrawFn, options: dict[str, object], most: int = 2) -> list[str]:
    keys = draw(st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=most, unique=True))
    return [f"{key}={draw(value(key, options[key]))}" for key in keys]


def choices(group: str, leave: tuple[str, ...] = ()) -> list[str]:
    found = sorted(path.stem for path in (config.config_folder() / group).glob("*.yaml"))
    return [f"{group}={name}" for name in found if name not in leave]


@st.composite
def train_words(draw: DrawFn) -> list[str]:
    tasks = draw(st.sampled_from(["tasks=glyphs", "tasks=sinusoid"]))
    models = ["model=mlp_sinusoid"] if tasks == "tasks=sinusoid" else choices("model")
    chosen = [tasks, draw(st.sampled_from(models))]
    chosen += [draw(st.sampled_from(choices(group))) for group in ("metagrad", "optimiser")]
    options = defaults(*chosen)
    words = some(draw, options)
    given_keys = [word.partition("=")[0] for word in words]
    small = {k: v for k, v in SMALL.items() if k in options}
    kept = [f"{k}={v}" for k, v in small.items() if not any(k.startswith(g) for g in given_keys)]
    added = ["+optimiser.betas=[0.1]", "+optimiser.foo=1", "+optimiser.weight_decay=0.1", "+x=1"]
    odd = st.sampled_from(added) | st.text(max_size=12)
    extra = [draw(odd)] if draw(st.integers(0, 5)) == 5 else []
    return ["train", *chosen, "wandb=disabled", *kept, *words, *extra]


@st.composite
def study_words(draw: DrawFn) -> list[str]:
    verb = draw(st.sampled_from(["bench", "solve"]))
    name = draw(st.sampled_from(options.names(verb)))
    folder = config.config_folder()
    own = OmegaConf.merge(
        OmegaConf.load(folder / verb / f"{name}.yaml"), OmegaConf.load(folder / "study.yaml")
    )
    found = flatten(own).items()
    own_options = {k: v for k, v in found if not k.startswith(("presets", "source"))}
    return [verb, name, *some(draw, own_options)]


@st.composite
def other_words(draw: DrawFn) -> list[str]:
    verb = draw(st.sampled_from(["evaluate", "report", "data", "verb"]))
    if verb == "verb":
        return draw(
            st.lists(
                st.text(max_size=8) | st.sampled_from(["trian", "bench", "--help"]), max_size=3
            )
        )
    if verb == "data":
        names = st.sampled_from(["omniglot", "mini_imagenet", "fc100"]) | st.text(max_size=6)
        return ["data", "prepare", draw(names), f"source={draw(VALUES)}"]
    if verb == "report":
        return [verb, *some(draw, flatten(config.plain("report", [])))]
    found = flatten(config.plain("evaluate", []))
    return [verb, "checkpoint=CHECKPOINT", *some(draw, found)]


def may_succeed(words: list[str]) -> bool:
    """Without any work: a page of help, or a report of what is there."""
    helps = {"-h", "--help", "help", "--version"}
    return not words or words[0] == "report" or words == ["bench"] or not helps.isdisjoint(words)


def check(words: list[str], checkpoint: Path) -> None:
    words = [word.replace("CHECKPOINT", str(checkpoint)) for word in words]
    said, here = io.StringIO(), os.getcwd()
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = main(words)
            except Sound:
                return
        if status == 2:
            *renamed, last = said.getvalue().splitlines()
            assert all(" is now " in line for line in renamed)
            assert last.startswith("metalearn: ")
            assert list(folder.iterdir()) == []
        else:
            assert status == 0 and may_succeed(words), status
    finally:
        os.chdir(here)
        shutil.rmtree(folder)


COMMANDS = train_words() | study_words() | other_words()


@pytest.mark.parametrize("number", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_traceback(tried: Path, number: int) -> None:
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(COMMANDS)
    def commands(words: list[str]) -> None:
        check(words, tried)

    commands()
