"""Resampling, held against soxr in one call and against tones."""

import math

import numpy as np
import pytest
import soxr

from umx_model.data.resampling import Resampler, resample


def tone(samples: int, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate).astype(np.float32)[:, np.newaxis]


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48000, 44100), (44100, 48000), (22050, 44100), (44100, 16000)])
@pytest.mark.parametrize("samples", [1, 2, 3, 999, 44100, 50_001])
def test_resampled_length_and_tone(samples: int, from_rate: int, to_rate: int) -> None:
    resampled = resample(tone(samples, from_rate), from_rate, to_rate)
    assert resampled.shape == (math.ceil(samples * to_rate / from_rate), 1)
    assert resampled.dtype == np.float32
    if samples > 40_000:
        expected = tone(len(resampled), to_rate)
        assert np.abs(resampled - expected)[1000:-1000].max() < 1e-4


@pytest.mark.parametrize(("from_rate", "to_rate"), [(192_000, 44100), (44100, 192_000), (8000, 44100)])
@pytest.mark.parametrize("block", [1, 777, 100_000])
def test_streamed_is_what_soxr_makes_of_the_whole(from_rate: int, to_rate: int, block: int) -> None:
    samples = 3000 if block == 1 else 60_001
    waveform = np.random.default_rng(0).uniform(-1, 1, (samples, 3)).astype(np.float32)
    resampler = Resampler(from_rate, to_rate, 3)
    parts = [resampler.push(waveform[first : first + block]) for first in range(0, samples, block)]
    streamed = np.concatenate([*parts, resampler.finish()])
    expected = soxr.resample(waveform, from_rate, to_rate, "VHQ")
    assert abs(len(streamed) - len(expected)) <= 1
    length = min(len(streamed), len(expected))
    np.testing.assert_allclose(streamed[:length], expected[:length], rtol=0, atol=1e-6)


def test_same_rate_changes_nothing() -> None:
    waveform = tone(1000, 8000)
    np.testing.assert_array_equal(resample(waveform, 8000, 8000), waveform)


def test_nothing_stays_nothing() -> None:
    assert Resampler(44100, 48000, 2).finish().shape == (0, 2)
