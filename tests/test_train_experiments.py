"""The script that trains experiments; in metalearn's place a program that notes its words."""

from __future__ import annotations

from noted_script import noted_script


def test_a_run_is_gone_on_with_by_the_words_it_was_begun_with(tmp_path):
    run = noted_script(tmp_path, "train_experiments")
    name, folder = "omniglot_5w1s_maml", tmp_path / "runs" / "mine" / "omniglot_5w1s_maml"
    begun = run("mine", name, "seed=1").stdout
    assert begun == f"train experiment={name} threads=1 run_dir=runs/mine/{name} seed=1\n"
    refused = run("mine", name, "seed=2")
    assert refused.returncode == 2 and not refused.stdout
    assert "was begun with 'seed=1', not 'seed=2'" in refused.stderr
    folder.mkdir()
    (folder / "last.pt").touch()
    assert run("mine", name, "seed=1").stdout == f"train resume=runs/mine/{name}\n"
    (folder / "summary.json").write_text("{}")
    assert run("mine", name, "seed=1").stdout == ""
    assert (tmp_path / "results" / "mine" / f"{name}.json").read_text() == "{}"
