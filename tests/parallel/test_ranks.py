"""Several processes share a run: it is the one-process run but for the rounding of sums."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_runs import WORDS, on_ranks, process_group, train, train_and_ask, train_on_a_full_disk
from tiny_run import rows, timeless
from ways import WAYS

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
    """Rank 1 leaves once both have met, so that rank 0 loses it in its next exchange."""
    ranks.all_reduce_max(0)
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
    assert "data.test.examples" in found[0][1] and not (tmp_path / "run").exists()
