"""`metalearn.train` on two processes, with a sampler of one's own."""

from __future__ import annotations

import json
import subprocess
import sys

import lines_run
import pytest
import torch
from rank_runs import on_ranks

from metalearn.training import checkpoint

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.parametrize("launcher", ["ranks", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_the_run_of_one(launcher, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    lines_run.run(str(one))
    if launcher == "ranks":
        on_ranks(2, lines_run.run, str(two))
    else:
        words = [sys.executable, *TORCHRUN, lines_run.__file__, str(two)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1  # rank 0 alone talks
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert [summary["ranks"] for summary in summaries] == [1, 2]
    assert len((two / "metrics.jsonl").read_text().splitlines()) == 6
    # The sums of the meta-gradient over 3 and 2 tasks differ from that over 5 by rounding alone.
    metas = [checkpoint.load(folder / "best.pt")["meta"] for folder in (one, two)]
    for name, value in metas[0].items():
        torch.testing.assert_close(metas[1][name], value, rtol=1e-9, atol=1e-12)
    assert summaries[1]["test_loss"] == pytest.approx(summaries[0]["test_loss"], rel=1e-6)
