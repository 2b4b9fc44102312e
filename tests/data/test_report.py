"""Whole databases checked: nothing is missed, nothing is made up."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers import make_database, make_sample

from umx_model.data import report as module
from umx_model.data.report import DatabaseReport, check_database
from umx_model.errors import InputError

RATE = 8000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A database without fault: 3 train samples and 2 valid ones, of 6 s."""
    return make_database(tmp_path / "music", seconds=6.0, sample_rate=RATE)


def change(path: Path, how: Callable[[np.ndarray], np.ndarray], subtype: str = "PCM_16") -> None:
    """Replace a file's audio by what `how` makes of it."""
    waveform, rate = sf.read(path, dtype="float32", always_2d=True)
    sf.write(path, how(waveform), rate, subtype=subtype)


def assert_lines(found: tuple[str, ...], *expected: str) -> None:
    assert len(found) == len(expected), found
    for line, part in zip(found, expected, strict=True):
        assert part in line, line


def test_a_good_database(root: Path) -> None:
    report = check_database(str(root))
    assert (report.problems, report.warnings) == ((), ())
    assert report.targets == ("drums", "vocals")
    assert [sample.name for sample in report.samples] == [
        *("train/song00", "train/song01", "train/song02"),
        *("valid/song00", "valid/song01"),
    ]
    sample = report.samples[1]
    assert (sample.sample_rate, sample.channels, sample.length, sample.seconds) == (RATE, 2, 6 * RATE, 6.0)
    waveforms = [sf.read(root / "train" / "song01" / f"{target}.wav")[0] for target in report.targets]
    assert sample.mixture_peak == pytest.approx(np.abs(sum(waveforms)).max(), abs=1e-6)
    assert sample.statistics["drums"].peak == pytest.approx(np.abs(waveforms[0]).max(), abs=1e-6)
    assert sample.formats == {"drums": "WAV/PCM_16", "vocals": "WAV/PCM_16"}


def test_every_problem_is_told_in_one_pass(root: Path) -> None:
    shutil.move(root / "valid", root / "test")
    (root / "train" / "song00" / "drums.wav").unlink()
    change(
        root / "train" / "song01" / "vocals.wav",
        lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x),
        "FLOAT",
    )
    damaged = root / "test" / "song00" / "drums.wav"
    damaged.write_bytes(damaged.read_bytes()[:50_000])
    make_sample(root / "test" / "song02", seconds=6.0, sample_rate=RATE, channels=1, seed=77)
    report = check_database(str(root))
    assert_lines(
        report.problems,
        "music: no folder 'valid'",
        "train/song00: lacks the target 'drums' (found vocals)",
        "train/song01/vocals.wav: 2 values are NaN or infinite",
        "test/song00/drums.wav: truncated",
        "test/song02: 8000 Hz, 1 channels; 2 of 3 samples have 8000 Hz, 2; convert",
    )
    assert [bool(sample.sample_rate) for sample in report.samples] == [False, False, True, False, True, True]


def test_a_damaged_file_does_not_hide_what_the_others_of_its_sample_are(root: Path) -> None:
    folder = root / "train" / "song01"
    for target in ("vocals", "drums"):
        sf.write(folder / f"{target}.flac", sf.read(folder / f"{target}.wav")[0], RATE)
        (folder / f"{target}.wav").unlink()
    content = bytearray((folder / "drums.flac").read_bytes())
    content[20_000:23_000] = np.random.default_rng(0).bytes(3000)
    (folder / "drums.flac").write_bytes(content)
    report = check_database(str(root))
    assert_lines(report.problems, "train/song01/drums.flac: truncated or corrupt")
    assert list(report.samples[1].statistics) == ["vocals"]
    assert report.samples[1].mixture_peak is None


