from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

# A shell's background job ignores SIGINT, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tests' tensors are small; pytest-xdist brings the parallelism

LONG_FILES = (
    *("test_ranks.py", "test_readme.py", "test_survival.py", "test_torchrun.py", "test_trainer.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: a file goes to one worker, and others would wait for it."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build datasets once, for all workers, and leave nothing in the user's own cache."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(folder))
        yield
