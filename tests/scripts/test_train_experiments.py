"""The script that trains experiments; in metalearn's place a program that notes its words."""

from __future__ import annotations

from noted_script import noted_script

NAME = "omniglot_5w1s_maml"


def test_a_run_is_resumed_by_the_words_it_was_begun_with(tmp_path):
    run = noted_script(tmp_path, "train_experiments")
    folder = tmp_path / "runs" / "mine" / f"{NAME}-seed1"
    begun = run("mine", NAME, "seed=1").stdout
    where = f"runs/mine/{NAME}-seed1"
    assert begun.startswith(f"train experiment={NAME} threads=1 run_dir={where} seed=1\n")
    folder.mkdir(exist_ok=True)
    (folder / "last.pt").touch()
    assert run("mine", NAME, "seed=1").stdout.startswith(f"train resume={where}\n")
    (tmp_path / "runs" / "mine" / f"{NAME}.words").write_text("steps=5\n")
    refused = run("mine", NAME, "steps=6")
    assert refused.returncode == 2 and not refused.stdout
    assert "was begun with 'steps=5', not 'steps=6'" in refused.stderr


def test_a_seed_starts_from_the_same_seed_of_its_first_training(tmp_path):
    run = noted_script(tmp_path, "train_experiments")
    second, first = "omniglot_imaml_table", "omniglot_ridge_table"
    assert run("mine", second, "seed=2").stdout.startswith(
        f"train experiment={second} threads=1 run_dir=runs/mine/{second}-seed2 "
        f"seed=2 init_from={first}-seed2\n"
    )
    for words in ([], ["seed=0"]):
        assert run("mine", second, *words).stdout.startswith(
            f"train experiment={second} threads=1 run_dir=runs/mine/{second}\n"
        )


def finished(tmp_path, config: str):
    folder = tmp_path / "runs" / "mine" / NAME
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    (folder / "best.pt").write_bytes(b"weights")
    (folder / "config.yaml").write_text(config)
    return folder


def test_a_free_head_is_judged_on_its_own_ways_and_kept(tmp_path):
    run = noted_script(tmp_path, "train_experiments")
    folder = finished(
        tmp_path, "tasks:\n  dataset: {}\n  ways: 20\nmodel:\n  ways: 5\n  head: free\n"
    )
    (folder / "evaluation-20.json").write_text("20")
    assert run("mine", NAME).stdout == ""
    results = tmp_path / "results" / "mine"
    assert (results / f"{NAME}.json").read_text() == "{}"
    assert (results / f"{NAME}.pt").read_bytes() == b"weights"
    assert (results / f"{NAME}-20-way.json").read_text() == "20"


def test_a_symmetric_head_is_judged_on_both_ways(tmp_path):
    run = noted_script(tmp_path, "train_experiments")
    folder = finished(tmp_path, "tasks:\n  ways: 20\nmodel:\n  head: zero\n")
    (folder / "evaluation-5.json").write_text("5")
    (folder / "evaluation-20.json").write_text("20")
    assert run("mine", NAME).stdout == ""
    assert (tmp_path / "results" / "mine" / f"{NAME}-5-way.json").read_text() == "5"


def test_the_five_best_checkpoints_are_judged_as_an_ensemble(tmp_path):
    run = noted_script(tmp_path, "train_experiments")
    folder = finished(tmp_path, "model:\n  head: free\ntasks:\n  ways: 5\n")
    (folder / "best.4.pt").touch()
    (folder / "evaluation-5.json").write_text("5")
    said = run("mine", NAME).stdout
    best = ",".join(f"runs/mine/{NAME}/best{place}.pt" for place in ("", ".1", ".2", ".3", ".4"))
    assert f"evaluate checkpoint=[{best}] ensemble=true tasks=4000" in said


def test_a_run_that_is_not_judged_yet_is_evaluated(tmp_path):
    run = noted_script(tmp_path, "train_experiments")
    finished(tmp_path, "tasks:\n  ways: 5\n")
    said = run("mine", NAME).stdout
    assert said.count("evaluate") == 1 and "ways=5" in said and "tasks=4000" in said
