"""Databases: what is found, and one line for everything that is wrong."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
from helpers import make_database, make_sample, stem, write_m4a

from umx_model.data import track_folder
from umx_model.data.track_folder import (
    concurrently,
    database_fingerprint,
    found_targets,
    list_sample_folders,
    read_database,
)
from umx_model.errors import InputError

RATE = 44100


def test_reads_samples_in_order(database: Path) -> None:
    splits = read_database(database, ["vocals", "drums"])
    assert {split: [sample.id for sample in samples] for split, samples in splits.items()} == {
        "train": ["song00", "song01", "song02"],
        "valid": ["song00", "song01"],
    }
    sample = splits["valid"][1]
    assert (sample.split, sample.sample_rate, sample.channels, sample.length) == ("valid", RATE, 2, 2 * RATE)
    assert list(sample.files) == ["vocals", "drums"]
    assert sample.files["drums"].path == str(database / "valid" / "song01" / "drums.wav")


def test_targets_are_found(database: Path) -> None:
    assert list(read_database(database)["train"][0].files) == ["drums", "vocals"]


def test_targets_are_found_without_opening_files(database: Path) -> None:
    for path in database.glob("*/*/*.wav"):
        path.write_bytes(b"")
    assert found_targets(database) == ["drums", "vocals"]


def test_test_split_is_optional_and_can_be_read_alone(database: Path) -> None:
    make_sample(database / "test" / "song")
    assert list(read_database(database)) == ["train", "valid", "test"]
    assert list(read_database(database, splits=["test"])) == ["test"]
    assert list_sample_folders(database)[-1] == ("test", "song")


def test_hidden_files_mixtures_and_other_files_are_passed_over(database: Path) -> None:
    folder = database / "train" / "song00"
    for name in (".DS_Store", "._vocals.wav", "cover.jpg", "notes.txt"):
        (folder / name).write_text("x")
    shutil.copy(folder / "vocals.wav", folder / "mixture.wav")
    (database / "train" / ".cache").mkdir()
    (database / "README.txt").write_text("x")
    assert list(read_database(database)["train"][0].files) == ["drums", "vocals"]


def remove_root(root: Path) -> None:
    shutil.rmtree(root)


def empty_root(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def remove_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def remove_valid(root: Path) -> None:
    shutil.rmtree(root / "valid")


def empty_valid(root: Path) -> None:
    shutil.rmtree(root / "valid")
    (root / "valid").mkdir()


def lacking(root: Path) -> None:
    (root / "train/song01/vocals.wav").unlink()


def length(root: Path) -> None:
    sf.write(root / "train/song01/vocals.wav", stem("vocals", 1.5), RATE)


def rate(root: Path) -> None:
    sf.write(root / "train/song01/vocals.wav", stem("vocals", 2.0), 48000)


def channels(root: Path) -> None:
    sf.write(root / "train/song01/vocals.wav", stem("vocals", 2.0, channels=1), RATE)


def not_audio(root: Path) -> None:
    (root / "train/song01/vocals.wav").write_bytes(np.random.default_rng(0).bytes(5000))


def truncated(root: Path) -> None:
    os.truncate(root / "train/song01/vocals.wav", 100_000)


def zero_length(root: Path) -> None:
    os.truncate(root / "train/song01/vocals.wav", 0)


def two_files(root: Path) -> None:
    sf.write(root / "train/song01/vocals.flac", stem("vocals", 2.0), RATE)


def unknown(root: Path) -> None:
    shutil.copy(root / "train/song01/vocals.wav", root / "train/song01/vocal.wav")


def only_ffmpeg(root: Path) -> None:
    (root / "train/song01/vocals.wav").unlink()
    write_m4a(root / "train/song01/vocals.m4a", stem("vocals", 2.0))


@pytest.mark.parametrize(
    ("damage", "named", "says"),
    [
        (remove_root, "", "no such folder"),
        (empty_root, "", "empty folder; expected a database with train/ and valid/"),
        (remove_train, "", "no folder 'train'"),
        (remove_valid, "", "no folder 'valid'"),
        (empty_valid, "valid", "no sample folders; expected valid/<sample>/<target>.wav"),
        (lacking, "train/song01", "lacks the target 'vocals' (found drums)"),
        (length, "train/song01", "the targets differ in length (vocals 66150, drums 88200 samples)"),
        (rate, "train/song01", "the targets differ in sample rate (vocals 48000, drums 44100 Hz)"),
        (channels, "train/song01", "the targets differ in channel count (vocals 1, drums 2 channels)"),
        (not_audio, "train/song01/vocals.wav", "not an audio file, or a corrupt one"),
        (truncated, "train/song01/vocals.wav", "truncated: its header promises 352800 bytes of audio, 99956 found"),
        (zero_length, "train/song01/vocals.wav", "zero-length file"),
        (two_files, "train/song01", "2 files for the target 'vocals' (vocals.flac, vocals.wav); keep one"),
        (unknown, "train/song01/vocal.wav", "unknown target 'vocal'; expected vocals, drums"),
        (only_ffmpeg, "train/song01/vocals.m4a", "convert it to wav or flac"),
    ],
)
def test_problem_is_one_line_that_names_the_place(
    database: Path, damage: Callable[[Path], None], named: str, says: str
) -> None:
    damage(database)
    with pytest.raises(InputError) as caught:
        read_database(database, ["vocals", "drums"])
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{database / named}: ")
    assert says in line


@pytest.mark.parametrize("damage", [remove_root, empty_root, remove_train, remove_valid, empty_valid])
def test_targets_of_an_unusable_database_are_refused_alike(database: Path, damage: Callable[[Path], None]) -> None:
    damage(database)
    with pytest.raises(InputError) as expected:
        read_database(database)
    with pytest.raises(InputError) as found:
        found_targets(database)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("look", [found_targets, read_database])
def test_samples_without_audio(database: Path, look: Callable[[Path], object]) -> None:
    for path in database.rglob("*.wav"):
        path.unlink()
    with pytest.raises(InputError, match="database: no audio file of one name in most samples; expected one per"):
        look(database)


def test_unknown_target_asked_for(database: Path) -> None:
    with pytest.raises(InputError, match="no sample has the target 'vocal'; the samples hold drums, vocals"):
        read_database(database, ["vocal", "drums"])


def test_all_problems_are_listed(database: Path) -> None:
    lacking(database)
    (database / "train/song02/drums.wav").write_bytes(b"")
    two_files(database)
    (database / "valid/song00/drums.wav").unlink()
    with pytest.raises(InputError) as caught:
        read_database(database, ["vocals", "drums"])
    lines = str(caught.value).splitlines()
    assert [next(part for part in ("song02", "valid/song00") if part in line) for line in lines] == [
        "song02",
        "valid/song00",
    ]


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    root = make_database(tmp_path / "a", {"train": 1, "valid": 1}, seconds=0.1)
    seen = [database_fingerprint(root)]
    assert database_fingerprint(f"{root}/") == seen[0]

    (root / "train/song00/.hidden").write_text("x")
    assert database_fingerprint(root) == seen[0]

    make_sample(root / "train/song01", seconds=0.1)
    seen.append(database_fingerprint(root))
    (root / "train/song01").rename(root / "train/renamed")
    seen.append(database_fingerprint(root))
    os.utime(root / "train/renamed/vocals.wav", ns=(1, 1))
    seen.append(database_fingerprint(root))
    shutil.rmtree(root / "train/renamed")
    os.utime(root / "train/song00", ns=(1, 1))
    assert database_fingerprint(root) == seen[0]
    assert len(set(seen)) == len(seen)


def test_fingerprint_sees_files_of_one_size_and_time_change_places(tmp_path: Path) -> None:
    # As when stems are unpacked from an archive, or copied with their times.
    root = make_database(tmp_path / "a", {"train": 1, "valid": 1}, seconds=0.5)
    vocals, drums = root / "train/song00/vocals.wav", root / "train/song00/drums.wav"
    assert vocals.stat().st_size == drums.stat().st_size
    for path in (vocals, drums):
        os.utime(path, ns=(10**18, 10**18))
    before = database_fingerprint(root)
    vocals.rename(tmp_path / "x")
    drums.rename(vocals)
    (tmp_path / "x").rename(drums)
    assert database_fingerprint(root) != before


def test_without_named_targets_the_odd_sample_is_to_blame(tmp_path: Path) -> None:
    root = make_database(tmp_path / "a", {"train": 3, "valid": 1}, seconds=0.1)
    (root / "train/song00/drums.wav").unlink()
    assert found_targets(root) == ["drums", "vocals"]
    with pytest.raises(InputError, match="song00: lacks the target 'drums'") as error:
        read_database(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wait", [True, False])
def test_files_are_read_in_many_threads_where_they_are_waited_for(wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used, clock = set(), {"all": 0.0, "computing": 0.0}
    clocks = SimpleNamespace(perf_counter=lambda: clock["all"], thread_time=lambda: clock["computing"])
    monkeypatch.setattr(track_folder, "time", clocks)

    def read(item: int) -> int:
        used.add(threading.get_ident())
        clock["all"] += 0.02
        clock["computing"] += 0.002 if wait else 0.02
        time.sleep(0.01)
        return -item

    assert concurrently(read, range(100)) == [-item for item in range(100)]
    assert len(used) > 8 if wait else len(used) == 1
