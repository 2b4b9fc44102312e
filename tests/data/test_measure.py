"""What is measured of audio, against closed forms and real encoders."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
from helpers import stem
from scipy import signal

from umx_model.data.measure import Measurement, TargetStatistics

RATE = 44100


def measured(waveform: np.ndarray, rate: int = RATE) -> TargetStatistics:
    waveform = np.asarray(waveform, np.float32)
    waveform = waveform[:, np.newaxis] if waveform.ndim == 1 else waveform
    measurement = Measurement(rate)
    for start in range(0, len(waveform), measurement.block_samples):
        measurement.add(waveform[start : start + measurement.block_samples])
    return measurement.result()


def noise(exponent: float, seconds: float = 4.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Bursts of noise whose power falls with this exponent of the frequency, 16-bit `[samples, 1]`."""
    samples = round(seconds * rate)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    spectrum *= np.maximum(np.fft.rfftfreq(samples, 1 / rate), 30) ** (-exponent / 2)
    bursts = np.fft.irfft(spectrum, samples) * np.exp(-6 * (np.arange(samples) / rate % 0.4))
    return rounded(0.5 * bursts / np.abs(bursts).max())


def rounded(waveform: np.ndarray) -> np.ndarray:
    """Make 16-bit audio `[samples, channels]`."""
    return np.reshape(np.round(32768 * waveform) / 32768, [len(waveform), -1]).astype(np.float32)


def encoded(waveform: np.ndarray, form: str, subtype: str, level: float, **options: str) -> np.ndarray:
    """Encode and decode, and store as 16 bits."""
    file = io.BytesIO()
    with sf.SoundFile(file, "w", RATE, 1, subtype, format=form, compression_level=level, **options) as sound:
        for start in range(0, len(waveform), 65536):
            sound.write(waveform[start : start + 65536])
    file.seek(0)
    return rounded(np.clip(sf.read(file)[0], -1, 1))


def fall(waveform: np.ndarray, hertz: float) -> float:
    """By how many decibels the mean power of the kilohertz above a frequency is below that of the one below it."""
    frequencies, power = signal.welch(waveform[:, 0], RATE, "blackmanharris", 4096)
    below, above = (
        power[(frequencies > low) & (frequencies < low + 700)].mean() for low in (hertz - 1000, hertz + 300)
    )
    return float(10 * np.log10(below / above))


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize(
    ("form", "subtype", "options"),
    [
        ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "CONSTANT"}),
        ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "VARIABLE"}),
        ("OGG", "VORBIS", {}),
    ],
)
def test_lossy_originals_show(form: str, subtype: str, options: dict[str, str], exponent: float) -> None:
    original = noise(exponent)
    assert measured(original).cutoff_hz == 0
    for level in (0.6, 0.7, 0.8):
        decoded = encoded(original, form, subtype, level, **options)
        cutoff = measured(decoded).cutoff_hz
        assert 10_000 < cutoff < 20_500, level
        assert fall(decoded, cutoff) > 15, level
        assert fall(original, cutoff) < 3, level


def test_originals_of_a_lower_rate_show() -> None:
    converted = soxr.resample(noise(1.0, rate=32000), 32000, RATE)
    assert measured(rounded(converted)).cutoff_hz == pytest.approx(15700, abs=500)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("order", [2, 4, 8])
def test_filters_are_no_cutoffs(exponent: float, order: int) -> None:
    """As steep as 48 dB per octave."""
    waveform = noise(exponent)[:, 0]
    for corner in (3000, 6000, 9000, 12000, 15000):
        filtered = signal.sosfilt(signal.butter(order, corner, fs=RATE, output="sos"), waveform)
        assert measured(rounded(filtered)).cutoff_hz == 0, corner


@pytest.mark.parametrize("target", ["bass", "vocals", "drums"])
def test_narrow_sounds_are_no_cutoffs(target: str) -> None:
    waveform = stem(target, 3.0)
    found = measured(rounded(waveform))
    assert found.cutoff_hz == 0
    if target != "drums":
        assert found.bandwidth_hz < 2500


def test_what_has_no_cutoff() -> None:
    time = np.arange(3 * RATE) / RATE
    waveforms = {
        "silence": np.zeros(RATE),
        "tone": 0.5 * np.sin(2 * np.pi * 15000 * time),
        "sawtooth": 0.5 * signal.sawtooth(2 * np.pi * 110 * time),
        "clicks": (np.arange(RATE) % 5000 == 0) * 0.5,
        "short": noise(1.0)[:1000],
        "one": np.ones(1),
    }
    for name, waveform in waveforms.items():
        assert measured(rounded(waveform)).cutoff_hz == 0, name
    for rate in (8000, 16000, 32000, 96000):
        assert measured(noise(1.0, 2.0, rate), rate).cutoff_hz == 0


def clipped_values(waveform: np.ndarray) -> int:
    return round(measured(waveform).clipping * waveform.size)


def test_clipping_counts_flat_runs_at_full_scale() -> None:
    waveform = np.zeros((3 * RATE, 2), np.float32)
    waveform[100:103, 0] = 1.0  # a run of three
    waveform[200:202, 1] = 1.0  # too short
    waveform[300:307, 1] = -32768 / 32768
    waveform[400:410, 0] = 32767 / 32768
    waveform[500:600] = 0.99  # flat, and below full scale
    waveform[700:704, 0] = [1.0, 1.01, 1.02, 1.0]  # above full scale, not flat
    waveform[800:803, 1] = [1.0, -1.0, 1.0]
    assert clipped_values(waveform) == 3 + 7 + 10


@pytest.mark.parametrize("start", range(RATE - 5, RATE + 2))
@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_clipping_does_not_depend_on_blocks(start: int, length: int) -> None:
    waveform = np.zeros((2 * RATE, 1), np.float32)
    waveform[start : start + length] = 1.0
    assert clipped_values(waveform) == (length if length >= 3 else 0)


def test_clipping_of_a_sine() -> None:
    clipped = np.clip(2 * np.sin(2 * np.pi * 100 * np.arange(3 * RATE) / RATE), -1, 1)
    assert measured(clipped).clipping == pytest.approx(2 / 3, abs=0.01)  # where |sin| > 1/2


def test_offset_is_that_of_the_worst_channel() -> None:
    waveform = np.stack([noise(1.0)[:, 0] + 0.02, noise(1.0)[:, 0] - 0.05], axis=1)
    assert measured(waveform).dc_offset == pytest.approx(np.abs(waveform.mean(axis=0, dtype=float)).max(), rel=1e-6)
    assert measured(waveform).dc_offset > 0.04


def test_content_is_the_decoded_audios(tmp_path: Path) -> None:
    waveform = noise(1.0, 1.5)
    digests = set()
    for name, subtype in (("a.wav", "PCM_16"), ("b.flac", "PCM_16"), ("c.wav", "PCM_24"), ("d.aiff", "FLOAT")):
        sf.write(tmp_path / name, waveform, RATE, subtype=subtype)
        digests.add(measured(sf.read(tmp_path / name, dtype="float32", always_2d=True)[0]).content)
    assert len(digests) == 1
    changed = waveform.copy()
    changed[1000] += 1 / 32768
    assert measured(changed).content not in digests
    assert measured(-np.zeros((100, 1))).content == measured(np.zeros((100, 1))).content
