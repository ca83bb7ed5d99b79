from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_log

from metalearn.errors import UsageError
from metalearn.training.tracking import Labels, Tracker

ROW: dict[str, float | int | str | None] = {
    "query_loss": 0.5,
    "query_accuracy": 0.8,
    "validation_accuracy": None,
    "peak_memory_bytes": 82_100_000,
    "step_s": 0.61,
    "inner_grad_norm": 1e-3,
    "solve_relative_residual": 1e-5,
    "solve_iterations": 5.0,
    "ritz_low": -0.25,
    "ritz_high": math.inf,
    "solve_converged": 16,
    "config": "omniglot_5w1s_imaml",
}
CONFIG = {"seed": 0, "metagrad": {"name": "imaml", "inner": {"steps": 16, "lr": 0.1}}}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what the tracker sets in this variable is put back.
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        if key != "WANDB_ERROR_REPORTING":
            monkeypatch.delenv(key)


def log_file(tracker: Tracker) -> Path:
    assert tracker.path is not None
    (file,) = tracker.path.glob("*.wandb")
    return file


def test_an_offline_run_is_read_back(
    tmp_path: Path, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(tmp_path / "run", CONFIG, name="first", warn=said.append)
    assert tracker.path is not None and tracker.path.parent == tmp_path / "run" / "wandb"
    for step in range(3):
        tracker.log({**ROW, "query_loss": math.nan if step == 1 else 0.5 / (step + 1)}, step)
    tracker.log({"validation_accuracy": 0.75}, 2)
    tracker.table("comparison", ["config", "bytes"], [["maml", 27_600_000], ["imaml", None]])
    tracker.table("curve", ["step", "value"], [[0, 0.5]])
    tracker.log({"query_loss": 0.125}, 3)
    run_id = tracker.run_id
    tracker.finish({"validation_accuracy": 0.75, "status": "done", "test_accuracy": None})
    tracker.finish({"validation_accuracy": 0.0})
    tracker.log(ROW, 4)
    assert run_id is not None and tracker.run_id == run_id

    file = log_file(tracker)
    rows = wandb_log.history(file)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]
    logged = {key: value for key, value in ROW.items() if value is not None}
    assert rows[0].items() >= logged.items()
    assert "validation_accuracy" not in rows[0]
    assert math.isnan(rows[1]["query_loss"])
    assert rows[2]["validation_accuracy"] == 0.75  # joined to the row of its step
    assert rows[3]["query_loss"] == 0.125  # the tables did not move the step on
    assert wandb_log.config(file) == CONFIG
    summary = wandb_log.summary(file)
    assert summary["validation_accuracy"] == 0.75 and summary["status"] == "done"
    assert "test_accuracy" not in summary

    table = tracker.path / "files" / rows[2]["comparison.path"]
    assert table.parent == tracker.path / "files" / "media" / "table"
    assert json.loads(table.read_text()) == {
        "columns": ["config", "bytes"],
        "data": [["maml", 27_600_000], ["imaml", None]],
    }
    assert said == []
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


def test_nothing_that_was_not_asked_for_is_recorded(tmp_path: Path, said: list[str]) -> None:
    tracker = Tracker(tmp_path, CONFIG, warn=said.append)
    tracker.log(ROW, 0)
    tracker.table("comparison", ["config"], [["maml"]])
    tracker.finish({})
    assert tracker.path is not None
    records = list(wandb_log.records(log_file(tracker)))
    kinds = {record.WhichOneof("record_type") for record in records}
    assert kinds.isdisjoint({"environment", "stats", "output", "output_raw", "tbrecord"})
    (run,) = (record.run for record in records if record.HasField("run"))
    assert run.host == "" and not run.HasField("git")
    files = [path for path in (tracker.path / "files").rglob("*") if path.is_file()]
    assert [path.parent.name for path in files] == ["table"]
    # Nothing lies in the user's home folder.
    copies = [record.artifact for record in records if record.HasField("artifact")]
    paths = [Path(entry.local_path) for copy in copies for entry in copy.manifest.contents]
    assert all(path.is_relative_to(tmp_path / "wandb") for path in paths)
    assert "WANDB_DATA_DIR" not in os.environ


