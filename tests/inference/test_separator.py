"""Arrays, tensors, files and streams through `Separator`, with models whose answers are known."""

import numpy as np
import pytest
import soundfile as sf
import tensorflow as tf
from helpers import PointwiseStream, stem, write_m4a

from umx_model.data import audio
from umx_model.errors import InputError
from umx_model.inference.chunks import ChunkLayout, Chunks
from umx_model.inference.estimator import AnyNetwork, Estimator
from umx_model.inference.separator import Separator
from umx_model.profile import ModelProfile

RATE = 8000
PROFILE = ModelProfile(targets=("vocals", "drums"), sample_rate=RATE, n_fft=512, hop_length=128, window_frames=30)


def separator_of(spectral_filter, niter=0, profile=PROFILE):
    """The real thing around a filter, magnitudes `[1, frames, bins, channels]` -> `[..., targets]`; short chunks."""
    estimator = Estimator(AnyNetwork(spectral_filter, profile), profile, niter)
    layout = ChunkLayout(profile, chunk_seconds=1.0, context_seconds=0.1, crossfade_seconds=0.05)
    return Separator(lambda channels: Chunks(estimator, layout, channels), profile)


def split(magnitude):
    """Give each target the mixture."""
    return tf.stack([magnitude, magnitude], axis=-1)


def crossover(magnitude):
    """Give everything above 1 kHz to the drums."""
    high = tf.cast(tf.range(PROFILE.bins) > 64, tf.float32)[:, None]
    return tf.stack([magnitude * (1 - high), magnitude * high], axis=-1)


def noise(samples, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


def sine(seconds, rate=RATE, hertz=440.0):
    time = np.arange(round(seconds * rate))[:, np.newaxis] / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time + [0, 1])).astype(np.float32)


@pytest.fixture(scope="module")
def identity():
    return separator_of(split)


@pytest.fixture
def doubling():
    """Estimates twice the mixture, and its opposite."""
    return Separator(lambda channels: PointwiseStream(lambda x: np.stack([2 * x, -x], axis=-1)), PROFILE)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [1, 2, 3, 100, 511, 8000, 8001, 7 * RATE + 17])
def test_identity_gives_the_input_back_across_chunks(identity, samples, channels):
    mixture = noise(samples, channels)
    for estimate in identity.separate(mixture).values():
        assert estimate.dtype == np.float32
        np.testing.assert_allclose(estimate, mixture, rtol=0, atol=1e-6)


@pytest.mark.parametrize("niter", [0, 1])
def test_no_click_where_chunks_meet(niter):
    """What a filter leaves of a sine is that sine, at borders as elsewhere; only the file's ends are reflected."""
    mixture = sine(12.0)
    estimate = separator_of(crossover, niter).separate(mixture)["vocals"]
    np.testing.assert_allclose(estimate[1000:-1000], mixture[1000:-1000], rtol=0, atol=1e-3)

    def clicks(waveform):
        return np.abs(np.diff(waveform - mixture, n=2, axis=0))[1000:-1000].max()

    assert clicks(estimate) < 1e-4
    stepped = mixture.copy()
    stepped[6 * RATE :] += 2e-4
    assert clicks(stepped) > 1e-4  # so the check above can fail


