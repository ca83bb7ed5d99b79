"""Nothing is called for a config but what configs are for, wherever the config comes from."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tiny_run import run
from torch import nn

from metalearn.commands.main import main
from metalearn.config import config_folder
from metalearn.config.build import build
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.metagrad import Implicit, MetaGradient
from metalearn.training import checkpoint

FORBIDDEN = [
    *("os.system", "builtins.eval", "subprocess.Popen", "posix.system", "shutil.rmtree"),
    *("torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "torch.save"),
    *("torch.jit.load", "torch.multiprocessing.spawn", "torch.ops.load_library"),
    # a name of ours or torch's that leads elsewhere
    *(
        "metalearn.system.files.os.system",
        "metalearn.nn.conv4.torch.hub.load",
        "torch.nn.modules.os",
    ),
    *("metalearn.studies.soak.study.subprocess.Popen", "torch.optim.optimizer.functools.partial"),
    # ours, and not made for configs
    *(
        "metalearn.commands.main.main",
        "metalearn.system.files.replace_text",
        "metalearn.tasks.cache.cached",
    ),
    *("metalearn.tasks.l2l.import_learn2learn", "metalearn.training.tracking.Tracker"),
    *("torch.nn.init.zeros_", "torch.nn.functional.relu", "metalearn.nn", "metalearn.nn.Nothing"),
    *("metalearn.nn..MLP", "metalearn.nn.MLP ", "metalearn.nnx.MLP", "", 3, None, ["os.system"]),
]


@pytest.mark.parametrize("target", FORBIDDEN, ids=str)
def test_other_targets_are_refused(target, monkeypatch):
    monkeypatch.setattr("hydra.utils.instantiate", None)  # it is not come to that
    for config in (
        {"_target_": target},
        {"_target_": "metalearn.nn.MLP", "sizes": {"_target_": target}},
        {"_target_": "metalearn.nn.MLP", "sizes": [784, {"a": [{"_target_": target}]}]},
        {"_target_": "metalearn.metagrad.Implicit", "inner": {"_target_": target, "steps": 1}},
    ):
        with pytest.raises(UsageError, match="not built from a config"):
            build(OmegaConf.create(config))


def test_a_target_by_way_of_another_option_is_refused():
    config = OmegaConf.create({"a": {"_target_": "${b}"}, "b": "os.system"})
    with pytest.raises(UsageError, match=r"_target_=os\.system"):
        build(config.a)
    # What is no interpolation the first time stays none.
    config = OmegaConf.create({"a": {"_target_": "\\${b}"}, "b": "os.system"})
    with pytest.raises(UsageError, match="not built"):
        build(config.a)
    config = {"_target_": "metalearn.nn.MLP", "sizes": [784, "${oc.env:HOME}", 5]}
    with pytest.raises(UsageError, match="sizes="):
        build(config)
    with pytest.raises(UsageError, match=r"^\$\{oc.env:HOME\} refers"):
        build({"_target_": "torch.nn.Linear", "device": "${oc.env:HOME}"})


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("inner", "metalearn.nn.MLP"),
        ("linear_solver", "metalearn.inner.GradientDescent"),
        ("preconditioner", "torch.nn.Linear"),
        ("dataset", "metalearn.studies.deq.study.DEQStudy"),
    ],
)
def test_what_takes_an_object_of_one_package_takes_no_other(name, target):
    config = {"_target_": "metalearn.metagrad.Implicit", name: {"_target_": target}}
    with pytest.raises(
        UsageError,
        match=rf"{target} .* expected a class of metalearn\.\w+, or of a module of yours",
    ):
        build(config)


def test_every_target_that_the_configs_have_is_built_from(tmp_path):
    targets = set()

    def walk(node):
        if isinstance(node, dict):
            targets.add(node.get("_target_"))
            for value in node.values():
                walk(value)

    for path in config_folder().rglob("*.yaml"):
        walk(yaml.safe_load(path.read_text()))
    targets.discard(None)
    assert len(targets) > 25
    for target in targets:
        assert callable(build({"_target_": target, "_partial_": True}))


def test_what_is_built_is_of_the_kind_that_was_asked_for():
    inner = {"_target_": "metalearn.inner.GradientDescent", "steps": 2, "lr": 0.1}
    made = build({"_target_": "metalearn.metagrad.Implicit", "inner": inner}, MetaGradient)
    assert isinstance(made, Implicit) and made.inner == GradientDescent(2, 0.1)
    assert build({"_target_": "torch.nn.Linear", "_args_": [2, 3]}).weight.shape == (3, 2)
    with pytest.raises(UsageError, match="no Module"):
        build(inner, nn.Module)
    with pytest.raises(UsageError, match="with _partial_"):
        build(inner | {"_partial_": True}, nn.Module)
    with pytest.raises(UsageError, match="names no _target_"):
        build({"steps": 2})


def test_a_constructors_refusal_is_the_users():
    with pytest.raises(UsageError, match=r"^lr=-1|steps"):
        build({"_target_": "metalearn.inner.GradientDescent", "steps": 1, "lr": -1.0})
    with pytest.raises(UsageError, match=r"GradientDescent cannot be built: .*unexpected keyword"):
        build({"_target_": "metalearn.inner.GradientDescent", "steps": 1, "lr": 0.1, "x": 1})


# --- configs that were saved, and altered since ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "r"
    assert run(folder, "metagrad=imaml", "wandb=disabled", "steps=2", "validation.every=2") == 0
    return folder


ALTERED = [
    ("metagrad.inner._target_", "torch.hub.load", "not built from a config"),
    ("tasks.more", [{"_target_": "os.system", "_args_": ["touch executed"]}], "not built"),
    ("name", "${oc.env:SECRET}", "calls a resolver"),
    ("model.sizes", [784, "${oc.decode:${oc.env:SECRET}}", 5], "calls a resolver"),
    # with `env` in another option, so that the resolver's name is not in the text
    ("name", "${${oc_}.${${indirect}}:SECRET}", "calls a resolver"),
    ("model.sizes", [784, {"a": "${oc.${wandb_mode}:SECRET}"}, 5], "calls a resolver"),
    # with the sign in another option: a call once it is resolved, and made a config again
    ("name", "${dollar}{oc.env:SECRET}", "refers to an option in a roundabout way"),
    ("metagrad", 3, "lacks metagrad"),
    ("tasks.ways", "${nothing}", "cannot be read as a config"),
    ("problem.prox", "large", "problem.prox=large"),
    ("metagrad.inner.steps", "many", "metagrad.inner.steps=many; expected a whole number"),
    ("tasks.dataset.drawings", 1.5, "tasks.dataset.drawings=1.5; expected a whole number"),
    (
        "model.sizes",
        [784, "x", 5],
        "'x', 5]; expected a list of values, each a whole",
    ),
    ("metagrad.inner", 3, "metagrad.inner=3; expected the options of an InnerSolver"),
]


HELPERS = {"wandb_mode": "env", "indirect": "wandb_mode", "oc_": "oc", "dollar": "$"}


def altered(config, key, value):
    config = OmegaConf.merge(OmegaConf.create(config), HELPERS)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


@pytest.mark.parametrize(("key", "value", "sentence"), ALTERED, ids=[str(a[:2]) for a in ALTERED])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_an_altered_config_is_refused(
    finished, tmp_path, monkeypatch, capsys, command, key, value, sentence
):
    monkeypatch.setenv("SECRET", "0123456789abcdef")
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(finished, tmp_path / "r")
    if command == "train":
        path = folder / "config.yaml"
        path.write_text(OmegaConf.to_yaml(altered(OmegaConf.load(path), key, value)))
        words = ["train", f"resume={folder}", "steps=4"]
    else:
        path = folder / "best.pt"
        state = torch.load(path, weights_only=True)
        changed = OmegaConf.to_container(altered(state["config"], key, value))
        checkpoint.save(path, {**state, "config": changed})
        words = ["evaluate", f"checkpoint={path}", "tasks=4"]
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert main(words) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1
    assert "0123456789abcdef" not in said.out + said.err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "executed").exists()


def test_a_word_of_hydras_own_cannot_call_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for word in (
        "+hydra.callbacks.x._target_=os.system",
        "hydra.sweeper._target_=os.system",
        "hydra.launcher={_target_: os.system}",
        "hydra.searchpath=[/tmp]",
        "hydra.run.dir=elsewhere",
    ):
        assert main(["train", "-m", "seed=0,1", word]) == 2
        assert "launcher and sweeper" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- secrets ---


ROUNDABOUT = [
    (["train", "device=env", "name='${oc.${device}:WANDB_API_KEY}'"], "calls a resolver"),
    (["train", "-m", "name='${oc.${wandb}:WANDB_API_KEY}',x"], "calls a resolver"),
    (["train", "+optimiser.x=[1,{a: '${oc.${wandb}:WANDB_API_KEY}'}]"], "calls a resolver"),
    (["train", "name=$\\{oc.env\\:WANDB_API_KEY\\}"], "calls a resolver"),
    (["train", "device=$", "name='${device}{oc.env:WANDB_API_KEY}'"], "in a roundabout way"),
    (["evaluate", "device=env", "checkpoint='${oc.${device}:WANDB_API_KEY}'"], "calls a resolver"),
    (["evaluate", "device=$", "out='${device}{oc.env:WANDB_API_KEY}'"], "in a roundabout way"),
    (["report", "out=env", "results='${oc.${out}:WANDB_API_KEY}'"], "calls a resolver"),
    (["bench", "cg", "wandb=env", "results='${oc.${wandb}:WANDB_API_KEY}'"], "calls a resolver"),
    (
        ["solve", "distill", "source=$", "dataset='${source}{oc.env:WANDB_API_KEY}'"],
        "in a roundabout way",
    ),
]


@pytest.mark.parametrize("wandb", ["offline", "online"])
def test_no_wandb_key_in_what_a_run_leaves_or_says(tmp_path, monkeypatch, capfd, wandb):
    key = "5ec3e7" * 6 + "cafe"  # as long as a key of W&B's
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metalearn.training.tracking.PATIENCE_S", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    words = ["metagrad=imaml", f"wandb={wandb}", "steps=2", "validation.every=2"]
    folder = tmp_path / "runs/r"
    assert run(folder, *words) == 0
    assert main(["train", f"resume={folder}", "steps=3"]) == 0
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any(p.suffix == ".wandb" for p in files) or wandb == "online"
    for path in files:
        assert key.encode() not in path.read_bytes(), path
    said = capfd.readouterr()
    assert key not in said.out + said.err
    assert main(["train", "name=${oc.env:WANDB_API_KEY}"]) == 2
    assert main(["train", "optimiser.lr=${oc.decode:${oc.env:WANDB_API_KEY}}"]) == 2
    assert main(["bench", "cg", "results=${oc.env:WANDB_API_KEY}"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 3 and said.count("calls a resolver") == 2 and key not in said
    for words, sentence in ROUNDABOUT:
        assert main(words) == 2
        said = capfd.readouterr()
        assert said.err.count("\n") == 1 and sentence in said.err
        assert key not in said.out + said.err
    assert os.environ["WANDB_API_KEY"] == key
