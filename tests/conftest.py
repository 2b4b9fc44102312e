"""Fixtures for all tests."""

import os
import signal

# Before TensorFlow is imported: two cores do not gain from more threads, and its log is noise here.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from collections.abc import Callable, Iterator
from pathlib import Path

import helpers
import pytest
from gcs import GcsServer

# A shell starts background jobs with Ctrl-C ignored, and children inherit that; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_database() -> Callable[..., Path]:
    """`make_database(root, splits={"train": 3, "valid": 2}, targets=..., seconds=..., ...)`."""
    return helpers.make_database


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of stereo 44.1 kHz wav files: 3 train and 2 valid samples of 2 s, vocals and drums."""
    return helpers.make_database(tmp_path / "database")


@pytest.fixture
def gcs(tmp_path: Path) -> Iterator[GcsServer]:
    """A Google Cloud Storage on loopback, for programs in subprocesses; see `gcs.GcsServer`."""
    folder = tmp_path / "gcs"
    folder.mkdir()
    with GcsServer(folder) as server:
        yield server
