"""Sources and builds that several tests of the datasets share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metalearn.tasks.glyphs import glyphs
from metalearn.tasks.images import LabelledImages


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test, and no data folder of the user's."""
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def omniglot_source() -> Path:
    """The real Omniglot: `$METALEARN_DATA/omniglot`, else beside the checkout."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("METALEARN_DATA", beside)) / "omniglot"
    if not folder.is_dir():
        pytest.skip(f"no Omniglot in {folder}: set METALEARN_DATA to a folder that holds omniglot/")
    return folder


@pytest.fixture(scope="session")
def built_glyphs(shared_cache: None) -> dict[str, LabelledImages]:
    """The whole of glyphs with four drawings a letter, as the tests' runs have it."""
    return glyphs(seed=0, drawings=4)
