"""Sweeps whose jobs have processes of their own."""

from __future__ import annotations

import json
import os

import pytest
from tiny_run import TINY

from metalearn.commands.main import main
from metalearn.config import sweep
from metalearn.errors import UsageError

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


def test_options_of_swept_groups_and_globs_reach_their_jobs():
    """Hydra's own config of the defaults has metagrad=imaml, without `truncate`."""
    seen = []

    def job(cfg):
        seen.append((cfg.metagrad.get("truncate"), cfg.metagrad.inner.steps, cfg.seed))
        return 0

    words = ["metagrad=maml_truncated,maml_batched", "metagrad.truncate=2", "seed=4"]
    assert sweep.multirun("train", words, job) == 0
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
