"""A meta-batch in parts gives the gradient of the whole one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_run import rows, run
from ways import INNER, WAYS

from metalearn.commands.main import main
from metalearn.metagrad import FirstOrder, MetaGradient
from metalearn.nn import MLP
from metalearn.parallel.batches import OutOfMemory, SplitGradient, merge_results
from metalearn.problem import FewShot
from metalearn.tasks.sinusoid import SinusoidSampler
from metalearn.training import checkpoint
from metalearn.training import loop as trainer
from metalearn.training.evaluation import evaluate
from metalearn.tree import leaves_of

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 400000000 bytes. Error code 12 (Cannot allocate memory)"
)


@dataclass(frozen=True)
class Hungry(MetaGradient):
    """Runs out of memory for more than `most` tasks."""

    inner: Any
    metagrad: MetaGradient
    most: int
    error: Exception

    def __call__(self, problem, meta, task, **solver_state):
        if len(task) > self.most:
            raise self.error
        return self.metagrad(problem, meta, task, **solver_state)


@pytest.fixture
def world():
    torch.manual_seed(0)
    model = MLP([1, 8, 1]).double()
    task = SinusoidSampler(5, 5, seed=0).sample(7).to(torch.float64)
    return FewShot(model, prox=2.0), dict(model.named_parameters()), task


def close(one, other):
    """In float64: only the sum over tasks is in another order."""
    a, b = leaves_of(one), leaves_of(other)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["cuda", "cpu", "python"])
def test_a_batch_that_does_not_fit_is_split_with_the_same_result(way, error, world):
    whole = WAYS[way](*world)
    said: list[str] = []
    split = SplitGradient(Hungry(INNER, WAYS[way], 4, error), say=said.append)
    for _ in range(2):  # the second time without an attempt at the whole
        result = split(*world)
    assert said == ["out of memory: the batch of 7 tasks is taken in 2 micro-batches"]
    close(result.grads, whole.grads)
    close(result.solver_state, whole.solver_state)
    for name in ("outer_loss", "metrics", "solution"):
        close(getattr(result, name), getattr(whole, name))
    assert torch.equal(result.inner.steps, whole.inner.steps)
    close(result.inner.params, whole.inner.params)
    if whole.certificate is not None:
        assert torch.equal(result.certificate.status, whole.certificate.status)
        assert result.certificate.exact_curvature == whole.certificate.exact_curvature
        close(result.certificate.eigenvalue_bounds, whole.certificate.eigenvalue_bounds)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_parts_get_smaller_until_they_fit(most, world):
    split = SplitGradient(Hungry(INNER, WAYS["unrolled"], most, CPU), say=lambda text: None)
    close(split(*world).grads, WAYS["unrolled"](*world).grads)


def test_the_carry_reaches_every_part(world):
    first = WAYS["warm"](*world)
    whole = WAYS["warm"](*world, **first.solver_state)
    split = SplitGradient(WAYS["warm"], micro_batches=3)
    close(split(*world, **first.solver_state).grads, whole.grads)
    cold = WAYS["warm"](*world)
    assert not torch.equal(whole.certificate.residual_norm, cold.certificate.residual_norm)


def test_a_run_that_meets_it_says_so_once_and_goes_on(tmp_path, monkeypatch, capsys):
    words = ["metagrad=first_order", "wandb=disabled"]
    assert run(tmp_path / "whole", *words) == 0
    whole = FirstOrder.__call__

    def hungry(self, problem, meta, task):
        if len(task) > 2:
            raise CPU
        return whole(self, problem, meta, task)

    monkeypatch.setattr(FirstOrder, "__call__", hungry)
    assert run(tmp_path / "split", *words, "steps=4") == 0
    assert capsys.readouterr().out.count("out of memory: the batch of 3 tasks is taken") == 1
    assert checkpoint.load(tmp_path / "split" / "last.pt")["parts"] == [2]
    assert main(["train", f"resume={tmp_path / 'split'}", "steps=6"]) == 0
    assert "out of memory" not in capsys.readouterr().out
    for one, other in zip(rows(tmp_path / "split"), rows(tmp_path / "whole"), strict=True):
        # float32 after up to 6 steps of Adam, which divides by the root of the gradient's square
        assert one["query_loss"] == pytest.approx(other["query_loss"], rel=1e-4)


def test_an_evaluation_that_does_not_fit_is_split_with_the_same_result(world, monkeypatch, capsys):
    problem, meta, _ = world
    sampler = SinusoidSampler(5, 5, seed=3)
    sample, adapt = sampler.sample, FirstOrder.adapt
    monkeypatch.setattr(sampler, "sample", lambda n: sample(n).to(torch.float64))
    whole = evaluate(problem, WAYS["first_order"], meta, sampler, tasks=9, batch=4)
    sizes: list[int] = []

    def hungry(self, problem, meta, task):
        if len(task) > 3:
            raise CPU
        sizes.append(len(task))
        return adapt(self, problem, meta, task)

    monkeypatch.setattr(FirstOrder, "adapt", hungry)
    sampler.load_state_dict(SinusoidSampler(5, 5, seed=3).state_dict())
    split = evaluate(problem, WAYS["first_order"], meta, sampler, tasks=9, batch=4)
    assert sizes == [2, 2, 2, 2, 1]
    assert capsys.readouterr().out.count("the batch of 4 tasks is taken in 2 micro-batches") == 1
    for name, estimate in whole.items():
        assert split[name].mean == pytest.approx(estimate.mean, rel=1e-12)
        assert split[name].interval == pytest.approx(estimate.interval, rel=1e-12)


def test_a_checkpoint_whose_tasks_do_not_fit_alone_is_not_judged(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "run", "metagrad=first_order", "wandb=disabled", "steps=1") == 0

    def hungry(self, problem, meta, task):
        raise CUDA

    monkeypatch.setattr(FirstOrder, "adapt", hungry)
    out = tmp_path / "judged.json"
    words = [f"checkpoint={tmp_path / 'run' / 'best.pt'}", "tasks=4", f"out={out}"]
    assert main(["evaluate", *words]) == 1
    said = capsys.readouterr().err
    assert "one task alone" in said and said.count("\n") == 1 and not out.exists()


def test_a_run_that_cannot_be_validated_stops_with_its_state(tmp_path, monkeypatch, capsys):
    def hungry(*args, **kwargs):
        raise OutOfMemory("no room")

    monkeypatch.setattr(trainer, "evaluate", hungry)
    assert run(tmp_path, "metagrad=first_order", "wandb=disabled") == 1
    said = capsys.readouterr().err
    assert "stopped at meta-step 3: no room" in said and f"{tmp_path / 'last.pt'}" in said
    assert checkpoint.load(tmp_path / "last.pt")["step"] == len(rows(tmp_path)) == 3


def test_a_run_whose_tasks_do_not_fit_alone_stops(tmp_path, monkeypatch, capsys):
    def hungry(self, problem, meta, task):
        raise CPU

    monkeypatch.setattr(FirstOrder, "__call__", hungry)
    assert run(tmp_path, "metagrad=first_order", "wandb=disabled") == 1
    said = capsys.readouterr().err
    assert "one task alone" in said and said.count("\n") == 1
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 0


LIMITED = """
import resource, sys
import torch, torch._dynamo
import metalearn.training.loop
from metalearn.commands.main import main
pages = int(open("/proc/self/statm").read().split()[0])
limit = 4096 * pages + int(sys.argv[1]) * 10**6
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_really_runs_out(tmp_path):
    """By a limit on the process's address space; the whole batch takes about 1.5 GB."""
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "model.sizes=[1,256,256,1]", "steps=3"]
    words += ["metagrad=maml_batched", "metagrad.inner.lr=1e-3", "meta_batch=128", "threads=1"]
    words += ["validation.tasks=4", "test.tasks=4", "wandb=disabled"]
    for name, megabytes in (("whole", 100_000), ("split", 700)):
        command = [sys.executable, "-c", LIMITED, str(megabytes), *words]
        done = subprocess.run(
            [*command, f"run_dir={tmp_path / name}"], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert ("out of memory" in done.stdout) == (name == "split"), done.stdout
    for one, other in zip(rows(tmp_path / "split"), rows(tmp_path / "whole"), strict=True):
        assert one["query_loss"] == pytest.approx(other["query_loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def test_a_task_that_does_not_fit_alone_is_an_error(world):
    split = SplitGradient(Hungry(INNER, WAYS["unrolled"], 0, CUDA), say=lambda text: None)
    with pytest.raises(OutOfMemory, match="one task alone"):
        split(*world)


def test_other_errors_are_not_caught(world):
    split = SplitGradient(Hungry(INNER, WAYS["unrolled"], 0, RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        split(*world)


def test_parts_of_different_sizes_are_weighted(world):
    problem, meta, task = world
    parts = [WAYS["implicit"](problem, meta, task[a:b]) for a, b in ((0, 1), (1, 7))]
    close(merge_results(parts).grads, WAYS["implicit"](problem, meta, task).grads)
    swapped = replace(parts[0], grads=parts[1].grads)
    wrong = merge_results([swapped, parts[1]]).grads
    assert not torch.allclose(wrong["1.weight"], merge_results(parts).grads["1.weight"])
