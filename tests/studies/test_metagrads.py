"""A new meta-gradient, a class with a YAML file or `import=`, in training and in the studies."""

from __future__ import annotations

import shutil
import sys

import pandas as pd
import pytest
import torch

from metalearn import config
from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.studies.frame import options
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.frame.metagrads import named_metagrad

CPU = torch.device("cpu")
NEW = """
from dataclasses import dataclass, replace
from typing import ClassVar

from metalearn.inner import InnerSolver
from metalearn.metagrad import Implicit, MetaGradient
from metalearn.linear_solve import CG
from metalearn.tree import leaves_of, like_tree


@dataclass(frozen=True)
class Halved(MetaGradient):
    estimates: ClassVar = "implicit"
    inner: InnerSolver
    share: float = 0.5

    def differentiate(self, problem, meta, task):
        found = Implicit(self.inner, CG(200, rtol=1e-12))(problem, meta, task)
        grads = [self.share * g for g in leaves_of(found.grads)]
        return replace(found, grads=like_tree(meta, grads))
"""
YAML = """# @package _global_
problem:
  prox: 2.0
metagrad:
  _target_: new_halved.Halved
  inner:
    _target_: metalearn.inner.GradientDescent
    steps: 2
    lr: 0.1
  share: 0.25
"""
GRADIENT = """
    seeds=[0] size=4 conditions=[3.0] points=2 cg_iters=[1,4] bias_condition=3.0
    bias_steps=[2,60] bias_cg_iters=2
"""
CG_STUDY = """
    seeds=[0] iterations=[0,1] proxes=[2.0] ways=[cg] train_iterations=[0,1] way_iterations=1
    channels=2 inner_steps=2 start_steps=1 tasks=2 steps=1 meta_batch=2 validation_tasks=2
    test_tasks=2
"""

DISTILL = """
    seeds=[0] methods=[unrolled] unrolled_steps=2 implicit_steps=3 solver_iters=2 steps=2 starts=1
    batch=16 every=1 draws=1 judge_decays=[0.01] judge_starts=1 width=4
"""
NAS = """
    seeds=[0] methods=[first_order] nodes=1 channels=2 warmup=1 weight_steps=2 solver_iters=2
    steps=2 random=2 retrain_steps=2 retrain_starts=1 train=20
"""
HPO = """
    problems=[ridge_features,overfit] methods=[cg] splits=[100] seeds=[0] hypergradients=2
    network_hypergradients=2 unrolled_steps=20 grid=2 few=20 validation=20 hidden=4 inner_steps=5
    directions=1 iterations=200 tols=[1e-9,1e-9]
"""


