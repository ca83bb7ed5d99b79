"""Several processes share a run: it is the one-process run but for the rounding of sums."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_runs import on_ranks, process_group, train, train_and_ask, train_on_a_full_disk
from tiny_run import rows, timeless
from ways import WAYS

from metalearn.commands.main import main
from metalearn.errors import TrainingStopped, UsageError
from metalearn.metagrad import NonFiniteGradient
from metalearn.nn import MLP
from metalearn.parallel.batches import OutOfMemory, SplitGradient
from metalearn.parallel.ranks import Ranks
from metalearn.parallel.sharding import ShardedGradient
from metalearn.problem import FewShot
from metalearn.tasks import ImageTasks, LabelledImages
from metalearn.tasks.sinusoid import SinusoidSampler
from metalearn.training import checkpoint
from metalearn.training.evaluation import evaluate
from metalearn.training.messages import figures
from metalearn.tree import leaves_of

WORDS = ["tasks=glyphs", "tasks.dataset.drawings=4", "model=mlp", "model.sizes=[784,8,5]"]
WORDS += ["metagrad=imaml_warm", "metagrad.curvature=gauss_newton", "metagrad.inner.steps=2"]
WORDS += ["meta_batch=4", "validation.every=5", "validation.tasks=5", "test.tasks=7", "threads=1"]
WORDS += ["wandb=disabled", "checkpoint_every=2", "average=0.9", "keep_best=2"]


@given(st.integers(0, 200), st.integers(1, 40))
def test_shares_cover_the_tasks_evenly_and_in_order(tasks, size):
    shares = [list(range(tasks))[Ranks(rank, size).local_slice(tasks)] for rank in range(size)]
    assert list(itertools.chain(*shares)) == list(range(tasks))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def world(tasks: int = 7):
    torch.manual_seed(0)
    model = MLP([1, 8, 1]).double()
    task = SinusoidSampler(5, 5, seed=0).sample(tasks).to(torch.float64)
    # This prox leaves some systems indefinite: a warm start's carry is the mean of the tasks whose
    # solve did not break off, which are not as many on each rank.
    return FewShot(model, prox=0.6), dict(model.named_parameters()), task


def _gradients(ranks: Ranks) -> dict:
    problem, meta, task = world()
    found = {}
    for name, way in WAYS.items():
        result = ShardedGradient(SplitGradient(way), ranks)(problem, meta, task)
        found[name] = ([g.numpy() for g in leaves_of(result.grads)], figures(result))
        found[name] += ([c.numpy() for c in leaves_of(result.solver_state)],)
    return found


@pytest.fixture(scope="module")
def gradients():
    return on_ranks(3, process_group, _gradients)  # with 3, 2 and 2 of the 7 tasks


@pytest.mark.parametrize("name", WAYS)
def test_sharded_gradient_is_that_of_one_rank(gradients, name):
    problem, meta, task = world()
    whole = WAYS[name](problem, meta, task)
    for grads, seen, solver_state in (found[name] for found in gradients):
        # Sums of seven float64 numbers of order one, in another order.
        for expected, found in zip(leaves_of(whole.grads), grads, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-12, atol=1e-14)
        assert seen == pytest.approx(figures(whole), rel=1e-9)
        for expected, found in zip(leaves_of(whole.solver_state), solver_state, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-12, atol=1e-14)


def test_the_warm_start_above_is_of_some_tasks_only():
    problem, meta, task = world()
    result = WAYS["warm"](problem, meta, task)
    assert 0 < int((result.certificate.status > 1).sum()) < len(task)


def _refused(ranks: Ranks, kind: str) -> str:
    problem, meta, task = world()
    if kind == "not finite":
        task.query_y[-1] = torch.inf  # a task of the last rank

    def hungry(problem, meta, task):
        if ranks.rank == 1:
            raise MemoryError
        return WAYS["unrolled"](problem, meta, task)

    way = WAYS["unrolled"] if kind == "not finite" else hungry
    try:
        ShardedGradient(SplitGradient(way, say=lambda s: None), ranks)(problem, meta, task)
    except (NonFiniteGradient, OutOfMemory) as error:
        return type(error).__name__
    return "none"


@pytest.mark.parametrize(
    ("kind", "error"), [("not finite", "NonFiniteGradient"), ("memory", "OutOfMemory")]
)
def test_what_one_rank_meets_is_every_ranks(kind, error):
    assert on_ranks(2, process_group, _refused, kind) == [error, error]


def _scores(ranks: Ranks, tasks: int, batch: int) -> dict:
    problem, meta, _ = world()
    sampler = SinusoidSampler(5, 5, seed=3)
    sample = sampler.sample
    sampler.sample = lambda n: sample(n).to(torch.float64)  # type: ignore[method-assign]
    found = evaluate(problem, WAYS["unrolled"], meta, sampler, tasks, batch, ranks=ranks)
    return {name: (e.mean, e.interval) for name, e in found.items()}


@pytest.mark.parametrize(("tasks", "batch"), [(9, 2), (5, 1)])  # the last batch is short of a rank
def test_evaluation_is_that_of_one_rank(tasks, batch):
    expected = _scores(Ranks(), tasks, batch)
    for found in on_ranks(3, process_group, _scores, tasks, batch):
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-12)


def _led(ranks: Ranks, error: str) -> str:
    def work() -> int:
        if error:
            raise {"usage": UsageError, "stopped": TrainingStopped}[error]("why")
        return os.getpid()

    try:
        return f"{ranks.on_rank_zero(work) == os.getpid()}"
    except (UsageError, TrainingStopped) as found:
        return repr(found)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        ("", ["True", "False"]),
        ("usage", ["UsageError('why')"] * 2),
        ("stopped", ["TrainingStopped('why')"] * 2),
    ],
)
def test_what_rank_0_does_or_refuses_is_everyones(error, seen):
    assert on_ranks(2, process_group, _led, error) == seen


def _left(ranks: Ranks) -> str:
    if ranks.rank == 1:
        return "left"
    try:
        ranks.all_reduce_max(0)
    except TrainingStopped as error:
        return str(error)
    return "went on"


def test_a_rank_that_is_gone_is_said_so():
    found = on_ranks(2, process_group, _left)
    assert found[1] == "left" and "rank 0 lost the others" in found[0] and "resume=" in found[0]


def _starved(ranks: Ranks) -> str:
    """Judging fails on rank 1 alone; the others are told at each batch that all come along."""

    def hungry(self: object, *args: object) -> object:
        raise MemoryError

    problem, meta, _ = world()
    sampler = SinusoidSampler(5, 5, seed=3)
    way = WAYS["unrolled"]
    if ranks.rank == 1:
        type(way).adapt = hungry  # type: ignore[method-assign, assignment]
    sample = sampler.sample
    sampler.sample = lambda n: sample(n).to(torch.float64)  # type: ignore[method-assign]
    try:
        evaluate(
            *(problem, way, meta, sampler, 6, 1),
            progress=lambda done: ranks.all_reduce_max(done),
            ranks=ranks,
        )
    except OutOfMemory as error:
        return str(error)
    return "none"


def test_what_one_rank_meets_in_an_evaluation_is_every_ranks():
    found = on_ranks(2, process_group, _starved)
    assert found[0] == found[1] and "one task alone" in found[0]


def statuses(found: list[tuple[int, str]]) -> list[int]:
    return [status for status, _ in found]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for size in (1, 2):
        run = folder / str(size)
        words = [*WORDS, "steps=10", f"run_dir={run}"]
        assert statuses(on_ranks(size, train, words, str(run))) == [0] * size
    return folder


def close(one: Path, other: Path) -> None:
    """Float32 gradients that differ in their last bits go through Adam, which divides by their
    size: where an element is near 0 a step differs by up to 2 lr, elsewhere by rounding."""
    for row, expected in zip(timeless(one), timeless(other), strict=True):
        del row["peak_memory_bytes"], expected["peak_memory_bytes"]
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
    a, b = (checkpoint.load(folder / "last.pt") for folder in (one, other))
    assert a["sampler"] == b["sampler"]  # the same tasks
    for own, expected in ((a, b), (a["average"], b["average"])):
        for x, y in zip(leaves_of(own["meta"]), leaves_of(expected["meta"]), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_run_of_two_ranks_is_that_of_one(trained):
    close(trained / "2", trained / "1")
    per_rank = [rows(trained / n)[0]["peak_memory_bytes"] for n in ("1", "2")]
    assert per_rank[1] == pytest.approx(per_rank[0] / 2, rel=0.1)


def test_another_number_of_ranks_goes_on_with_it(trained, tmp_path):
    folder = tmp_path / "run"
    for size, steps in ((2, 4), (1, 6), (4, 10)):
        begun = [f"resume={folder}"] if folder.exists() else [*WORDS, f"run_dir={folder}"]
        assert statuses(on_ranks(size, train, [*begun, f"steps={steps}"])) == [0] * size
        extra = [row["step"] for row in rows(folder)]
        assert extra == list(range(1, steps + 1))
    a, b = (checkpoint.load(f / "last.pt")["meta"] for f in (folder, trained / "1"))
    for x, y in zip(leaves_of(a), leaves_of(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_a_signal_to_one_rank_has_all_leave_after_the_same_step(trained, tmp_path):
    folder = tmp_path / "run"
    words = [*WORDS, "steps=10", "run_dir=" + str(folder)]
    found = on_ranks(2, train_and_ask, words, folder / "metrics.jsonl", 2)
    assert statuses(found) == [128 + signal.SIGTERM] * 2
    assert checkpoint.load(folder / "last.pt")["step"] == len(rows(folder)) < 10
    assert statuses(on_ranks(2, train, [f"resume={folder}"])) == [0, 0]
    assert timeless(folder) == timeless(trained / "2")


def test_a_disk_that_takes_no_more_stops_all(tmp_path):
    words = [*WORDS, "steps=10", f"run_dir={tmp_path / 'run'}"]
    found = on_ranks(2, train_on_a_full_disk, words)
    assert statuses(found) == [1, 1]
    assert all(
        "cannot be written (No space left on device)" in said and "meta-step 2, is whole" in said
        for _, said in found
    )


def test_more_ranks_than_tasks_are_refused(tmp_path):
    words = [*WORDS, "meta_batch=1", f"run_dir={tmp_path / 'run'}"]
    found = on_ranks(2, train, words)
    assert statuses(found) == [2, 2]
    assert "meta_batch=1 has too few tasks for 2 processes" in found[0][1]
    assert not (tmp_path / "run").exists()


def _train_its_own(words: list[list[str]]) -> tuple[int, str]:
    return train(words[int(os.environ["RANK"])])


def _train_on_other_images(words: list[str]) -> tuple[int, str]:
    """The last rank has another pixel in its test split."""
    split = ImageTasks.split

    def changed(self: ImageTasks, name: str) -> LabelledImages:
        data = split(self, name)
        if name == "test":
            data.images[-1, 0, 0, 0] = 77
        return data

    if os.environ["RANK"] == "1":
        ImageTasks.split = changed  # type: ignore[method-assign]
    return train(words)


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("metagrad.inner.lr=0.1", "metagrad.inner.lr=0.2"),
        ("validation.every=5", "validation.every=2"),
        ("tasks.shots=1", "tasks.shots=x"),
    ],
)
def test_ranks_with_other_options_are_refused(tmp_path, own, other):
    words = [*WORDS, "steps=4", f"run_dir={tmp_path / 'run'}"]
    found = on_ranks(2, _train_its_own, [[*words, own], [*words, other]])
    assert statuses(found) == [2, 2] and found[0][1] in found[1][1].replace(" (rank 1)", "")
    assert own.partition("=")[0] in found[0][1] and not (tmp_path / "run").exists()


def test_ranks_with_other_images_are_refused(tmp_path):
    words = [*WORDS, "steps=4", f"run_dir={tmp_path / 'run'}"]
    found = on_ranks(2, _train_on_other_images, words)
    assert statuses(found) == [2, 2]
    assert "data.test.images" in found[0][1] and not (tmp_path / "run").exists()


TORCHRUNS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (TORCHRUNS, "MASTER_PORT"),
        ({**TORCHRUNS, "MASTER_PORT": ""}, "MASTER_PORT"),
        ({**TORCHRUNS, "MASTER_PORT": "99999"}, "MASTER_PORT"),
        ({**TORCHRUNS, "MASTER_PORT": "2999", "RANK": "2"}, "RANK"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"RANK": "-1"}, "RANK"),
        ({"RANK": "1"}, "WORLD_SIZE"),
    ],
)
def test_incomplete_or_odd_variables_are_refused(monkeypatch, capsys, tmp_path, variables, name):
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert main(["train", *WORDS, f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert name in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_restarts_need_a_folder_to_find_the_run_by(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train", *WORDS, "steps=1"]) == 2
    assert "run_dir= is missing" in capsys.readouterr().err and not (tmp_path / "runs").exists()


LATE = """
import os, sys, time
from metalearn.commands.main import main
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
if attempt == "1" and rank == sys.argv[1]:
    time.sleep(2)
