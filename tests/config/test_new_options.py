"""Runs of an earlier release go on after options and groups were added to configs/."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tiny_run import TINY, rows, timeless

from metalearn import config
from metalearn.commands.main import main
from metalearn.config.canonical import canonicalise, select_changed
from metalearn.config.old_names import rename_saved
from metalearn.studies.frame.study_run import Budget, StudyRun
from metalearn.training import checkpoint
from metalearn.training.loop import train
from metalearn.training.tracking import method_of

DATA = Path(__file__).parent.parent / "data"
RUN = DATA / "run_94ad32c.yaml"
"""The config.yaml of `metalearn train` with `TINY`, steps=3 and wandb=disabled, by that commit."""
STUDY_RUN = DATA / "study_run_94ad32c.yaml"
"""The config.yaml of `StudyRun.of` with `STUDY_WORDS`, by that commit."""
STUDY_FOLDER = "omniglot_5w1s_fomaml-seed0-f3cbe864"
"""The folder of that run, whose name the commit made of all options."""

TRAIN_WORDS = [*(word for word in TINY if not word.startswith("steps=")), "wandb=disabled"]
STUDY_WORDS = ["experiment=omniglot_5w1s_fomaml", "tasks=glyphs", "tasks.dataset.drawings=4"]
STUDY_WORDS += ["model.channels=4", "meta_batch=2", "steps=4", "validation.every=2"]
STUDY_WORDS += ["validation.tasks=4"]
ADDED = "added: 3\nadded_group:\n  depth: 2\n  kind: none\n"


def earlier_run(folder: Path, source: Path) -> Path:
    """Make the run of a stored config; its files hold that config, as of before any new option."""
    train(config.saved(source, "train"), folder)
    stored = OmegaConf.load(source)
    assert isinstance(stored, DictConfig)
    if stored.run_dir is not None:
        stored.run_dir = str(folder)
    OmegaConf.save(stored, folder / "config.yaml")
    for path in folder.glob("*.pt"):
        checkpoint.save(path, {**checkpoint.load(path), "config": OmegaConf.to_container(stored)})
    return folder


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    return earlier_run(tmp_path_factory.mktemp("earlier") / "r", RUN)


@pytest.fixture(scope="module")
def earlier_study(tmp_path_factory):
    return earlier_run(tmp_path_factory.mktemp("study") / STUDY_FOLDER, STUDY_RUN)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A later release's configs/: with an option, a group of options and an optional choice."""
    folder = shutil.copytree(config.config_folder(), tmp_path / "configs")
    edit(folder / "train.yaml", "\nsteps: ", f"\n{ADDED}steps: ")
    edit(folder / "train.yaml", "  - experiment: null", "  - experiment: null\n  - extra: null")
    (folder / "extra").mkdir()
    (folder / "extra" / "some.yaml").write_text("_target_: metalearn.linear_solve.CG\n")
    own = config.config_folder
    for module in list(sys.modules.values()):
        if vars(module).get("config_folder") is own:
            monkeypatch.setattr(module, "config_folder", lambda: folder)
    config.groups.cache_clear()
    yield folder
    config.groups.cache_clear()


def test_a_run_is_resumed_with_the_options_it_lacks_and_equals_one_in_one_go(
    earlier, tmp_path, configs
):
    folder, whole = shutil.copytree(earlier, tmp_path / "r"), tmp_path / "whole"
    assert main(["train", f"resume={folder}", "steps=6"]) == 0
    assert main(["train", *TRAIN_WORDS, "steps=6", f"run_dir={whole}"]) == 0
    assert timeless(folder) == timeless(whole)
    one, other = (checkpoint.load(path / "last.pt") for path in (folder, whole))
    assert all(torch.equal(one["meta"][name], x) for name, x in other["meta"].items())
    completed = OmegaConf.load(folder / "config.yaml")
    assert completed.added == 3 and completed.added_group == {"depth": 2, "kind": "none"}
    before = rename_saved(OmegaConf.load(earlier / "config.yaml"))
    assert {key: completed[key] for key in before if key != "steps"} == {
        key: before[key] for key in before if key != "steps"
    }


def test_a_checkpoint_is_evaluated_without_the_options_it_lacks(earlier, tmp_path, configs):
    out = tmp_path / "evaluation.json"
    words = [f"checkpoint={earlier / 'best.pt'}", "tasks=8", "seed=2000", f"out={out}"]
    assert main(["evaluate", *words]) == 0
    summary = json.loads((earlier / "summary.json").read_text())
    assert str(summary["test_accuracy"]) in out.read_text()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("added: some", "added=some; expected a whole number"),
        ("added: null", "added=None; expected a whole number"),
        ("added: ${oc.env:HOME}", "calls a resolver"),
        ("added_group: 3", "lacks the options of added_group"),
        ("added_group: {depth: x}", "added_group.depth=x; expected a whole number"),
        ("extra: 3", "lacks extra"),
    ],
)
def test_a_wrong_value_of_a_new_option_is_refused(
    earlier, tmp_path, configs, capsys, line, sentence
):
    folder = shutil.copytree(earlier, tmp_path / "r")
    edit(folder / "config.yaml", "steps: 3\nmeta_batch", f"steps: 3\n{line}\nmeta_batch")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["train", f"resume={folder}", "steps=6"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_labels_for_wandb_make_no_other_run(earlier, earlier_study, tmp_path):
    folder = shutil.copytree(earlier, tmp_path / "r")
    assert main(["train", f"resume={folder}", "steps=4", "tracking.tags=[a,b]"]) == 0
    stored = OmegaConf.load(folder / "config.yaml")
    assert stored.tracking.tags == ["a", "b"] and stored.tracking.group is None
    shutil.copytree(earlier_study, tmp_path / STUDY_FOLDER)
    assert study_run(tmp_path, "tracking.group=x").folder == tmp_path / STUDY_FOLDER


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["metagrad=anil"], "anil"),
        (["experiment=omniglot_5w1s_imaml_hf"], "imaml_hf"),
        (["tracking.method=mine"], "mine"),
        (["metagrad=reptile", "metagrad._target_=metalearn.metagrad.FirstOrder"], "FirstOrder"),
    ],
)
def test_the_method_is_the_name_in_configs_or_the_class(words, method):
    assert method_of(config.compose("train", words)) == method