@pytest.fixture
def new(tmp_path, monkeypatch):
    """A module with a meta-gradient in the current folder, and its YAML file among the configs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new_halved.py").write_text(NEW)
    shutil.copytree(config.config_folder(), tmp_path / "house" / "configs")
    (tmp_path / "house" / "configs" / "metagrad" / "halved.yaml").write_text(YAML)
    monkeypatch.setattr("metalearn.config.overrides.PACKAGE", tmp_path / "house" / "metalearn")
    yield "new_halved"
    sys.modules.pop("new_halved", None)


def measured(study, *parts):
    return pd.DataFrame(
        [
            {**cell, **row}
            for cell in study.cells()
            if cell["part"] in parts
            for row in study.measure(cell, CPU)
        ]
    )


def test_a_new_meta_gradient_trains(new):
    tiny = "tasks=sinusoid model=mlp_sinusoid steps=1 meta_batch=2 wandb=disabled threads=1"
    tiny += " validation.tasks=2 test.tasks=2"
    assert main(["train", f"import={new}", "metagrad=halved", *tiny.split()]) == 0


def test_a_new_meta_gradient_stands_in_the_gradient_study(new):
    words = [
        f"import={new}",
        "metagrads=[halved,new_halved.Halved,maml_batched]",
        *GRADIENT.split(),
    ]
    study, _, _ = options.study("bench", "gradient", words)
    rows = measured(study, "accuracy", "products", "bias")
    long = rows[(rows.part == "bias") & (rows.steps == 60)].set_index(["problem", "method"])
    for problem in ("quadratic", "logistic"):
        # The exact gradient, times its share, of a converged inner loop.
        assert long.error[problem, "halved"] == pytest.approx(0.75, abs=1e-6)
        assert long.error[problem, "new_halved.Halved"] == pytest.approx(0.5, abs=1e-6)
        assert long.error_of_steps[problem, "maml_batched"] < 1e-12
    assert long.estimates["quadratic", "halved"] == "implicit"
    assert long.estimates["quadratic", "maml_batched"] == "unrolled"
    assert {"halved", "maml_batched"} <= set(rows[rows.part == "accuracy"].method)
    tables, findings = study.tables(rows), render_findings(study, rows)
    costs, *_, own = (table.texts() for table in tables.values())
    assert {"halved", "new_halved.Halved", "maml_batched"} <= set(costs.method)
    assert len(own) == 3 * 2 * 2
    assert any("halved estimates the gradient of the converged problem" in f for f in findings)
    assert any("maml_batched estimates the gradient of the K steps" in f for f in findings)
    assert not any("nan" in finding for finding in findings)
    labels = [a.get_text() for p in study.figures(rows)["bias"].axes for a in p.texts]
    assert "halved" in labels


@pytest.mark.slow
def test_a_new_meta_gradient_stands_in_the_study_of_cg(new):
    words = [f"import={new}", "metagrads=[halved,maml_batched]", *CG_STUDY.split()]
    study, _, _ = options.study("bench", "cg", words)
    rows = measured(study, "gradient", "cost")
    gradient = rows[rows.part == "gradient"].set_index(["way", "point"])
    assert gradient.loc[[("maml_batched", "adapted")], "error"].max() < 1e-4  # in float32
    assert set(gradient.loc["maml_batched"].index) == {"adapted"}
    assert set(gradient.loc["halved"].index) == {"adapted", "minimum"}
    (error,) = gradient.loc[[("halved", "minimum")], "error"]
    assert error == pytest.approx(0.75, abs=0.01) or pd.isna(error)
    assert set(rows[rows.part == "cost"].way) == {"cg", "halved", "maml_batched"}
    everything = pd.concat([rows, measured(study, "task", "accuracy")])
    choice, *_, cost = (table.texts() for table in study.tables(everything).values())
    assert choice.method.tolist() == ["first-order", "CG", "halved", "maml_batched"]
    assert {"halved", "maml_batched"} <= set(cost.method)
    labels = [a.get_text() for a in study.figures(everything)["cost"].axes[0].texts]
    assert "halved" in labels
    assert render_findings(study, everything)


def test_a_new_meta_gradient_stands_in_the_search_for_hyper_parameters(new):
    words = [f"import={new}", "metagrads=[halved,maml_batched]", *HPO.split()]
    study, _, _ = options.study("solve", "hpo", words)
    rows = pd.DataFrame([{**c, **row} for c in study.cells() for row in study.measure(c, CPU)])
    start = rows[(rows.hypergradient == 1) & (rows.problem == "ridge_features")]
    errors = start.set_index("method").error
    # Each is compared with the gradient of the converged problem, of which Halved returns a share.
    assert errors["halved"] == pytest.approx(0.75, abs=0.01)
    assert errors["cg"] < 0.01 < errors["maml_batched"]
    assert set(rows[rows.problem == "overfit"].method) == {"cg", "halved", "maml_batched"}
    texts = [str(cell) for t in study.tables(rows).values() for cell in t.texts().to_numpy().flat]
    assert {"halved", "maml_batched"} <= set(texts)
    assert study.figures(rows) and render_findings(study, rows)


@pytest.mark.parametrize("name", ["maml_truncated", "maml_checkpointed", "imaml_gmres"])
def test_the_search_for_hyper_parameters_takes_any_counted_meta_gradient(name):
    words = [f"metagrads=[{name}]", *HPO.split(), "problems=[ridge_features]"]
    study, _, _ = options.study("solve", "hpo", words)
    cell = {"problem": "ridge_features", "seed": 100, "method": name}
    assert all(row["products"] > 0 for row in study.measure(cell, CPU))


@pytest.mark.parametrize("name", ["imaml_gn", "maml_mixed"])
def test_the_search_for_hyper_parameters_refuses_products_that_are_not_counted(name):
    with pytest.raises(UsageError, match=f"metagrads={name}: expected the Hessian"):
        options.study("solve", "hpo", [f"metagrads=[{name}]"])


def test_the_few_shot_study_takes_a_new_meta_gradient_by_its_overrides(new):
    words = ["settings=[omniglot_5w1s]", "methods=[maml]", "overrides=['metagrad=halved']"]
    study, _, _ = options.study("bench", "fewshot", [f"import={new}", *words])
    (cell,) = study.cells()
    run = config.compose("train", study.run_words(cell))
    assert run.metagrad._target_ == "new_halved.Halved"
    assert run.metagrad.share == 0.25 and run.problem.prox == 2.0


@pytest.mark.parametrize(
    ("study", "words"), [("distill", DISTILL), ("nas", NAS)], ids=["distill", "nas"]
)
def test_a_new_meta_gradient_stands_in_a_search(new, study, words):
    words = [f"import={new}", "metagrads=[halved,imaml]", *words.split()]
    study, _, _ = options.study("solve", study, words)
    rows = pd.DataFrame([{**c, **row} for c in study.cells() for row in study.measure(c, CPU)])
    assert {"halved", "imaml"} <= set(rows.source)
    texts = [str(cell) for t in study.tables(rows).values() for cell in t.texts().to_numpy().flat]
    assert {"halved", "imaml"} <= set(texts)
    assert study.figures(rows) and render_findings(study, rows)


def test_a_new_meta_gradient_stands_in_the_memory_study(new):
    words = [f"import={new}", "parts=[steps]", "network=small", "steps=[1,4]", "timing_s=0"]
    study, _, _ = options.study("bench", "memory", [*words, "metagrads=[halved,maml_batched]"])
    baseline = study.cells()[0]
    kept = ("halved", "maml_batched", "unrolled, batched")
    cells = [baseline, *(c for c in study.cells() if c["method"] in kept)]
    rows = pd.DataFrame([{**c, **row} for c in cells for row in study.measure(c, CPU)])
    peaks = rows.set_index(["method", "steps"]).peak_bytes
    assert peaks["halved", 4] < 1.1 * peaks["halved", 1]
    assert peaks["maml_batched", 4] > 1.5 * peaks["maml_batched", 1]


@pytest.mark.parametrize("study", ["gradient", "cg"])
@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("imml", "did you mean"),
        ("reptile", "whose `estimates` names"),
        ("anil", "changes the problem too"),
        ("implicit_closed_form", "changes the problem too"),
        ("imaml,imaml", "names that differ"),
        ("no_module.Class", "is not built from a config"),
        ("metalearn.inner.Adam", "cannot be built"),
        ("metalearn.metagrad.FirstOrder", "whose `estimates` names"),
    ],
)
def test_unfit_names_are_refused(study, names, sentence):
    with pytest.raises(UsageError, match=sentence):
        options.study("bench", study, [f"metagrads=[{names}]"])


def test_a_meta_gradient_takes_the_studys_inner_solver():
    inner = GradientDescent(7, 0.3)
    assert named_metagrad("imaml_hf", inner).inner == inner
    assert named_metagrad("metalearn.metagrad.Unrolled", inner).inner == inner
