"""Deep checks, against closed forms."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from helpers import make_sample

from umx_model.data.audio import stream
from umx_model.data.check import check_fits, check_sample
from umx_model.data.measure import Measurement
from umx_model.data.track_folder import read_database
from umx_model.errors import InputError
from umx_model.profile import ModelProfile

RATE = 44100
TARGETS = ("vocals", "drums")


def measured(path: Path, waveform: np.ndarray, subtype: str = "FLOAT"):
    sf.write(path, waveform, RATE, subtype=subtype)
    measurement = Measurement(RATE)
    for block in stream(path, measurement.block_samples):
        measurement.add(block)
    return measurement.result()


def test_sine_after_silence(tmp_path: Path) -> None:
    sine = np.sin(2 * np.pi * 5000 * np.arange(3 * RATE) / RATE)
    waveform = np.concatenate([np.zeros(RATE), 0.5 * sine])[:, np.newaxis].repeat(2, axis=1)
    found = measured(tmp_path / "x.wav", waveform)
    assert found.peak == pytest.approx(0.5, abs=1e-3)
    assert found.loudness_db == pytest.approx(10 * np.log10(0.125 * 3 / 4), abs=1e-3)
    assert found.silence_fraction == pytest.approx(0.25, abs=1e-9)
    assert found.bandwidth_hz == pytest.approx(5000, abs=200)
    assert found.non_finite == 0


def test_silence(tmp_path: Path) -> None:
    found = measured(tmp_path / "x.wav", np.zeros((5000, 2)))
    assert (found.peak, found.loudness_db, found.silence_fraction, found.bandwidth_hz) == (0, -120, 1, 0)


@pytest.mark.parametrize("cutoff", [4000, 16000])
def test_bandwidth_of_filtered_noise(tmp_path: Path, cutoff: int) -> None:
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(4 * RATE))
    spectrum[cutoff * 4 :] = 0
    found = measured(tmp_path / "x.wav", 0.1 * np.fft.irfft(spectrum)[:, np.newaxis])
    assert found.bandwidth_hz == pytest.approx(cutoff, abs=100)


def test_good_sample(tmp_path: Path) -> None:
    make_sample(tmp_path / "train" / "song", TARGETS)
    check = check_sample(tmp_path, "train", "song", TARGETS)
    assert check.problems == []
    assert check.sample is not None
    assert check.sample.length == 2 * RATE
    assert list(check.statistics) == list(TARGETS)


def test_non_finite_values_are_a_problem(tmp_path: Path) -> None:
    folder = make_sample(tmp_path / "train" / "song", TARGETS)
    waveform = np.zeros((2 * RATE, 2), np.float32)
    waveform[100:103, 0] = [np.nan, np.inf, -np.inf]
    sf.write(folder / "drums.wav", waveform, RATE, subtype="FLOAT")
    check = check_sample(tmp_path, "train", "song", TARGETS)
    assert check.sample is None
    assert check.problems == [f"{folder / 'drums.wav'}: 3 values are NaN or infinite; replace the file"]
    assert check.statistics["drums"].non_finite == 3


def test_damage_behind_the_header_is_found(tmp_path: Path) -> None:
    folder = make_sample(tmp_path / "train" / "song", TARGETS, extension="flac")
    truncated, corrupt = folder / "vocals.flac", folder / "drums.flac"
    truncated.write_bytes(truncated.read_bytes()[:20_000])
    content = bytearray(corrupt.read_bytes())
    content[20_000:23_000] = np.random.default_rng(0).bytes(3000)
    corrupt.write_bytes(content)
    check = check_sample(tmp_path, "train", "song", TARGETS)
    assert check.sample is None
    assert [problem.split(":")[0] for problem in check.problems] == [str(truncated), str(corrupt)]
    assert all("corrupt" in problem for problem in check.problems)


def test_problems_of_headers_are_passed_on(tmp_path: Path) -> None:
    folder = make_sample(tmp_path / "train" / "song", ["vocals"])
    check = check_sample(tmp_path, "train", "song", TARGETS)
    assert check.sample is None
    assert check.problems == [f"{folder}: lacks the target 'drums' (found vocals); add drums.wav"]


def test_progress_adds_up_and_may_end_the_check(tmp_path: Path) -> None:
    make_sample(tmp_path / "train" / "song", TARGETS, seconds=2.3)
    parts: list[float] = []
    check_sample(tmp_path, "train", "song", TARGETS, parts.append)
    assert len(parts) == 3
    assert sum(parts) == pytest.approx(1)

    def stop(part: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        check_sample(tmp_path, "train", "song", TARGETS, stop)


def test_samples_that_fit(database: Path) -> None:
    check_fits(read_database(database)["train"], ModelProfile(targets=TARGETS), excerpt_seconds=2.0)


@pytest.mark.parametrize(
    ("profile", "excerpt_seconds", "lines"),
    [
        (
            {"sample_rate": 48000},
            1.0,
            ["train/song00 and 2 more: 44100 Hz, the profile has 48000; set model.sample_rate=44100 or resample"],
        ),
        ({"channels": 1}, 1.0, ["train/song00 and 2 more: 2 channels, the profile has 1; set model.channels=2"]),
        (
            {},
            2.5,
            [
                f"train/song0{n}: 2.00 s long, an excerpt takes 2.5 s (88200 of 110250 samples); shorten"
                for n in range(3)
            ],
        ),
    ],
)
def test_samples_that_do_not_fit(database: Path, profile: dict, excerpt_seconds: float, lines: list[str]) -> None:
    samples = read_database(database)["train"]
    with pytest.raises(InputError) as caught:
        check_fits(samples, ModelProfile(targets=TARGETS, **profile), excerpt_seconds)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    assert all(one.startswith(start) for one, start in zip(found, lines, strict=True))