def test_a_job_that_torchrun_restarts_finds_its_run(tmp_path, configs, monkeypatch):
    folder = earlier_run(tmp_path / "r", RUN)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    words = ["train", *TRAIN_WORDS, f"run_dir={folder}", "steps=5"]
    assert main([*words, "added=4"]) == main([*words, "metagrad.damping=0.1"]) == 2
    assert len(rows(folder)) == 3
    assert main(words) == 0
    assert len(rows(folder)) == 5


def test_a_study_finds_its_run_and_goes_on_with_it(earlier_study, tmp_path, configs):
    shutil.copytree(earlier_study, tmp_path / "a" / STUDY_FOLDER)
    run, whole = study_run(tmp_path / "a"), study_run(tmp_path / "b")
    assert run.folder.name == STUDY_FOLDER
    run.train(Budget(6))
    whole.train(Budget(6))
    assert timeless(run.folder) == timeless(whole.folder)
    # Completed by now, the run is found all the same; a run with the option changed is another.
    assert study_run(tmp_path / "a").folder == run.folder
    for word in ("added=4", "added_group.depth=1", "metagrad.inner.momentum=0.5", "seed=1"):
        assert study_run(tmp_path / "a", word).folder != run.folder


def study_run(root: Path, *words: str) -> StudyRun:
    return StudyRun.of(root, [*STUDY_WORDS, *words], torch.device("cpu"))


def stored(root: Path, text: str) -> Path:
    folder = root / STUDY_FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return folder


def test_an_argument_at_its_constructors_default_may_be_absent(tmp_path):
    text = STUDY_RUN.read_text()
    for line in ("    momentum: 0.0\n", "    tol: null\n", "  eps: 1.0e-08\n", "  norm: batch\n"):
        assert line in text
        folder = stored(tmp_path, text.replace(line, ""))
        assert study_run(tmp_path).folder == folder
        folder = stored(tmp_path, text.replace(line, line.partition(":")[0] + ": 0.5\n"))
        assert study_run(tmp_path).folder != folder
    # 0.001 is torch's own default of lr, and no default of GradientDescent's steps.
    assert study_run(tmp_path, "optimiser.lr=0.002").folder != folder
    stored(tmp_path, text.replace("    steps: 1\n", ""))
    assert study_run(tmp_path).folder != folder


def test_a_folder_whose_config_cannot_be_used_is_no_match(tmp_path):
    text = STUDY_RUN.read_text()
    folder = stored(tmp_path, text)
    assert study_run(tmp_path).folder == folder
    for damaged in ("a: [1", "seed: 0", "", text.replace("metalearn.nn.Conv4", "os.system")):
        stored(tmp_path, damaged)
        assert study_run(tmp_path).folder != folder


def test_a_folder_of_the_same_name_with_another_config_is_left_alone(tmp_path, configs):
    run = study_run(tmp_path)
    run.folder.mkdir()
    OmegaConf.save(run.config, run.folder / "config.yaml", resolve=True)
    edit(configs / "train.yaml", "explosion_factor: 100.0", "explosion_factor: 50.0")
    import_module("metalearn.config.compose")._composed.cache_clear()
    other = study_run(tmp_path)
    assert other.folder != run.folder
    assert study_run(tmp_path, "explosion_factor=100.0").folder == run.folder


def test_an_optional_choice_of_null_is_none(configs):
    words = [*STUDY_WORDS, "wandb=disabled"]
    without = config.compose("train", words)
    assert canonicalise(config.compose("train", [*words, "extra=null"])) == canonicalise(without)
    chosen = config.compose("train", [*words, "extra=some"])
    assert canonicalise(chosen) != canonicalise(without)
    null = config.checked({**OmegaConf.to_container(without), "extra": None}, "it", "train")
    assert canonicalise(null) == canonicalise(without)


def test_options_changed_are_told_in_groups():
    defaults = {"a": 1, "b": {"c": 2, "d": True}, "e": None}
    assert select_changed({"a": 1, "b": {"c": 2, "d": True}, "e": None}, defaults) == {}
    assert select_changed({"b": {"c": 2, "d": 1}, "f": None}, defaults) == {
        "b": {"d": 1},
        "f": None,
    }