sys.exit(main(["train", *sys.argv[2:]]))
"""


@contextmanager
def torchrun(program: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", "--max-restarts=3", str(program), *words]
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    with subprocess.Popen(command, env=own | {"OMP_NUM_THREADS": "1"}) as agent:
        try:
            yield agent
        finally:
            agent.terminate()  # its workers too


def process_of_rank(parent: int, rank: int) -> int:
    """Its id, among the children of torchrun."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            try:
                if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(
                    b"\0"
                ):
                    return int(child)
            except OSError:
                continue
        time.sleep(0.05)
    raise AssertionError(f"there is no process of rank {rank}")


def wait_for(agent: subprocess.Popen[bytes], metrics: Path, lines: int) -> None:
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert agent.poll() is None
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the ranks in /proc")
def test_torchrun_restarts_a_killed_rank_and_a_signal_has_all_leave(trained, tmp_path):
    """The new process of that rank begins late, and the other one finds the dead one's traces."""
    (tmp_path / "late.py").write_text(LATE)
    folder = tmp_path / "run"
    with torchrun(tmp_path / "late.py", "0", *WORDS, "steps=5000", f"run_dir={folder}") as agent:
        wait_for(agent, folder / "metrics.jsonl", 3)
        os.kill(process_of_rank(agent.pid, 0), signal.SIGKILL)
        wait_for(agent, folder / "metrics.jsonl", 20)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=120) == 1
    assert timeless(folder)[:10] == timeless(trained / "2")
    assert 20 <= checkpoint.load(folder / "last.pt")["step"] == len(rows(folder)) < 5000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_finishes_the_run_after_a_rank_is_killed(trained, tmp_path, rank):
    (tmp_path / "late.py").write_text(LATE)
    folder = tmp_path / "run"
    words = [*WORDS, "steps=10", f"run_dir={folder}"]
    with torchrun(tmp_path / "late.py", str(rank), *words) as agent:
        wait_for(agent, folder / "metrics.jsonl", 3)
        os.kill(process_of_rank(agent.pid, rank), signal.SIGKILL)
        assert agent.wait(timeout=240) == 0
    assert timeless(folder) == timeless(trained / "2")
    a, b = (checkpoint.load(f / "last.pt")["meta"] for f in (folder, trained / "2"))
    assert all(torch.equal(x, y) for x, y in zip(leaves_of(a), leaves_of(b), strict=True))


