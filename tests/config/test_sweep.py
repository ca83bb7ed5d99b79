"""Sweeps whose jobs have processes of their own."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
from tiny_run import TINY

from metalearn.commands.main import main
from metalearn.commands.sweep_table import summarise
from metalearn.config import sweep
from metalearn.errors import UsageError

METHODS = ["maml_truncated", "maml_batched"]
WORDS = [*TINY, "wandb=disabled", "validation.every=6"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Jobs' processes inherit the folder, and W&B's service is none of theirs."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], id="joblib"),
        # Slurm's jobs are these, started by another executor.
        pytest.param(
            ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
            id="submitit",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_jobs_run_in_processes_of_their_own(launcher, tmp_path):
    assert main(["train", "-m", *launcher, *WORDS, "seed=0,1"]) == 0
    runs = [folder for folder in (tmp_path / "runs").iterdir() if folder.name != "sweeps"]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in runs]
    assert {summary["seed"] for summary in summaries} == {0, 1}
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert len(list(sweep.glob("status-*.json"))) == 2


@pytest.mark.slow
def test_a_job_that_fails_is_the_sweeps_status(tmp_path):
    words = [*WORDS, "optimiser=sgd", "seed=0", "optimiser.lr=0.01,1e30"]
    # What blows up is stopped by a guard: status 1, in whichever process.
    assert main(["train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *words]) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hydra/launcher=slurm"], "Could not find 'hydra/launcher/slurm'"),
        (["hydra/launcher=joblib", "hydra.launcher.n_job=2"], "n_job"),
        (["hydra/launcher=joblib", "seed=0,x"], "seed=x"),
    ],
)
def test_bad_sweeps_are_refused_before_a_job_starts(words, sentence, tmp_path, capsys):
    assert main(["train", "-m", *WORDS, *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_launcher_is_a_sweeps(tmp_path, capsys):
    assert main(["train", *WORDS, "hydra/launcher=joblib"]) == 2
    assert "hydra/launcher=joblib is a sweep's; add -m" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_options_of_swept_groups_and_globs_reach_their_jobs(tmp_path):
    """Hydra's own config of the defaults has metagrad=imaml, without `truncate`."""
    seen = []

    def job(cfg):
        seen.append((cfg.metagrad.get("truncate"), cfg.metagrad.inner.steps, cfg.seed))
        return 0, "folder"

    words = [f"metagrad={','.join(METHODS)}", "metagrad.truncate=2", "seed=4"]
    ended = sweep.multirun("train", words, job, tmp_path / "none")
    assert [(one.status, one.folder) for one in ended] == [(0, "folder")] * 2
    assert not (tmp_path / "none").exists()
    assert [one.swept for one in ended] == [{"metagrad": m} for m in METHODS]
    assert seen == [(2, 16, 4), (2, 5, 4)]
    assert sweep.jobs(["metagrad=glob(ani*)"]) == [["metagrad=anil"]]
    for choice in sweep.jobs(["metagrad=glob(maml_*)", "seed=1"]):
        assert choice[0].startswith("metagrad=maml_") and choice[1] == "seed=1"


@pytest.mark.parametrize(
    "word", ["metagrad=glob(nothing*)", "seed=interval(0,1)", "seed=range(0,3,0)", "seed=glob(*)"]
)
def test_values_that_cannot_be_listed_are_refused(word):
    with pytest.raises(UsageError, match="Give a,b"):
        sweep.jobs([word])


def test_a_run_is_named_by_what_differs():
    swept = {"seed": 2, "optimiser.lr": 0.1, "metagrad": "maml", "model.head": "zero"}
    assert sweep.job_name("glyphs_maml", swept) == "glyphs_maml-seed2-lr0.1-head-zero"
    assert sweep.job_name("mine", {"metagrad": "maml"}) == "mine-metagrad-maml"
    twice = {"optimiser.lr": 1, "metagrad.inner.lr": 2}
    assert sweep.job_name("mine", twice) == "mine-optimiser.lr1-metagrad.inner.lr2"
    assert sweep.job_name("mine", {"data": "a/b=c"}) == "mine-data-a_b_c"
    assert len(sweep.job_name("mine", {"problem.adapt": "x" * 200})) < 100


def test_a_sweep_ends_in_a_table_over_seeds(tmp_path, capsys):
    words = [*WORDS, "metagrad=maml_batched", "steps=2", "seed=0,1", "meta_batch=2,3"]
    assert main(["train", "-m", *words]) == 0
    (file,) = (tmp_path / "runs" / "sweeps").glob("*/runs.csv")
    runs = pd.read_csv(file)
    assert sorted(zip(runs.seed, runs.meta_batch, strict=True)) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    for row in runs.itertuples():
        assert f"glyphs_maml_batched-seed{row.seed}-meta_batch{row.meta_batch}-" in row.run
        summary = json.loads((tmp_path / row.run / "summary.json").read_text())
        assert summary["test_accuracy"] == row.test_accuracy and summary["seed"] == row.seed
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    assert shown[0][1] == "meta_batch"
    for line, (batch, own) in zip(shown[1:], runs.groupby("meta_batch"), strict=True):
        accuracy = 100 * own.test_accuracy
        assert line[1:8:2] == [
            *(str(batch), "2", f"{accuracy.mean():.2f}", f"{accuracy.std(ddof=1):.2f}")
        ]


def test_a_refused_job_is_named_and_has_a_row(tmp_path, capsys):
    words = [*WORDS, "metagrad=maml_batched", "steps=2", "tasks.ways=5,500"]
    assert main(["train", "-m", *words]) == 2
    said = capsys.readouterr()
    assert (
        "metalearn: glyphs_maml_batched-ways500: ways=500, but the validation split has" in said.err
    )
    (row,) = [line for line in said.out.splitlines() if line.startswith("| 500")]
    assert "0 of 1" in row
    (file,) = (tmp_path / "runs" / "sweeps").glob("*/runs.csv")
    assert list(pd.read_csv(file).status) == [0, 2]


def test_an_unfinished_run_is_no_zero():
    swept = [{"seed": 0, "steps": 1}, {"seed": 1, "steps": 1}, {"seed": 0, "steps": 2}]
    ended = [sweep.Ended(i, 0, "", f"r{i}", own) for i, own in enumerate(swept)]
    figures = [{"test_loss": 0.25, "step_s": 1.0}, {}, {}]
    first, second = summarise(list(zip(ended, figures, strict=True)))
    assert first["runs"] == "1 of 2" and first["test loss"] == "0.2500" and first["steps"] == "1"
    assert second["runs"] == "0 of 1" and second["test loss"] == "-" == second["deviation"]
