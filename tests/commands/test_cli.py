"""What the command line says to a newcomer, and to a mistake."""

from __future__ import annotations

from functools import partial, wraps

import pytest
from omegaconf import OmegaConf
from tiny_run import TINY

from metalearn.commands.main import main
from metalearn.config import config_folder
from metalearn.studies.frame import options
from metalearn.tasks import glyphs, vision

LONG = "x" * 300
REFUSED = [
    ("trian", "did you mean 'train'"),
    ("train stps=3", "did you mean 'steps'"),
    ("train metagrad=imam", "did you mean 'imaml'"),
    ("train metagrad.inner.step=3", "did you mean 'metagrad.inner.steps'"),
    ("train steps=abc", "expected a whole number"),
    ("train steps=0", "at least 1"),
    ("train problem.transductive=3", "true or false"),
    ("train problem.prox=-1", "at least 0"),
    ("train problem.prox=0", "prox above 0"),
    ("train metagrad.curvature=gauss", "'hessian' or 'gauss_newton'"),
    (
        "train metagrad.linear_solver.max_iters=-2",
        "CG(max_iters=-2); expected a whole number of at least 0",
    ),
    ("train metagrad.inner.lr=0", "lr above 0"),
    ("train tasks.image_size=20", "tasks.image_size=20: expected those of the images, (1, 28, 28)"),
    ("train tasks.queries=99", "tasks of the train split: shots=1 and queries=99 need 100 images"),
    ("train tasks.test_queries=99", "tasks of the validation split: shots=1 and queries=99"),
    ("bench memory methods=[imaml]", "expected one of 'unrolled, higher', 'unrolled, batched'"),
    ("train problem.adapt=tail", "'all', 'head'"),
    ("train problem.adapt=3", "expected text or a list of values"),
    ("train problem.learn_rates=1", "true or false"),
    ("train model=mlp meta_batch=2 problem.learn_rates=true", "metagrad=maml_batched"),
    ("train metagrad=maml problem.learn_prox=true", "at which learn_prox=true starts"),
    ("train metagrad=first_order problem.prox=1 problem.learn_prox=true", "['log_prox']"),
    ("train metagrad=maml_batched metagrad.truncate=-1", "at least 0 steps"),
    ("train tasks.ways=4000", "4000"),
    ("train tasks.shots=9", "images a class"),
    ("train schedule=linear", "'constant' or 'cosine'"),
    ("train wandb=yes", "'offline'"),
    ("train device=tpu0", "'cpu' or 'cuda'"),
    ("train tasks.image_size=32", "image_size"),
    ("train steps", "key=value"),
    ("train resume=/nowhere", "there is no run"),
    ("train threads=0", "from 1 to"),
    ("train seed=99999999999999999999", "from 0 to 4294967295"),
    ("train clip_norm=abc", "a number"),
    ("train device=meta", "'cpu' or 'cuda'"),
    ("train optimiser.lr=-1", "learning rate: -1"),
    ("train optimiser.lr=nan", "a finite number"),
    ("train optimiser=sgd optimiser.lr=1e300", "optimiser.lr=1e+300; expected a number up"),
    ("train +optimiser.capturable=true", "refuses optimiser"),
    ("train metagrad.inner.lr=1e300", "lr above 0, up to 3.4e+38"),
    ("train metagrad.damping=1e300", "damping=1e+300; expected a number of at least 0, up"),
    ("train metagrad=imaml_authors_code metagrad.prox_lr=1e300", "prox_lr=1e+300"),
    (
        "train metagrad=imaml_neumann metagrad.linear_solver.step_size=1e300",
        "above 0, up to 3.4e+38",
    ),
    ("train model._target_=torch.nn.Identity", "torch.nn.Identity has no parameters"),
    ("train +optimiser.foo=1", "'foo'"),
    ("train +optimiser.lr=1", "adds an option that is there"),
    ("train metagrad.inner=3", "metagrad.inner.steps="),
    ("train metagrad.inner.tol=abc", "a number"),
    ("train metagrad=imaml_authors_code metagrad.linear_solver=null", "max_iters="),
    ("train ~metagrad", "takes an option away"),
    ("train metagrad=null", "null is unknown"),
    ("train model=conv4 model.head=free model.ways=3", "tasks have 5 classes"),
    ("train model.sizes=[10,5]", "784 values"),
    ("train model.sizes=[784,x]", "a whole number"),
    ("train model.sizes=3", "a list"),
    ("train tasks=sinusoid model=conv4", "model=mlp_sinusoid"),
    ("train tasks=sinusoid model=mlp", "begin with 1"),
    ("train run_dir=/proc/x/y", "cannot be written"),
    ("train run_dir=7", "text"),
    ("train -m seed=0,1 model.sizes=[784,8,2]", "tasks have 5 classes"),
    ("train -m resume=runs/x", "leave -m out"),
    ("train seed=0,1", "needs -m"),
    ("train +foo=1", "nothing takes it"),
    ("train =3", "key=value"),
    ("train tasks._target_=os.system", "not built from a config"),
    ("train validation.tasks=1", "at least 2"),
    ("train checkpoint_every=1.5", "a whole number"),
    ("train average=1", "average=1: expected a number below 1"),
    ("train on_failed_solve=ignore", "one of stop, skip, halve, keep"),
    ("train on_explosion=null", "text"),
    ("evaluate", "checkpoint=PATH"),
    ("evaluate checkpoint=/nowhere.pt", "no checkpoint"),
    ("evaluate checkpoint=/x.pt inner_steps=[x]", "a whole number"),
    ("evaluate checkpoint=/x.pt inner_steps=[5,5]", "different whole numbers"),
    ("evaluate checkpoint=3", "checkpoint=PATH"),
    ("evaluate checkpoint=/x.pt tasks=1", "at least 2"),
    ("evaluate checkpoint=/x.pt split=train", "'validation' or 'test'"),
    ("evaluate checkpoint=/x.pt benchmark=official", "one of held_out"),
    ("evaluate checkpoint=/x.pt benchmark=omniglot_official", "all_runs.zip"),
    ("train tasks.task_pool=0", "at least 1 task"),
    ("train tasks.ways=1", "ways=1 leaves nothing to tell apart"),
    ("evaluate checkpoint=/x.pt tasks=1,2", "one value at a time"),
    ("evaluate checkpoint=nosuchname", "no checkpoint nosuchname in results/"),
    ("adapt", "adapt needs checkpoint=PATH"),
    ("adapt checkpoint=/x.pt support=. out=", "out= is missing"),
    ("adapt checkpoint=/x.pt support=. out=absent/m.pt", "there is no folder absent. Make it"),
    ("adapt checkpoint=/x.pt support=. out=m.pt", "no checkpoint /x.pt"),
    ("adapt checkpoint=nosuchname support=. out=m.pt", "no checkpoint nosuchname in results/"),
    ("adapt checkpoint=/x.pt suport=.", "did you mean 'support'"),
    ("adapt checkpoint=omniglot_5w1s_maml_quick support=absent out=m.pt", "absent is not there"),
    ("adapt checkpoint=omniglot_5w1s_maml_quick support=. out=m.pt", "none of the layouts"),
    ("adapt checkpoint=/x.pt support=. out=m.pt inner_steps=x", "a whole number"),
    ("predict", "predict needs checkpoint=FILE"),
    ("predict checkpoint=/x.pt images=.", "checkpoint=/x.pt is not there"),
    ("predict checkpoint=/x.pt images=. out=p.txt", "expected a .csv file"),
    ("play checkpoint=/x.pt port=0", "no checkpoint /x.pt"),
    ("play checkpoint=nosuchname", "no checkpoint nosuchname in results/"),
    ("play checkpoint=[]", "up to 3 of them"),
    ("play checkpoint=[a,b,c,d]", "up to 3 of them"),
    ("play checkpoint=3", "expected the best.pt of a run"),
    ("play prot=1", "did you mean 'port'"),
    ("play port=x", "a whole number, such as 8765"),
    ("play port=65536", "a number from 0 to 65535"),
    ("play inner_steps=0", "a whole number from 1 to 30"),
    ("play browser=1", "true or false"),
    ("train wandb=disabled tracking.project=a/b", "tracking.project=a/b: expected"),
    ("train wandb=disabled tracking.tags=a", "expected a list"),
    ("train tracking.grp=a", "did you mean 'tracking.group'"),
    ("bench memry", "did you mean 'memory'"),
    ("bench memory network=conv5", "one of conv4"),
    ("bench memory second=conv4", "expected another"),
    ("bench memory steps=[0,1]", "at least 1"),
    ("bench memory steps=[4]", "at least two"),
    ("bench memory batch=1", "at least 2"),
    ("bench memory limit_gb=0", "above 0"),
    ("bench memory parts=[long]", "expected steps, and any of"),
    ("bench memory device=tpu0", "'cpu' or 'cuda'"),
    ("bench properties network=conv5", "one of conv4"),
    ("bench properties steps=[1,2]", "at least 3 values"),
    ("bench properties seeds=[]", "at least 1 value"),
    ("bench properties size=1", "at least 2"),
    ("bench properties conditions=[1.0]", "above 1"),
    ("bench properties rtol=1", "below 1"),
    ("bench properties results=/proc/x", "cannot be written"),
    ("bench gradient size=1", "at least 2"),
    ("bench gradient reach=1", "a number below 1"),
    ("bench gradient conditions=[1.0]", "conditions[0]=1.0: expected at least 1.5"),
    ("bench gradient seeds=[1,1]", "no two equal values"),
    ("bench differences subjects=[x]", "subjects[0]=x: expected one of inner steps"),
    ("bench iterations error_tasks=0", "error_tasks=0: expected at least 1"),
    ("bench stability solvers=[x]", "solvers[0]=x: expected one of fixed rate"),
    ("bench speed workloads=[imaml]", "one of imaml-5w1s"),
    ("bench speed tasks=[0]", "at least 1"),
    ("bench speed rounds=1", "at least 2"),
    ("bench speed overhead_steps=1", "0, or at least"),
    ("bench speed copies=0", "at least 1"),
    ("bench speed keep_memory=mine", "one of all, ours, none"),
    ("bench speed tasks=[4,4]", "asked for twice"),
    ("bench cg iterations=[-1]", "at least 0"),
    ("bench cg iterations=[]", "at least 1 value"),
    ("bench cg proxes=[0.0]", "above 0"),
    ("bench cg ways=[gmres]", "ways[0]=gmres: expected one of cg"),
    ("bench cg ways=[neumann]", "ways=['neumann']: expected cg"),
    ("bench cg way_iterations=4", "one of iterations="),
    ("bench cg tasks=0", "at least 1"),
    ("bench cg test_tasks=1", "at least 2"),
    ("bench fewshot methods=[mamml]", "did you mean 'maml'"),
    (
        "bench fewshot settings=[omniglot_5w5s] methods=[maml,maml_tuned]",
        "expected a setting of omniglot_5w1s",
    ),
    (
        "bench fewshot methods=[imaml_tuned] settings=[omniglot_5w1s,omniglot_5w5s]",
        "expected some of fomaml, imaml",
    ),
    ("bench fewshot methods=[3]", "expected text (a number in quotes: \"'1'\")"),
    ("bench fewshot settings=[]", "at least 1 value"),
    ("bench fewshot train_minutes=-1", "train_minutes=-1: expected at least 0"),
    ("bench fewshot validation_every=0", "validation_every=0: expected at least 1"),
    ("bench soak meta_batch=0", "meta_batch=0: expected at least 1"),
    ("solve deq preset=quik", "did you mean 'quick'"),
    ("solve deq epochs=0", "at least 1"),
    ("solve deq seeds=[]", "at least 1 value"),
    ("solve deq -m width=1,2", "runs one study"),
    ("solve deq measure=false", "is no folder; leave measure=false out"),
    ("solve deq depths=[0]", "at least 1"),
    ("solve deq batch=5000", "1347 training images"),
    ("solve deq pairs=some", "'all' or 'each'"),
    ("solve deq wandb=yes", "'offline'"),
    ("solve distill dataset=minst", "did you mean 'mnist'"),
    ("solve distill test=1.5", "between 0 and 1"),
    ("solve distill methods=[]", "at least 1 value"),
    ("solve distill steps=0", "at least 1"),
    ("solve distill decay=0.0", "above 0"),
    ("solve distill judge_decays=[-1.0]", "above 0"),
    ("solve hpo problems=[]", "problems=[]: expected at least 1 value"),
    ("solve hpo splits=[]", "splits=[]: expected"),
    ("solve hpo grid=0", "at least 1"),
    ("solve hpo bounds=[1.0,0.1]", "the lower number first"),
    ("solve hpo start=0.0", "above 0"),
    ("solve hpo damping=-1.0", "at least 0"),
    ("solve nas methods=[]", "at least 1 value"),
    ("solve nas nodes=0", "at least 1"),
    ("solve nas warmup=-1", "at least 0"),
    ("solve nas damping=-1.0", "at least 0"),
    ("solve nas decay=0.0", "above 0"),
    ("solve nas nodes=1 random=7", "at most the 6"),
    ("report", "neither results/ nor a finished run"),
    ("report results=results", "results=results is no folder"),
    ("demo maml_steps=0", "maml_steps=0: expected at least 1"),
    ("demo tasks=mini", "tasks=mini: expected one of omniglot, glyphs"),
    ("demo inner_steps=[2,2]", "expected no two equal values"),
    ("demo out=/proc/self/demo tasks=glyphs", "cannot be written"),
    ("report results=", "is empty"),
    ("report result=x", "did you mean 'results'"),
    ("report results=. runs=[/nowhere]", "holds no finished run"),
    ("report results=. out=/proc/x/r.html", "cannot be written"),
    ("report results=. out=.", "is a folder"),
    ("data bogus --help", "data prepare"),
    ("data prepare omniglot source=", "source= is no folder and no archive"),
    ("data prepare omniglt", "did you mean 'omniglot'"),
    ("data prepare glyphs source=/x", "no option of glyphs"),
    ("train metagrad.linear_solver.max_iters=0", "makes no iteration"),
    ("train clip_norm=0", "clip_norm=0: expected a number above 0"),
    ("train meta_batch=1000000000000", "at most 100000"),
    ("train micro_batches=0", "micro_batches=0: expected at least 1"),
    ("train model=conv4 model.channels=0", "at least 1"),
    ("train model=conv4 model.norm=layer", "'group' or 'none'"),
    ("train model=conv4 model.activation=tanh", "'relu' or 'silu'"),
    ("train model=conv4 model.in_channels=3", "cannot take the tasks' inputs"),
    ("train model=resnet12 model.widths=[]", "at least one width"),
    ("train model.sizes=[]", "at least two"),
    ("train name=a/b", "no / among them"),
    ("train tasks.dataset.drawings=0", "1 to 1000 drawings"),
    ("train tasks=omniglot tasks.dataset.source=/nowhere model=conv4", "is not a folder"),
    ("train metagrad.inner._target_=metalearn.nn.MLP", "expected a class of metalearn.inner"),
    ("train model._target_=torch.optim.Adam", "Adam cannot be built"),
    ("train name=${oc.env:HOME}", "calls a resolver"),
    ("train steps=${nothing}", "no option"),
    ("train problem.adapt=${seed}", "text"),
    ("train +optimiser.betas=[0.1]", "a list of 2 values, each a number"),
    ("train +metagrad._partial_=true", "with _partial_"),
    ("train hydra.run.dir=x", "Hydra's own"),
    ("train run_dir=", "is empty"),
    ("evaluate checkpoint=.", "no checkpoint ."),
    ("evaluate checkpoint=/proc/self/mem out=e.json", "mem cannot be read (Input/output"),
    ("evaluate checkpoint=/proc/self/mem out=.", "out=. is a folder"),
    ("evaluate checkpoint=/proc/self/mem out=absent/e.json", "out=absent/e.json cannot"),
    ("bench cg inner_lr=${seed}", "'seed' not found"),
    (f"evaluate checkpoint={LONG}", "too long"),
    (f"train run_dir={LONG}", "too long"),
    (f"report results={LONG}", "too long"),
    (f"data prepare fc100 source={LONG}", "too long"),
    ("train tasks.dataset._partial_=false", "tasks.dataset._partial_=False"),
    ("data prepare fc100 source=.", "lacks FC100_train.pickle"),
    ("data prepare fc100 sorce=.", "expected source=PATH"),
    ("data prepare omniglot source=a\nb", "source=a b is not there"),
    ("data prepare omniglot source=~nosuchuser/x", "a user who is not known here"),
    (
        "train tasks=omniglot tasks.dataset.source='~nosuchuser/x' model=conv4",
        "a user who is not known here",
    ),
    ("solve distill dataset=mnist source='~nosuchuser/x'", "a user who is not known here"),
]
"""A row for each place that refuses: the words, and a part of the sentence."""


