"""scripts/bootstrap in a copy of the repository, with a stand-in for Python and pip."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]

# A Python that claims $FAKE_VERSION and makes .venv from itself; its pip notes its arguments and
# fails with the message $FAKE_PIP if that is set.
FAKE_PYTHON = f"""#!/bin/bash
case "$1 $2" in
    "-c import sys; print("*) echo "${{FAKE_VERSION:-3.11.9}}" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "$*" >>pip-calls; if [ -n "$FAKE_PIP" ]; then echo "$FAKE_PIP"; exit 1; fi ;;
    *) exec {shlex.quote(sys.executable)} "$@" ;;
esac
"""


class Checkout:
    """A copy of what bootstrap reads, with the stand-in as the only Python on PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("pyproject.toml", "constraints.txt", "scripts/bootstrap"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        self.python = root / "bin" / "python3"
        self.python.parent.mkdir()
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        for name in ("python", "python3.10", "python3.11", "python3.12", "python3.13"):
            shim = self.python.with_name(name)  # exists, but does not run
            shim.write_text("#!/bin/sh\nexit 127\n")
            shim.chmod(0o755)
        compiler = self.python.with_name("cc")
        compiler.write_text("#!/bin/sh\n")
        compiler.chmod(0o755)

    def bootstrap(self, **env: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.python.parent}:/usr/bin:/bin", "CC": "cc", **env}
        return subprocess.run(
            ["bash", "scripts/bootstrap"],
            cwd=self.root,
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
        )

    @property
    def pip_calls(self) -> list[str]:
        calls = self.root / "pip-calls"
        return calls.read_text().splitlines() if calls.exists() else []

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / ".bootstrapped"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def touch(path: Path, text: str = "\n# changed\n") -> None:
    path.write_text(path.read_text() + text)


def test_installs_once(checkout: Checkout) -> None:
    first = checkout.bootstrap()
    assert first.returncode == 0, first.stderr
    assert "ready" in first.stdout
    main, learn2learn = checkout.pip_calls
    assert "-c constraints.txt -e .[dev]" in main
    assert "--no-deps" in learn2learn and learn2learn.endswith("learn2learn==0.2.0")
    assert "index" not in main + learn2learn  # the user's own pip configuration decides

    again = checkout.bootstrap()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(checkout.pip_calls) == 2


@pytest.mark.parametrize("changed", ["constraints.txt", "scripts/bootstrap", "pyproject.toml"])
def test_updates_in_place_when_an_input_changes(checkout: Checkout, changed: str) -> None:
    checkout.bootstrap()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    text = '\n[project.urls]\nx = "y"\n' if changed == "pyproject.toml" else "\n# changed\n"
    touch(checkout.root / changed, text)
    assert "updating" in checkout.bootstrap().stdout
    assert kept.exists()
    assert len(checkout.pip_calls) == 4
    assert checkout.bootstrap().stdout == ""


def test_settings_of_tools_change_nothing(checkout: Checkout) -> None:
    checkout.bootstrap()
    pyproject = checkout.root / "pyproject.toml"
    text = pyproject.read_text()
    pyproject.write_text(text.replace("line-length = 100", "line-length = 99"))
    assert pyproject.read_text() != text
    assert checkout.bootstrap().stdout == ""


def test_starts_afresh_for_another_python(checkout: Checkout) -> None:
    checkout.bootstrap()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    assert "Python 3.12.4" in checkout.bootstrap(FAKE_VERSION="3.12.4").stdout
    assert not kept.exists()


def test_starts_afresh_after_an_interruption(checkout: Checkout) -> None:
    checkout.bootstrap()
    checkout.stamp.unlink()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    assert "making .venv" in checkout.bootstrap().stdout
    assert not kept.exists()


@pytest.mark.parametrize("version", ["2.7.18", "3.8.18", "3.9.19", "3.14.0"])
@pytest.mark.parametrize("named", [False, True])
def test_refuses_an_unsupported_python(checkout: Checkout, version: str, named: bool) -> None:
    env = {"PYTHON": str(checkout.python)} if named else {}
    result = checkout.bootstrap(FAKE_VERSION=version, **env)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "metalearn needs Python 3.10 to 3.13" in result.stderr
    assert version in result.stderr
    assert not (checkout.root / ".venv").exists()


def test_names_a_python_that_does_not_run(checkout: Checkout) -> None:
    result = checkout.bootstrap(PYTHON="/nowhere/python")
    assert result.returncode == 1
    assert result.stderr == "bootstrap: PYTHON=/nowhere/python does not run.\n"


def test_says_that_a_compiler_is_missing(checkout: Checkout) -> None:
    result = checkout.bootstrap(CC="no-such-compiler")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "needs a C compiler (no-such-compiler was not found" in result.stderr
    assert not (checkout.root / ".venv").exists()


UNREACHABLE = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'\n"
    "ERROR: Could not find a version that satisfies the requirement torch (from versions: none)"
)


def test_says_in_one_sentence_that_the_network_is_away(checkout: Checkout) -> None:
    result = checkout.bootstrap(FAKE_PIP=UNREACHABLE)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "could not reach the package index" in result.stderr
    log = re.search(r"log: ([^)]*)", result.stderr)
    assert log and UNREACHABLE in Path(log[1]).read_text()
    assert not checkout.stamp.exists()
    assert checkout.bootstrap().returncode == 0  # once it is back


def test_a_failed_update_keeps_the_environment(checkout: Checkout) -> None:
    checkout.bootstrap()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    touch(checkout.root / "constraints.txt")
    assert checkout.bootstrap(FAKE_PIP=UNREACHABLE).returncode == 1
    assert "updating" in checkout.bootstrap().stdout
    assert kept.exists()


def test_shows_the_end_of_pips_output_when_it_fails_otherwise(checkout: Checkout) -> None:
    result = checkout.bootstrap(FAKE_PIP="ERROR: ResolutionImpossible")
    assert result.returncode == 1
    assert "ResolutionImpossible" in result.stderr
    assert "pip failed (log: " in result.stderr


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)
    assert {"demo", "test", "lint", "bench", "clean", "help"} <= set(targets)


def test_supported_pythons_agree_with_the_metadata() -> None:
    script = (ROOT / "scripts" / "bootstrap").read_text()
    metadata = (ROOT / "pyproject.toml").read_text()
    oldest, newest = re.search(r"oldest=3\.(\d+) newest=3\.(\d+)", script).groups()
    assert f'requires-python = ">=3.{oldest},<3.{int(newest) + 1}"' in metadata


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 50
    for line in pins:
        assert re.fullmatch(r'[a-z0-9-]+==[\w.]+( ; python_version (<|>=) "3\.\d+")?', line), line
    for python in ("3.10", "3.11", "3.12", "3.13"):  # at most one pin a package for each
        pinned = [
            pin.name
            for pin in map(Requirement, pins)
            if pin.marker is None or pin.marker.evaluate({"python_version": python})
        ]
        assert len(pinned) == len(set(pinned))


def test_constraints_pin_every_dependency() -> None:
    names = re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (line for lines in lists for line in lines):
        name = re.match(r"[\w-]+", requirement)[0].lower()
        assert name in {*names, "metalearn-implicit"}, requirement
