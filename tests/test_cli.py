"""What the command line says to a newcomer, and to a mistake."""

from __future__ import annotations

import pytest
from tiny_run import TINY

from metalearn.cli import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "stps=3"], "did you mean 'steps'"),
        (["train", "metagrad=imam"], "did you mean 'imaml'"),
        (["train", "metagrad.inner.step=3"], "did you mean 'metagrad.inner.steps'"),
        (["train", "tasks=omniglt"], "did you mean 'omniglot'"),
        (["train", "steps=abc"], "expected a whole number"),
        (["train", "steps=0"], "at least 1"),
        (["train", "transductive=3"], "true or false"),
        (["train", "prox=-1"], "at least 0"),
        (["train", "prox=0"], "prox above 0"),
        (["train", "metagrad.curvature=gauss"], "'hessian' or 'gauss_newton'"),
        (["train", "metagrad.linear_solver.max_iters=-2"], "negative"),
        (["train", "metagrad.inner.lr=0"], "lr above 0"),
        (["train", "adapt=tail"], "'all', 'head'"),
        (["train", "learn_rates=1"], "true or false"),
        (["train", "metagrad=maml", "learn_prox=true"], "learn_prox=true starts from it"),
        (["train", "metagrad=first_order", "prox=1", "learn_prox=true"], "['log_prox']"),
        (["train", "metagrad=reptile", "adapt=head"], "no gradient reaches meta"),
        (["train", "metagrad=maml_batched", "metagrad.truncate=-1"], "at least 0 steps"),
        (["train", "metagrad=maml_batched", "metagrad.truncate=all"], "a whole number"),
        (["train", "metagrad=maml_checkpointed", "metagrad.checkpoint=0"], "at least 1 step"),
        (["train", "metagrad=maml_checkpointed", "metagrad.backend=higher"], "backend='batched'"),
        (["train", "tasks.ways=4000"], "4000"),
        (["train", "tasks.shots=9"], "images a class"),
        (["train", "schedule=linear"], "'constant' or 'cosine'"),
        (["train", "wandb=yes"], "'offline'"),
        (["train", "device=tpu0"], "'cpu' or 'cuda'"),
        (["train", "tasks.image_size=32"], "image_size"),
        (["train", "steps"], "key=value"),
        (["train", "resume=/nowhere"], "there is no run"),
        (["train", "threads=0"], "from 1 to"),
        (["train", "threads=abc"], "whole number"),
        (["train", "seed=99999999999999999999"], "from 0 to 4294967295"),
        (["train", "clip_norm=abc"], "a number"),
        (["train", "tasks.dataset.seed=-1"], "from 0 to"),
        (["train", "device=meta"], "'cpu' or 'cuda'"),
        (["train", "device=mps"], "'cpu' or 'cuda'"),
        (["train", "optimiser.lr=-1"], "learning rate: -1"),
        (["train", "optimiser.lr=nan"], "a finite number"),
        (["train", "optimiser=sgd", "optimiser.lr=1e300"], "refuses optimiser"),
        (["train", "optimiser.eps=-1"], "epsilon value: -1"),
        (["train", "+optimiser.foo=1"], "'foo'"),
        (["train", "metagrad.inner=3"], "metagrad.inner.steps="),
        (["train", "metagrad.inner.tol=abc"], "a number"),
        (["train", "metagrad=imaml_authors_code", "metagrad.linear_solver=null"], "max_iters="),
        (["train", "~metagrad"], "takes an option away"),
        (["train", "metagrad=null"], "null is unknown"),
        (["train", "model=conv4", "model.ways=3"], "tasks have 5 classes"),
        (["train", "model.sizes=[10,5]"], "784 values"),
        (["train", "model.sizes=[784,8,2]"], "tasks have 5 classes"),
        (["train", "model.sizes=[784,x]"], "a whole number"),
        (["train", "model.sizes=3"], "a list"),
        (["train", "tasks.ways=20"], "tasks have 20 classes"),
        (["train", "tasks=sinusoid", "model=conv4"], "model=mlp_sinusoid"),
        (["train", "tasks=sinusoid", "model=mlp"], "begin with 1"),
        (["train", "run_dir=/proc/x/y"], "cannot be written"),
        (["train", "run_dir=/etc/hostname"], "cannot be written"),
        (["train", "run_dir=7"], "text"),
        (["train", "-m", "seed=0,1", "model.sizes=[784,8,2]"], "tasks have 5 classes"),
        (["train", "-m", "resume=runs/x"], "leave -m out"),
        (["train", "seed=0,1"], "needs -m"),
        (["train", "+foo=1"], "nothing takes it"),
        (["train", "prox=inf"], "a finite number"),
        (["train", "validation=3"], "validation.every="),
        (["train", "=3"], "key=value"),
        (["train", "tasks._target_=os.system"], "in metalearn or torch"),
        (["train", "validation.tasks=1"], "at least 2"),
        (["train", "test.tasks=1"], "at least 2"),
        (["train", "checkpoint_every=0"], "at least 1"),
        (["train", "checkpoint_every=1.5"], "a whole number"),
        (["train", "keep_checkpoints=0"], "at least 1"),
        (["train", "on_nonfinite=keep"], "one of stop, skip, halve"),
        (["train", "on_nonfinite=1"], "text"),
        (["train", "on_failed_solve=ignore"], "one of stop, skip, halve, keep"),
        (["train", "on_explosion=null"], "text"),
        (["train", "explosion_factor=1"], "above 1"),
        (["train", "explosion_factor=big"], "a number"),
        (["evaluate"], "checkpoint=PATH"),
        (["evaluate", "checkpoint=/nowhere.pt"], "no checkpoint"),
        (["evaluate", "checkpoint=/x.pt", "queries=abc"], "a whole number"),
        (["evaluate", "checkpoint=/x.pt", "steps=abc"], "a whole number"),
        (["evaluate", "checkpoint=/x.pt", "tasks=1,2"], "one value at a time"),
        (["evaluate", "checkpoint=/x.pt", "transductive=7"], "true or false"),
        (["evaluate", "checkpoint=/x.pt", "+foo=1"], "nothing takes it"),
        (["bench", "memry"], "did you mean 'memory'"),
        (["bench", "memory", "network=conv5"], "one of conv4"),
        (["bench", "memory", "second=conv4"], "expected another"),
        (["bench", "memory", "steps=[0,1]"], "at least 1"),
        (["bench", "memory", "steps=[4]"], "at least two"),
        (["bench", "memory", "steps=[1,2,256]"], "none of them among"),
        (["bench", "memory", "batch=1"], "at least 2"),
        (["bench", "memory", "repeats=0"], "at least 2 and 1"),
        (["bench", "memory", "limit_gb=0"], "above 0"),
        (["bench", "memory", "parts=[long]"], "expected steps, and any of"),
        (["bench", "memory", "device=tpu0"], "'cpu' or 'cuda'"),
        (["bench", "properties", "network=conv5"], "one of conv4"),
        (["bench", "properties", "steps=[1,2]"], "three or more"),
        (["bench", "properties", "seeds=[]"], "at least 0"),
        (["bench", "properties", "size=1"], "at least 2"),
        (["bench", "properties", "conditions=[1.0]"], "above 1"),
        (["bench", "properties", "rtol=1"], "below 1"),
        (["bench", "properties", "results=/proc/x"], "cannot be written"),
        (["bench", "gradint"], "did you mean 'gradient'"),
        (["bench", "gradient", "conditions=[0.5]"], "from 1.5 to"),
        (["bench", "gradient", "conditions=10"], "a list"),
        (["bench", "gradient", "cg_iters=[0]"], "at least 1"),
        (["bench", "gradient", "reach=2"], "below 1"),
        (["bench", "gradient", "size=1"], "at least 2"),
        (["bench", "gradient", "points=many"], "a whole number"),
        (["bench", "gradient", "conditions=[10,x]"], "a number"),
        (["bench", "sped"], "did you mean 'speed'"),
        (["bench", "speed", "workloads=[imaml]"], "any of imaml-5w1s"),
        (["bench", "speed", "workloads=[]"], "any of imaml-5w1s"),
        (["bench", "speed", "tasks=[0]"], "at least 1"),
        (["bench", "speed", "ways=5"], "a list"),
        (["bench", "speed", "rounds=1"], "at least 2"),
        (["bench", "speed", "timing_s=-1"], "at least 2, 2 and 0"),
        (["bench", "speed", "overhead_steps=1"], "0, or at least"),
        (["bench", "speed", "differing=maybe"], "true or false"),
        (["bench", "speed", "tasks=[4,4]"], "asked for twice"),
        (["bench", "speed", "device=tpu0"], "'cpu' or 'cuda'"),
        (["bench", "gc"], "did you mean 'cg'"),
        (["bench", "cg", "iteration=[1]"], "did you mean 'iterations'"),
        (["bench", "cg", "iterations=[-1]"], "at least 0"),
        (["bench", "cg", "iterations=[]"], "at least 0"),
        (["bench", "cg", "iterations=5"], "a list"),
        (["bench", "cg", "seeds=[1,1]"], "different whole numbers"),
        (["bench", "cg", "proxes=[0.0]"], "above 0"),
        (["bench", "cg", "ways=[gmres]"], "'cg' and any others"),
        (["bench", "cg", "way_iterations=4"], "one of iterations="),
        (["bench", "cg", "tasks=0"], "at least 1"),
        (["bench", "cg", "test_tasks=1"], "at least 2"),
        (["train", "metagrad=imaml_iterations", "metagrad.way=gmres"], "'gmres' is unknown"),
        (["train", "metagrad=imaml_iterations", "metagrad.iterations=-1"], "at least 0"),
        (["bench", "soak", "runs=[sinus]"], "expected names among sinusoid"),
        (["bench", "soak", "runs=[]"], "expected names among sinusoid"),
        (["bench", "soak", "runs=sinusoid"], "a list"),
        (["bench", "soak", "steps=7"], "at least 8 points"),
        (["bench", "soak", "points=30000"], "as many steps"),
        (["bench", "soak", "meta_batch=0"], "and a task"),
        (["bench", "soak", "step=3"], "did you mean 'steps'"),
        (["solve", "dqe"], "did you mean 'deq'"),
        (["solve", "deq", "preset=quik"], "did you mean 'quick'"),
        (["solve", "deq", "preset=null"], "one of full, quick"),
        (["solve", "deq", "epoch=3"], "did you mean 'epochs'"),
        (["solve", "deq", "epochs=0"], "at least 1"),
        (["solve", "deq", "epochs=many"], "a whole number"),
        (["solve", "deq", "seeds=[-1]"], "from 0 to 4294967295"),
        (["solve", "deq", "seeds=[]"], "at least 0"),
        (["solve", "deq", "seeds=3"], "a list"),
        (["solve", "deq", "seeds=[0,0]"], "asked for twice"),
        (["solve", "deq", "seeds=[99999999999999999999]"], "from 0 to 4294967295"),
        (["solve", "deq", "-m", "width=1,2"], "runs one study"),
        (["solve", "deq", "minutes=3"], "is no option"),
        (["solve", "deq", "measure=false"], "no rows and provenance to go by"),
        (["solve", "deq", "measure=1"], "true or false"),
        (["solve", "deq", "seeds=0,1"], "one value at a time"),
        (["solve", "deq", "depths=[0]"], "at least 1"),
        (["solve", "deq", "batch=5000"], "1347 images"),
        (["solve", "deq", "pairs=some"], "'all' or 'each'"),
        (["solve", "deq", "device=tpu0"], "'cpu' or 'cuda'"),
        (["solve", "deq", "threads=0"], "from 1 to"),
        (["solve", "deq", "wandb=yes"], "'offline'"),
        (["solve", "deq", "results=/proc/x"], "cannot be written"),
        (["solve", "distil"], "did you mean 'distill'"),
        (["solve", "distill", "dataset=minst"], "did you mean 'mnist'"),
        (["solve", "distill", "dataset=mnist", "source=/nowhere"], "four idx files"),
        (["solve", "distill", "source=/nowhere"], "leave source out"),
        (["solve", "distill", "test=1.5"], "between 0 and 1"),
        (["solve", "distill", "train=3"], "at least 10 images"),
        (["solve", "distill", "methods=[newton]"], "methods has 'newton'"),
        (["solve", "distill", "methods=[]"], "at least one"),
        (["solve", "distill", "seeds=[]"], "at least one"),
        (["solve", "distill", "steps=0"], "at least 1"),
        (["solve", "distill", "decay=0.0"], "above 0"),
        (["solve", "distill", "judge_decays=[-1.0]"], "above 0"),
        (["solve", "distill", "methods=[cg,cg]"], "asked for twice"),
        (["solve", "hop"], "did you mean 'hpo'"),
        (["solve", "hpo", "problems=[rigde]"], "did you mean 'ridge'"),
        (["solve", "hpo", "problems=[]"], "problems=[]; expected some of ridge"),
        (["solve", "hpo", "methods=[newton]"], "methods has 'newton'"),
        (["solve", "hpo", "methods=[cg,cg]"], "asked for twice"),
        (["solve", "hpo", "splits=[]"], "seeds from 0 on"),
        (["solve", "hpo", "seeds=[-1]"], "seeds from 0 on"),
        (["solve", "hpo", "seeds=3"], "a list"),
        (["solve", "hpo", "grid=0"], "at least 1"),
        (["solve", "hpo", "iterations=many"], "a whole number"),
        (["solve", "hpo", "bounds=[1.0,0.1]"], "the lower first"),
        (["solve", "hpo", "bounds=[1.0]"], "two numbers above 0"),
        (["solve", "hpo", "tols=[1e-5,1e-2]"], "the larger first"),
        (["solve", "hpo", "start=0.0"], "above 0"),
        (["solve", "hpo", "spread=-1.0"], "above 0"),
        (["solve", "hpo", "lr=inf"], "lr=inf"),
        (["solve", "hpo", "images=5"], "at least 10 images"),
        (["solve", "hpo", "validation=2000"], "between 0 and 1"),
        (["solve", "hpo", "few=5"], "at least 10 images"),
        (["solve", "hpo", "device=tpu0"], "'cpu' or 'cuda'"),
        (["solve", "hpo", "results=/proc/x"], "cannot be written"),
        (["solve", "deq", "_target_=os.system"], "in metalearn or torch"),
        (["report"], "results=results is no folder"),
        (["report", "results="], "is empty"),
        (["report", "result=x"], "did you mean 'results'"),
        (["report", "results=.", "runs=[/nowhere]"], "holds no finished run"),
        (["report", "results=.", "runs=runs/x"], "a list, such as [a,b]"),
        (["report", "results=.", "runs=[3]"], "text"),
        (["report", "results=.", "out=/proc/x/r.html"], "cannot be written"),
        (["report", "results=.", "out=."], "is a folder"),
        (["report", "results=a,b"], "one value at a time"),
        (["data", "bogus", "--help"], "data prepare"),
        (["data", "prepare", "omniglot", "source="], "source= is no folder"),
        (["data", "prepare", "omniglot", "source=/nowhere"], "source=/nowhere is no folder"),
        (["data", "prepare", "omniglt"], "did you mean 'omniglot'"),
        (["data", "prepare", "glyphs", "source=/x"], "no option of glyphs"),
        (["data", "fetch"], "data prepare"),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_sentence_and_writes_nothing(
    words, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if words[0] == "train" and not any(w.startswith("resume=") for w in words):
        chosen = {w.split("=")[0] for w in words}
        kept = [t for t in TINY if not chosen & {t.split("=")[0], t.split(".")[0]}]
        words = [words[0], *kept, *words[1:]]
    assert main(words) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--help"], "train"),
        ([], "evaluate"),
        (["train", "--help"], "imaml_authors_code"),
        (["evaluate", "--help"], "checkpoint"),
        (["data", "--help"], "omniglot"),
        (["bench"], "properties"),
        (["bench", "memory", "--help"], "limit_gb"),
        (["bench"], "gradient"),
        (["bench", "gradient", "--help"], "cg_iters"),
        (["bench"], "cg"),
        (["bench", "speed", "--help"], "cg_iterations"),
        (["bench", "cg", "--help"], "train_iterations"),
        (["bench", "soak", "--help"], "how often a run is looked at"),
        (["train", "--help"], "on_nonfinite"),
        (["solve"], "deq"),
        (["solve", "--help"], "deep equilibrium"),
        (["solve", "deq", "--help"], "jacobian_weights"),
        (["solve", "deq", "--help"], "preset"),
        (["solve", "hpo", "--help"], "network_hypergradients"),
        (["report", "--help"], "runs/report.html"),
        (["--version"], "0."),
    ],
)
def test_help(words, part, capsys):
    assert main(words) == 0
    assert part in capsys.readouterr().out


def test_data_prepare_says_what_it_made(capsys):
    assert main(["data", "prepare", "glyphs"]) == 0
    said = capsys.readouterr().out
    for split in ("train", "validation", "test"):
        assert f"glyphs {split}:" in said


def test_what_no_cache_holds_is_only_checked(monkeypatch, tmp_path, capsys):
    from metalearn.tasks import glyphs, vision

    monkeypatch.setattr(vision, "mini_imagenet", lambda source: glyphs.glyphs(drawings=4))
    assert main(["data", "prepare", "mini_imagenet", f"source={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert f"tasks=mini_imagenet tasks.dataset.source={tmp_path}" in said
    assert "cached in" not in said


def test_a_damaged_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(b"not a checkpoint")
    assert main(["evaluate", f"checkpoint={path}"]) == 2
    assert "damaged" in capsys.readouterr().err