@pytest.mark.parametrize(
    ("job", "count", "words", "status"),
    [
        ("a", 1, [], 0),  # started again
        ("a", 0, [], 0),  # another node came or went, which is not counted
        ("a", 1, ["seed=7"], 2),
        ("b", 1, [], 2),
        ("none", 1, [], 2),  # torchrun's name for a job that got none
        ("", 0, [], 2),
    ],
)
def test_a_job_goes_on_with_its_own_run_alone(
    tmp_path, monkeypatch, capsys, job, count, words, status
):
    given = [*WORDS, f"run_dir={tmp_path / 'run'}", "validation.every=1"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert main(["train", *given, "steps=1"]) == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    if job:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
    assert main(["train", *given, "steps=2", *words]) == status
    if status:
        assert "holds a run already" in capsys.readouterr().err
        assert (tmp_path / "run" / "last.pt").read_bytes() == before
    else:
        assert len(rows(tmp_path / "run")) == 2


def test_a_nameless_job_goes_on_with_its_run_once_started_again(tmp_path, monkeypatch):
    given = [*WORDS, f"run_dir={tmp_path / 'run'}", "validation.every=1"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["train", *given, "steps=1"]) == 0
    assert main(["train", *given, "steps=2"]) == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["train", *given, "steps=2"]) == 0


@pytest.mark.parametrize("words", [["adapt"], ["bench", "cg"], ["train", "-m", "seed=0,1"]])
def test_what_is_no_work_for_several_processes_is_refused(monkeypatch, capsys, words):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    assert "start it without torchrun" in capsys.readouterr().err