@pytest.mark.parametrize("channels", [3, 6, 8])
def test_surround_is_separated_in_groups_and_never_cut(identity, channels):
    mixture = noise(20_001, channels)
    np.testing.assert_allclose(identity.separate(mixture)["drums"], mixture, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_em_of_a_single_channel(channels):
    """With constant masks g and h, n iterations of one-channel EM give g^2n / (g^2n + h^2n)."""
    mixture = stem("vocals", 2.0, RATE, channels)
    estimates = separator_of(lambda x: tf.stack([0.7 * x, 0.3 * x], axis=-1), niter=2).separate(mixture)
    expected = 0.7**4 / (0.7**4 + 0.3**4)
    np.testing.assert_allclose(estimates["vocals"][:, -1], expected * mixture[:, -1], rtol=0, atol=5e-3)
    assert abs(expected - 0.7) * np.abs(mixture[:, -1]).max() > 2e-2  # so that doing nothing fails


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 44100, 70001])
@pytest.mark.parametrize("rate", [44100, 22050, 6000, 192_000])
def test_other_rates_come_back(identity, samples, rate):
    mixture = sine(samples / rate, rate)
    estimate = identity.separate(mixture, sample_rate=rate)["vocals"]
    assert estimate.shape == mixture.shape
    if samples > rate // 2:
        inner = slice(samples // 4, -samples // 4)
        np.testing.assert_allclose(estimate[inner], mixture[inner], rtol=0, atol=1e-3)


def test_takes_paths_arrays_and_tensors(doubling, tmp_path):
    mixture = noise(2000)
    sf.write(tmp_path / "song.wav", mixture, RATE, "FLOAT")
    for given in (
        tmp_path / "song.wav",
        str(tmp_path / "song.wav"),
        mixture,
        np.asfortranarray(mixture),
        mixture.astype(np.float64),
        tf.constant(mixture),
        mixture.tolist(),
    ):
        estimates = doubling.separate(given)
        assert list(estimates) == ["vocals", "drums"]
        np.testing.assert_allclose(estimates["drums"], -mixture, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(mixture, audio.read(tmp_path / "song.wav"))  # the input is left as it was
    assert doubling.separate(mixture[:, 0])["vocals"].shape == (2000, 1)


@pytest.mark.parametrize("file", ["song.flac", "song.ogg", "song.mp3", "song.m4a"])
def test_files_keep_their_rate_and_length(doubling, tmp_path, file):
    mixture = sine(0.5, 22050)
    write_m4a(tmp_path / file, mixture, 22050) if file.endswith("m4a") else audio.write(tmp_path / file, mixture, 22050)
    expected = audio.read(tmp_path / file)
    estimate = doubling.separate(tmp_path / file)["drums"]
    assert estimate.shape == expected.shape
    np.testing.assert_allclose(estimate[2000:-2000], -expected[2000:-2000], rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [1, 1000, 30_000])
def test_blocks_stream(doubling, size):
    mixture = noise(2000 if size == 1 else 30_005, 1)
    blocks = [mixture[first : first + size] for first in range(0, len(mixture), size)]
    estimates = list(doubling.separate_blocks(blocks))
    np.testing.assert_array_equal(np.concatenate(estimates), np.stack([2 * mixture, -mixture], axis=-1))
    assert list(doubling.separate_blocks(iter([]))) == []


def test_one_buffer_may_bring_all_blocks(doubling):
    mixture = noise(20_000).astype(np.float64)
    buffer = np.empty((100, 2))

    def blocks():
        for first in range(0, len(mixture), 100):
            buffer[:] = mixture[first : first + 100]
            yield buffer

    estimates = np.concatenate(list(doubling.separate_blocks(blocks(), channels=2)))
    np.testing.assert_allclose(estimates[..., 1], -mixture, rtol=0, atol=1e-7)
    with pytest.raises(InputError, match="floating-point audio in .*, got int16"):
        list(doubling.separate_blocks([np.zeros((10, 2), np.int16)]))


def test_blocks_stream_at_another_rate(doubling):
    mixture = sine(3.0, 44100)
    blocks = np.array_split(mixture, 20)
    estimates = np.concatenate(list(doubling.separate_blocks(blocks, sample_rate=44100, channels=2)))
    assert estimates.shape == (*mixture.shape, 2)
    np.testing.assert_allclose(estimates[5000:-5000, :, 1], -mixture[5000:-5000], rtol=0, atol=1e-3)


def test_progress_reaches_the_end(doubling):
    reports = []
    doubling.separate(noise(300_000), progress=lambda done, total: reports.append((done, total)))
    assert reports[0] == (0, 37.5)
    assert reports[-1] == (37.5, 37.5)
    assert len(reports) > 4
    assert reports == sorted(reports)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (np.zeros((2, 1000), np.float32), r"has 1000 channels; expected 1 to 64 .*waveforms are \[samples, channels\]"),
        (np.zeros((1000, 0), np.float32), "has 0 channels"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.zeros((1, 1000, 2), np.float32), r"shape \(1, 1000, 2\)"),
        (np.zeros((1000, 2), np.int16), "floating-point audio in .*, got int16"),
        (np.full((1000, 2), np.nan), r"mixture: non-finite sample \(nan\) at 0 \(0.000 s\), channel 1"),
        ("nowhere.wav", "nowhere.wav: no such file"),
    ],
)
def test_refuses(doubling, mixture, message):
    with pytest.raises(InputError, match=message) as refusal:
        doubling.separate(mixture)
    assert "\n" not in str(refusal.value)


def test_refuses_a_rate_for_a_file(doubling, tmp_path):
    with pytest.raises(InputError, match="a file knows its own"):
        doubling.separate(tmp_path / "song.wav", sample_rate=44100)


def test_non_finite_samples_of_a_file_are_told_by_place(doubling, tmp_path):
    mixture = noise(100_000)
    mixture[70_000, 1] = np.inf
    sf.write(tmp_path / "song.wav", mixture, RATE, "FLOAT")
    with pytest.raises(InputError, match=r"song.wav: non-finite sample \(inf\) at 70000 \(8.750 s\), channel 2"):
        doubling.separate(tmp_path / "song.wav")
