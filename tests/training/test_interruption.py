"""What signals do to a process, without the weight of a training."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from metalearn.training.signals import Interruption
{before}
with Interruption() as interruption:
    print("ready", flush=True)
    while interruption.signum is None or {stubborn}:
        time.sleep(0.01)
    print("left", flush=True)
    sys.exit(128 + interruption.signum)
"""


def start(stubborn: bool, before: str = "") -> subprocess.Popen[str]:
    program = PROGRAM.format(stubborn=stubborn, before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_asks(signum):
    process = start(stubborn=False)
    process.send_signal(signum)
    out, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert out == "left\n"
    assert f"{signum.name}: leaving after this meta-step" in said and said.count("\n") == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_ends_it_at_once(second):
    process = start(stubborn=True)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None and "second signal" in process.stderr.readline()
    process.send_signal(second)
    process.communicate(timeout=30)
    assert process.returncode == -second


def test_what_the_process_was_started_to_ignore_stays_ignored():
    process = start(stubborn=False, before="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
