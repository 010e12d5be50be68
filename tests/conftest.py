"""Shared fixtures."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: runs are compared bit by bit across processes
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach for a network; the hub tests lift it


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: runs that collect garbage need not walk through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _token_stores_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is left in the user's cache."""
    os.environ["PLFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("PLFT_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real data sets are not at hand")
    return folder


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end once they are trained: the model and its history are there, predictions and report are not."""
    monkeypatch.setattr("plft.pipeline.finish", lambda *_: None)


@pytest.fixture
def two_cores() -> Iterator[None]:
    """As on a machine with two cores, whatever this one has."""
    import torch

    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(cores)