def test_a_source_without_tasks_names_data(capsys):
    assert main(["train", "source=photos"]) == 2
    assert "Give data=PATH to train on your own images" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "sentence"), REFUSED, ids=[line[:80] for line, _ in REFUSED])
def test_main_refuses_a_mistake_in_one_sentence_and_writes_nothing(
    line, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    verb, *words = line.split(" ")
    if verb == "train" and not any(w.startswith("resume=") for w in words):
        chosen = {w.split("=")[0] for w in words}
        words = [*(t for t in TINY if not chosen & {t.split("=")[0], t.split(".")[0]}), *words]
    assert main([verb, *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


HIDDEN = {"_target_", "presets", "expected_minutes"}
HELP = {
    "demo": ["maml_steps", "runs/demo"],
    "train": ["imaml_authors_code", "on_nonfinite"],
    "train metagrad=imaml_stable tasks.ways=5 problem=head": [
        *("metagrad=imaml_stable", "decrease: 0.1", "problem=few_shot", "problem=head"),
        "adapt: head",
    ],
    "evaluate": ["checkpoint", "omniglot_official"],
    "adapt": ["support", "transductive"],
    "predict": ["predictions.csv"],
    "play": ["checkpoint", "8765"],
    "report": ["runs/report.html"],
    "data": ["omniglot"],
    "bench": options.names("bench"),
    "solve": [*options.names("solve"), "deep equilibrium"],
    "bench soak": ["how often a run is looked at"],
    "bench fewshot": ["continues them"],
}
"""The names that the help of a verb or of a study has to have."""


@pytest.mark.parametrize("verb", HELP)
def test_help_names_the_choices_and_explains_options(verb, capsys):
    assert main([*verb.split(" "), "--help"]) == 0
    shown = capsys.readouterr().out
    assert not [part for part in HELP[verb] if part not in shown]


@pytest.mark.parametrize(
    ("word", "meant"), [("metagrad=imaml_stabel", "imaml_stable"), ("metagard=imaml", "metagrad")]
)
def test_help_refuses_a_choice_that_does_not_exist(word, meant, capsys):
    assert main(["train", "--help", word]) == 2
    assert f"did you mean {meant!r}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["bench", "solve"])
def test_help_of_a_study_names_each_of_its_options(verb, capsys):
    for name in options.names(verb):
        assert main([verb, name, "--help"]) == 0
        shown = capsys.readouterr().out
        own = set(OmegaConf.load(config_folder() / verb / f"{name}.yaml")) - HIDDEN
        assert not [key for key in (*own, "preset") if f"{key}: " not in shown], name


@pytest.mark.parametrize(
    ("words", "part"),
    [([], "evaluate"), (["--help"], ", ".join(options.names("solve"))), (["--version"], "0.")],
)
def test_main_shows_the_verbs_and_the_version(words, part, capsys):
    assert main(words) == 0
    assert part in capsys.readouterr().out


def test_data_prepare_says_what_it_made(monkeypatch, capsys):
    few = wraps(glyphs.glyphs)(partial(glyphs.glyphs, drawings=4))
    monkeypatch.setattr(glyphs, "glyphs", few)
    assert main(["data", "prepare", "glyphs"]) == 0
    said = capsys.readouterr().out
    for split in ("train", "validation", "test"):
        assert f"glyphs {split}:" in said


def test_what_no_cache_holds_is_only_checked(monkeypatch, tmp_path, capsys):
    small = glyphs.glyphs(drawings=4)
    monkeypatch.setattr(vision, "mini_imagenet", lambda source: small)
    assert main(["data", "prepare", "mini_imagenet", f"source={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert f"tasks=mini_imagenet tasks.dataset.source={tmp_path}" in said
    assert "cached in" not in said


def test_a_damaged_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(b"not a checkpoint")
    assert main(["evaluate", f"checkpoint={path}"]) == 2
    assert "damaged" in capsys.readouterr().err
