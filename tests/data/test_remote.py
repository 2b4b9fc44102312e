"""Databases on other computers: real servers on loopback that count what they send."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tensorflow as tf
from gcs import GcsServer
from helpers import make_database
from web import WebServer

from umx_model.data import remote
from umx_model.data.dataset import FixedSourcesTrackFolderDataset
from umx_model.data.track_folder import database_fingerprint, read_database
from umx_model.errors import InputError

TARGETS = ["vocals", "drums"]
FORMATS = {"wav16": ("wav", "PCM_16"), "wav24": ("wav", "PCM_24"), "flac": ("flac", "PCM_16")}
EXCERPTS = 10

READ = """
import sys
import numpy as np
import umx_model as umx

count, *roots = sys.argv[1:]
for root in roots:
    dataset = umx.FixedSourcesTrackFolderDataset(root, "train", ["vocals", "drums"], 6.0, num_parallel_calls=1)
    np.save(root.rpartition("/")[2], np.stack(list(dataset.take(int(count)).as_numpy_iterator())))
"""


def read_in_subprocess(folder: Path, environment: dict[str, str], count: int, *roots: str) -> None:
    """Save excerpts of each database in the folder, in a file named after the last part of its address."""
    command = [sys.executable, "-c", READ, str(count), *roots]
    done = subprocess.run(command, env=environment, cwd=folder, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_excerpts_from_a_bucket_move_about_their_bytes(tmp_path: Path, gcs: GcsServer) -> None:
    for name, (extension, subtype) in FORMATS.items():
        root = make_database(tmp_path / name, {"train": 2, "valid": 1}, TARGETS, 30.0, 44100, 2, subtype, extension)
        gcs.upload(root, "bucket", name)
    read_in_subprocess(tmp_path, gcs.environment(), EXCERPTS, *(f"gs://bucket/{name}" for name in FORMATS))
    for name in FORMATS:
        local = FixedSourcesTrackFolderDataset(tmp_path / name, "train", TARGETS, 6.0)
        expected = np.stack(list(local.take(EXCERPTS).as_numpy_iterator()))
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)
        sizes = [path.stat().st_size for path in (tmp_path / name / "train").rglob("*.*")]
        one = len(TARGETS) * np.mean(sizes) * 6 / 30
        served = sum(size for path, size in gcs.served.items() if path.startswith(f"bucket/{name}/"))
        headers = 6 * 50_000
        # One or two more than were taken are read ahead; decoders of flac look for the place.
        assert EXCERPTS * one * 0.9 < served < (EXCERPTS + 2) * one * (1.3 if name == "flac" else 1.0) + headers


def test_a_bucket_that_fails_for_a_moment(tmp_path: Path, gcs: GcsServer) -> None:
    gcs.upload(
        make_database(tmp_path / "music", {"train": 1, "valid": 1}, TARGETS, 7.0, extension="flac"), "bucket", "got"
    )
    gcs.failures, gcs.resets = 1, 1
    read_in_subprocess(tmp_path, gcs.environment(), 3, "gs://bucket/got")
    assert (gcs.failures, gcs.resets) == (0, 0)
    local = FixedSourcesTrackFolderDataset(tmp_path / "music", "train", TARGETS, 6.0)
    np.testing.assert_array_equal(np.load(tmp_path / "got.npy"), np.stack(list(local.take(3).as_numpy_iterator())))


@pytest.fixture
def music(tmp_path: Path) -> str:
    """A file in TensorFlow's memory, which is read as remote ones are."""
    sf.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, (100_000, 2)), 44100)
    path = f"ram://{tmp_path.name}/a.flac"
    tf.io.gfile.copy(str(tmp_path / "a.flac"), path, overwrite=True)
    return path


def test_a_remote_file_reads_as_a_local_one(tmp_path: Path, music: str) -> None:
    generator = np.random.default_rng(0)
    with remote.RemoteFile(music) as file, (tmp_path / "a.flac").open("rb") as local:
        size = (tmp_path / "a.flac").stat().st_size
        for _ in range(200):
            place, length = (int(generator.integers(most)) for most in (size + 10, 90_000))
            whence = int(generator.integers(3))
            offset = {0: place, 1: place - file.tell(), 2: place - size}[whence]
            assert file.seek(offset, whence) == local.seek(offset, whence) == place
            assert file.read(length) == local.read(length)
            assert file.tell() == local.tell()


@pytest.mark.parametrize(("error", "attempts"), [(tf.errors.UnavailableError, 4), (tf.errors.NotFoundError, 1)])
def test_only_what_may_pass_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, music: str, error: type[tf.errors.OpError], attempts: int
) -> None:
    calls = 0

    def fails(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise error(None, None, "no")

    monkeypatch.setattr(remote.core_ops, "io_file_read", fails)
    monkeypatch.setattr(remote, "_PAUSES", (0, 0, 0))
    with pytest.raises(error):
        remote.read_range(music, 0, 10)
    assert calls == attempts


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path / "web").running() as server:
        yield server


@pytest.mark.parametrize("form", ["wav24", "flac"])
def test_excerpts_from_a_web_server_move_about_their_bytes(web: WebServer, form: str) -> None:
    extension, subtype = FORMATS[form]
    splits = {"train": 2, "valid": 1}
    root = make_database(web.folder, splits, TARGETS, 30.0, 44100, 2, subtype, extension)
    paths = [path.relative_to(root).as_posix() for path in root.rglob("*.*")]
    (root / "files.txt").write_text("".join(f"./{path}\n" for path in paths))
    database = read_database(web.address)
    assert {split: len(samples) for split, samples in database.items()} == splits
    assert database_fingerprint(web.address) == database_fingerprint(web.address)
    dataset = FixedSourcesTrackFolderDataset.from_samples(
        database["train"], targets=TARGETS, excerpt_seconds=6.0, num_parallel_calls=1
    )
    web.failures = 1
    got = np.stack(list(dataset.take(EXCERPTS).as_numpy_iterator()))
    local = FixedSourcesTrackFolderDataset(root, "train", TARGETS, 6.0)
    np.testing.assert_array_equal(got, np.stack(list(local.take(EXCERPTS).as_numpy_iterator())))
    one = len(TARGETS) * np.mean([path.stat().st_size for path in (root / "train").rglob("*.*")]) * 6 / 30
    assert web.served.total() < (EXCERPTS + 2) * one * (1.3 if form == "flac" else 1.0) + 9 * 50_000


def test_a_web_server_without_a_listing(web: WebServer) -> None:
    make_database(web.folder, seconds=0.1)
    with pytest.raises(InputError, match=r"^http://127.0.0.1:\d+: web servers list no folders, and files.txt cannot"):
        read_database(web.address)