LABELS = {
    "project": "mine",
    "entity": "team",
    "run_group": "ablation",
    "job_type": "pretraining",
    "notes": "a first try",
    "tags": ["omniglot", "5w1s"],
}


def labels_of(folder: Path, labels: Labels) -> tuple[str, dict[str, Any]]:
    """The run's name and labels, as W&B's file has them."""
    tracker = Tracker(folder, {}, name="own", labels=labels)
    tracker.finish({})
    found = [r.run for r in wandb_log.records(log_file(tracker)) if r.HasField("run")]
    own = {name: getattr(found[0], name) for name in LABELS}
    return found[0].display_name, {**own, "tags": list(own["tags"])}


def test_labels_are_the_options_then_the_environments_then_wandbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, own = labels_of(tmp_path / "a", Labels())
    assert name == "own" and own["project"] == "metalearn"
    assert not any(value for label, value in own.items() if label != "project")
    given = {"group" if label == "run_group" else label: x for label, x in LABELS.items()}
    labels = Labels(**{**given, "tags": tuple(given["tags"])})  # type: ignore[arg-type]
    assert labels_of(tmp_path / "b", labels) == ("own", LABELS)
    for label, value in LABELS.items():
        text = ",".join(value) if isinstance(value, list) else value
        monkeypatch.setenv(f"WANDB_{label.upper()}", text)
    monkeypatch.setenv("WANDB_NAME", "other")
    assert labels_of(tmp_path / "c", Labels()) == ("other", LABELS)
    _, both = labels_of(tmp_path / "d", Labels(project="first", tags=("last",)))
    assert both == {**LABELS, "project": "first", "tags": ["last"]}


