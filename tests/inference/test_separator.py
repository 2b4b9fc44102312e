"""Chunking, rates, channels and refusals of `Separator`, with models whose answers are known."""

import keras
import numpy as np
import pytest
import soundfile as sf
import soxr
import tensorflow as tf

from umx_model.data import audio
from umx_model.errors import InputError
from umx_model.inference.separator import Separator
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile

RATE = 8000
PROFILE = ModelProfile(targets=("vocals", "drums"), sample_rate=RATE, n_fft=512, hop_length=128, hidden_size=8, niter=0)


class PassThrough(keras.Model):
    """A spectral filter that returns the mixture for every target."""

    profile = PROFILE

    def call(self, magnitude, training=False):
        return tf.stack([magnitude, magnitude], axis=-1)


def doubling(mixture):
    """A model that returns twice the mixture, and its opposite."""
    return tf.stack([2 * mixture, -mixture], axis=-1)


def noise(samples, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def identity():
    """The whole model, STFT and back, around a filter that changes nothing; in short chunks."""
    model = UMX(PassThrough())
    return Separator(model, PROFILE, chunk_seconds=1.0, context_seconds=0.1, crossfade_seconds=0.05)


@pytest.mark.parametrize("samples", [1, 2, 100, 511, 8000, 8001, 5 * RATE + 17])
def test_identity_gives_the_input_back_across_chunks(identity, samples):
    mixture = noise(samples)
    for estimate in identity.separate(mixture).values():
        assert estimate.dtype == np.float32
        np.testing.assert_allclose(estimate, mixture, rtol=0, atol=1e-6)


def test_chunks_hear_real_neighbours():
    """A model with memory (a moving average) gives what it gives for the undivided audio."""
    kernel = np.full(1201, 1 / 1201, np.float32)

    def average(mixture):
        averaged = [np.convolve(channel, kernel)[600:-600] for channel in mixture[0].numpy().T]
        return tf.constant(np.stack(averaged, axis=-1)[None, ..., None].repeat(2, axis=-1), tf.float32)

    mixture = noise(4 * RATE)
    whole = average(tf.constant(mixture[None]))[0, ..., 0].numpy()
    chunked = Separator(average, PROFILE, chunk_seconds=1.0, context_seconds=0.1, crossfade_seconds=0.05)
    np.testing.assert_allclose(chunked.separate(mixture)["drums"], whole, rtol=0, atol=1e-6)
    deaf = Separator(average, PROFILE, chunk_seconds=1.0, context_seconds=0, crossfade_seconds=0.001)
    assert np.abs(deaf.separate(mixture)["drums"] - whole).max() > 1e-3  # so the check above can fail


def test_chunks_are_bounded_and_cross_faded():
    lengths = []

    def counting(mixture):
        lengths.append(mixture.shape[1])
        return tf.fill([1, mixture.shape[1], 2, 2], float(len(lengths)))

    separator = Separator(counting, PROFILE, chunk_seconds=1.0, context_seconds=0.1, crossfade_seconds=0.05)
    estimate = separator.separate(np.zeros((10 * RATE, 2), np.float32))["vocals"][:, 0]
    assert len(lengths) > 10
    assert max(lengths) <= RATE
    assert np.abs(np.diff(estimate)).max() < 1.5 / (0.05 * RATE)  # a ramp from each chunk's number to the next, no step
    assert estimate[-1] == len(lengths)


@pytest.mark.parametrize(("n_fft", "hop", "context"), [(512, 128, 256), (512, 200, 400), (32768, 16384, 16384)])
def test_context_is_at_least_half_a_window_of_whole_hops(n_fft, hop, context):
    lengths = []

    def counting(mixture):
        lengths.append(mixture.shape[1])
        return doubling(mixture)

    profile = PROFILE.model_copy(update={"n_fft": n_fft, "hop_length": hop})
    separator = Separator(counting, profile, chunk_seconds=20.0, context_seconds=0.01, crossfade_seconds=0.5)
    separator.separate(np.zeros((60 * RATE, 2), np.float32))
    step = (20 * RATE - 2 * context - RATE // 2) // hop * hop
    assert lengths[0] == step + RATE // 2 + context
    assert lengths[1] == lengths[0] + context


def test_chunks_hold_windows_longer_than_they_are_meant_to_be():
    profile = PROFILE.model_copy(update={"n_fft": 2 * RATE, "hop_length": RATE})
    mixture = noise(10 * RATE)
    separator = Separator(doubling, profile, chunk_seconds=1.0, context_seconds=0.1, crossfade_seconds=0.05)
    np.testing.assert_allclose(separator.separate(mixture)["drums"], -mixture, rtol=0, atol=1e-6)


def test_blocks_stream():
    """However the audio arrives, the estimates are the same, and they come before the audio ends."""
    separator = Separator(doubling, PROFILE, chunk_seconds=1.0, context_seconds=0.1, crossfade_seconds=0.05)
    mixture = noise(3 * RATE + 5)
    taken = 0

    def blocks(size):
        nonlocal taken
        for start in range(0, len(mixture), size):
            taken = start + size
            yield mixture[start : start + size]

    for size in (1000, 7001, 10 * RATE):
        estimates = np.concatenate(list(separator.separate_blocks(blocks(size))))
        np.testing.assert_allclose(estimates[..., 0], 2 * mixture, rtol=0, atol=1e-6)
    next(separator.separate_blocks(blocks(1000)))
    assert taken <= RATE + 1000


@pytest.mark.parametrize("samples", [1, 7, 44100, 70001])
@pytest.mark.parametrize("rate", [44100, 22050, 6000])
def test_other_rates_come_back(samples, rate):
    mixture = np.sin(2 * np.pi * 440 * np.arange(samples) / rate).astype(np.float32)[:, None].repeat(2, axis=1)
    estimate = Separator(doubling, PROFILE).separate(mixture, sample_rate=rate)["vocals"]
    assert estimate.shape == mixture.shape
    if samples > rate // 2:
        inner = slice(samples // 4, -samples // 4)
        np.testing.assert_allclose(estimate[inner], 2 * mixture[inner], rtol=0, atol=1e-3)


def test_resampling_is_soxrs():
    seen = []

    def recording(mixture):
        seen.append(mixture.numpy()[0])
        return doubling(mixture)

    mixture = noise(4410)
    Separator(recording, PROFILE).separate(mixture, sample_rate=44100)
    np.testing.assert_allclose(seen[0], soxr.resample(mixture, 44100, RATE, "VHQ"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1000,), (1000, 1)])
def test_mono_is_duplicated_and_averaged_back(shape):
    heard = []

    def louder_right(mixture):
        heard.append(mixture.numpy()[0])
        return tf.stack([mixture * tf.constant([1.0, 3.0]), mixture], axis=-1)

    mixture = noise(1000, 1).reshape(shape)
    estimates = Separator(louder_right, PROFILE).separate(mixture)
    assert heard[0].shape == (1000, 2)
    np.testing.assert_array_equal(heard[0][:, 0], heard[0][:, 1])
    assert estimates["vocals"].shape == (1000, 1)
    np.testing.assert_allclose(estimates["vocals"][:, 0], 2 * mixture.reshape(-1), rtol=1e-6)


def test_takes_paths_arrays_and_tensors(tmp_path):
    mixture = noise(2000)
    sf.write(tmp_path / "song.wav", mixture, RATE, "FLOAT")
    separator = Separator(doubling, PROFILE)
    for given in (tmp_path / "song.wav", str(tmp_path / "song.wav"), mixture, tf.constant(mixture), mixture.tolist()):
        estimates = separator.separate(given)
        assert list(estimates) == ["vocals", "drums"]
        np.testing.assert_allclose(estimates["drums"], -mixture, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(mixture, audio.read(tmp_path / "song.wav"))  # the input is left as it was


def test_file_keeps_its_rate(tmp_path):
    sf.write(tmp_path / "song.flac", noise(22050), 22050)
    assert Separator(doubling, PROFILE).separate(tmp_path / "song.flac")["vocals"].shape == (22050, 2)


def test_progress_reaches_the_end():
    reports = []
    separator = Separator(doubling, PROFILE, chunk_seconds=1.0, context_seconds=0.1, crossfade_seconds=0.05)
    separator.separate(noise(3 * RATE), progress=lambda done, total: reports.append((done, total)))
    assert reports[0] == (0, 3.0)
    assert reports[-1] == (3.0, 3.0)
    assert reports == sorted(reports)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (
            np.zeros((1000, 6), np.float32),
            "has 6 channels and the model takes 2; convert it to 2 channels or to mono first",
        ),
        (np.zeros((2, 1000), np.float32), r"has 1000 channels .*waveforms are \[samples, channels\]"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.zeros((1, 1000, 2), np.float32), r"shape \(1, 1000, 2\)"),
        (np.zeros((1000, 2), np.int16), "floating-point audio in .*, got int16"),
        (np.full((1000, 2), np.nan), "non-finite"),
        ("nowhere.wav", "nowhere.wav: no such file"),
    ],
)
def test_refuses(mixture, message):
    with pytest.raises(InputError, match=message) as refusal:
        Separator(doubling, PROFILE).separate(mixture)
    assert "\n" not in str(refusal.value)


def test_refuses_chunks_without_a_middle():
    with pytest.raises(ValueError, match="chunk_seconds must leave room"):
        Separator(doubling, PROFILE, chunk_seconds=1, context_seconds=0.5)