def test_oddities_are_warnings(root: Path) -> None:
    change(root / "train" / "song00" / "vocals.wav", lambda x: np.clip(8 * x, -1, 1))
    change(root / "train" / "song01" / "drums.wav", lambda x: 0 * x)
    change(root / "valid" / "song00" / "vocals.wav", lambda x: x + 0.03)
    report = check_database(str(root))
    assert report.problems == ()
    mixture = report.samples[0].mixture_peak
    assert mixture is not None
    assert mixture > 1
    assert_lines(
        report.warnings,
        "train/song00/vocals: clips: ",
        f"train/song00: the sum of the targets reaches {mixture:.2f}",
        "train/song01/drums: silent from beginning to end",
        "valid/song00/vocals: its mean is 0.030 off zero",
    )


def test_lossy_originals_are_warned_of(tmp_path: Path) -> None:
    root = make_database(tmp_path / "music", {"train": 1, "valid": 1}, ["drums"], seconds=6.0)
    path = root / "train" / "song00" / "drums.wav"
    waveform, rate = sf.read(path)
    sf.write(tmp_path / "x.mp3", waveform, rate)
    sf.write(path, sf.read(tmp_path / "x.mp3")[0], rate)
    assert_lines(check_database(str(root)).warnings, "train/song00/drums: sharp cut at 17")


def test_short_samples_are_warned_of_in_one_line(tmp_path: Path) -> None:
    root = make_database(tmp_path / "music", {"train": 2, "valid": 1}, seconds=5.0, sample_rate=RATE)
    make_sample(root / "train" / "tiny", seconds=1.5, sample_rate=RATE, seed=50)
    assert_lines(
        check_database(str(root)).warnings,
        "train: 3 samples are shorter than an excerpt of 6 s, the shortest train/tiny with 1.50 s",
    )


def test_duplicates(root: Path) -> None:
    train, valid = root / "train", root / "valid"
    shutil.copy(train / "song01" / "vocals.wav", train / "song01" / "drums.wav")  # two targets
    shutil.copytree(train / "song00", train / "again")
    for target in ("vocals", "drums"):  # into another split, in another format
        waveform, rate = sf.read(train / "song02" / f"{target}.wav")
        sf.write(valid / "song01" / f"{target}.flac", waveform, rate, subtype="PCM_24")
        (valid / "song01" / f"{target}.wav").unlink()
    assert_lines(
        check_database(str(root)).warnings,
        "train/song02 and valid/song01: the same audio (drums, vocals): what is trained on must not be in valid",
        "train/again and train/song00: the same audio (drums, vocals)",
        "train/song01: drums and vocals are the same audio",
    )


def test_silence_is_no_duplicate_and_only_silence_a_problem(root: Path) -> None:
    for path in root.glob("train/*/*.wav"):
        change(path, lambda x: 0 * x)
    report = check_database(str(root))
    assert_lines(report.problems, "train: all mixtures are silent")
    assert not any("same audio" in line for line in report.warnings)


def test_the_targets_may_be_said(root: Path) -> None:
    report = check_database(str(root), ["vocals"])
    assert len(report.problems) == 5
    assert all("unknown target 'drums'" in line for line in report.problems)


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        check_database(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="empty folder"):
        check_database(str(tmp_path))
    (tmp_path / "song").mkdir()
    with pytest.raises(InputError, match="no folder 'train'.*\n.*no folder 'valid'"):
        check_database(str(tmp_path))


def test_json_and_back(root: Path) -> None:
    report = check_database(str(root))
    assert DatabaseReport.from_json(json.loads(json.dumps(report.to_json())), "x") == report
    for other in (None, [], {}, {"format": module.FORMAT}, {**report.to_json(), "format": "x"}):
        with pytest.raises(InputError, match="x: not a report of"):
            DatabaseReport.from_json(other, "x")


def test_an_interruption_stops_the_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def check_forever(*arguments: Any) -> None:
        try:
            for _ in range(3000):
                time.sleep(0.01)
                arguments[-1](1e-5)
            ended.append(False)
        except InterruptedError:
            ended.append(True)
            raise

    def interrupt(*_: object, **__: object) -> None:
        time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_sample", check_forever)
    monkeypatch.setattr(module, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        check_database(str(root))
    assert ended
    assert all(ended)