@pytest.mark.parametrize(
    "labels", [{"project": "a/b"}, {"project": ""}, {"group": "x" * 129}, {"tags": ("",)}]
)
def test_labels_that_wandb_does_not_take_are_refused(labels: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Labels(**labels)


def test_long_logs_are_read_across_blocks(tmp_path: Path, said: list[str]) -> None:
    tracker = Tracker(tmp_path, {}, warn=said.append)
    for step in range(300):
        tracker.log(ROW | {"config": "x" * (step * 5)}, step)
    tracker.finish({})
    file = log_file(tracker)
    rows = wandb_log.history(file)
    assert [(row["_step"], len(row.get("config", ""))) for row in rows] == [
        (step, step * 5) for step in range(300)
    ]
    assert file.stat().st_size > 5 * wandb_log.BLOCK


def test_a_run_keeps_its_id(tmp_path: Path, said: list[str]) -> None:
    tracker = Tracker(tmp_path, {}, run_id="abc123", warn=said.append)
    tracker.finish({})
    assert tracker.run_id == "abc123" and log_file(tracker).name == "run-abc123.wandb"
    assert said == []


def test_a_failed_start_is_said_once(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no\nservice.")

    monkeypatch.setattr("wandb.init", refuse)
    tracker = Tracker(tmp_path, CONFIG, warn=said.append)
    tracker.log(ROW, 0)
    tracker.table("comparison", ["config"], [["maml"]])
    tracker.finish({})
    assert said == ["W&B stopped, and this run continues without it: no service."]
    assert tracker.run_id is None and tracker.path is None


def test_a_missing_client_is_said_once(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    Tracker(tmp_path, CONFIG, warn=said.append).log(ROW, 0)
    assert len(said) == 1 and "import of wandb halted" in said[0]


@pytest.mark.parametrize("breaks", ["log", "table", "finish"])
def test_a_failure_in_mid_run_is_said_once(
    breaks: str, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    tracker = Tracker(tmp_path, CONFIG, warn=said.append)
    run = tracker._run
    tracker.log(ROW, 0)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the service is gone")

    with monkeypatch.context() as patch:
        if breaks == "table":
            patch.setattr(wandb, "Table", fail)
        else:
            patch.setattr(run, breaks, fail)
        for step in (1, 2):
            if breaks == "log":
                tracker.log(ROW, step)
            tracker.table("comparison", ["config"], [["maml"]])
        tracker.finish({"done": 1})
        tracker.finish({"done": 1})
    run.finish()
    assert said == ["W&B stopped, and this run continues without it: the service is gone."]


@pytest.fixture
def listener() -> Iterator[tuple[str, list[Any]]]:
    """A loopback server's address, and the connections that were made to it."""
    seen: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:  # closed
                    return
                seen.append(address)
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", seen
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_offline_sends_nothing_whatever_the_environment_says(
    tmp_path: Path, listener: tuple[str, list[Any]]
) -> None:
    address, seen = listener
    program = (
        "import os, sys; from pathlib import Path\n"
        "from metalearn.training.tracking import Tracker\n"
        "t = Tracker(Path(sys.argv[1]), {}); t.log({'query_loss': 1.0}, 0)\n"
        "t.table('comparison', ['config'], [['maml']]); t.finish({}); print(t.path)\n"
        "print(os.environ['WANDB_ERROR_REPORTING'])"
    )
    environment = os.environ | {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": address,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "true",
        "HTTP_PROXY": address,
        "HTTPS_PROXY": address,
    }
    environment.pop("NO_PROXY", None)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    path, reporting = done.stdout.split()
    assert "offline-run" in path and reporting == "false"
    assert seen == []
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
        pass  # the listener does notice a connection
    for _ in range(100):
        if seen:
            break
        threading.Event().wait(0.02)
    assert len(seen) == 1


def test_disabled_does_not_import_the_client(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from metalearn.training.tracking import Tracker\n"
        "t = Tracker(Path(sys.argv[1]) / 'run', {}, mode='disabled'); t.log({'a': 1}, 0)\n"
        "t.table('b', ['c'], [[1]]); t.finish({})\n"
        "assert t.run_id is None and t.path is None\n"
        "assert not [name for name in sys.modules if name.startswith('wandb')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_dies_is_not_missed_at_the_end_and_a_later_run_has_its_own(
    tmp_path: Path,
) -> None:
    program = (
        "import os, pathlib, signal, sys, time; from metalearn.training.tracking import Tracker\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "t = Tracker(folder / 'a', {}, warn=print); t.log({'a': 1.0}, 0)\n"
        "pid = os.getpid()\n"
        "(service,) = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()\n"
        "os.kill(int(service), signal.SIGKILL)\n"
        "for step in range(1, 500): t.log({'a': 1.0}, step); time.sleep(0.002)\n"
        "t.finish({})\n"
        "t = Tracker(folder / 'b', {}, warn=print); t.log({'a': 1.0}, 0); t.finish({})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("W&B stopped, and this run continues without it: ")
    assert done.stdout.count("\n") == 1
    (file,) = (tmp_path / "b").glob("wandb/offline-run-*/*.wandb")
    assert [row["a"] for row in wandb_log.history(file)] == [1.0]


def test_a_run_that_is_gone_on_with_has_all_rows_in_one_folder(
    tmp_path: Path, said: list[str]
) -> None:
    first = Tracker(tmp_path, CONFIG, warn=said.append)
    for step in range(1, 6):
        first.log({"query_loss": float(step)}, step)
    first.finish({})  # the checkpoint is of the third
    again = Tracker(tmp_path, CONFIG, run_id=first.run_id, warn=said.append)
    again.catch_up({"step": step, "query_loss": float(step), "none": None} for step in (1, 2, 3))
    again.log({"query_loss": 4.0}, 4)
    again.finish({})
    assert first.path is not None and not first.path.exists()
    assert [p.name for p in (tmp_path / "wandb").glob("offline-run-*")] == [again.path.name]
    history = wandb_log.history(log_file(again))
    assert [(row["_step"], row["query_loss"]) for row in history] == [(n, n) for n in (1, 2, 3, 4)]
    assert all("step" not in row for row in history)
    assert said == []


def test_online_only_the_rows_that_the_server_lacks_are_sent_again(
    tmp_path: Path, said: list[str]
) -> None:
    tracker = Tracker(tmp_path, CONFIG, warn=said.append)
    logged: list[int] = []

    class Resumed:
        starting_step = 3

        def log(self, values: Any, step: int) -> None:
            logged.append(step)

    run, tracker._run, tracker._mode = tracker._run, Resumed(), "online"
    tracker._path = None
    tracker.catch_up({"step": step, "query_loss": 0.0} for step in range(1, 6))
    run.finish()
    assert logged == [3, 4, 5]
