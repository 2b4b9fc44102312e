"""Chunked separation against the model on the whole signal, and against itself at borders and ends."""

import functools
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.inference.chunks import ChunkLayout, Chunks
from umx_model.inference.estimator import AnyNetwork, Estimator
from umx_model.inference.restore import as_separator
from umx_model.inference.separator import Separator
from umx_model.model.expectation_maximization import ExpectationMaximization
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile

RATE = 8000


def profile(**settings: object) -> ModelProfile:
    defaults = {"targets": ("a", "b", "c"), "sample_rate": RATE, "n_fft": 512, "hop_length": 128, "hidden_size": 16}
    return ModelProfile.model_validate({**defaults, "layers": 2, "window_frames": 20, "bandwidth": 3000.0, **settings})


def random_filter(model_profile: ModelProfile, seed: int = 0) -> keras.Model:
    """A joint filter whose batch norms and scales do something."""
    model, rng = get_joint_spectral_filter(model_profile), np.random.default_rng(seed)
    for weight in model.weights:
        positive = any(name in weight.path for name in ("variance", "scale", "gamma"))
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.2, weight.shape))
    return model


@functools.lru_cache
def shared_model(niter: int, softmask: bool = False) -> tuple[UMX, Separator]:
    """A model and its separator, which compiles only once."""
    model = UMX(random_filter(profile()), niter=niter, softmask=softmask)
    return model, as_separator(model)


def noise(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, [samples, channels]).astype(np.float32)


def run(chunks: Chunks, waveform: np.ndarray, block: int) -> np.ndarray:
    def pieces() -> Iterator[np.ndarray]:
        for first in range(0, len(waveform), block):
            yield chunks.push(waveform[first : first + block])
        yield chunks.finish()

    return np.concatenate(list(pieces()))


def stacked(stems: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack(list(stems.values()), axis=-1)


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("samples", [1, 3, 127, 128, 511, 513, 5000])
@pytest.mark.parametrize(("niter", "softmask"), [(0, False), (1, False), (2, True)])
def test_one_chunk_is_the_whole_model(samples: int, niter: int, softmask: bool) -> None:
    model, separator = shared_model(niter, softmask)
    expected = model(noise(samples)[np.newaxis])[0].numpy()
    estimates = stacked(separator.separate(noise(samples)))
    # Few frames make Cxx nearly singular, so EM passes on rounding enlarged.
    assert relative_rms(estimates, expected) < (1e-3 if niter else 1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"unidirectional": True}, {"channels": 1}, {"hop_length": 200}, {"channels": 3}, {"refiner_channels": 4}],
)
def test_other_models(settings: dict[str, object]) -> None:
    model = UMX(random_filter(profile(**settings)))
    waveform = noise(6000, model.profile.channels)
    expected = model(waveform[np.newaxis])[0].numpy()
    assert relative_rms(stacked(as_separator(model).separate(waveform)), expected) < 1e-4


class Identity:
    """A network that gives everything to the first target and nothing to the other."""

    def features(self, magnitude: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.stack([tf.ones_like(magnitude[:, :, 0]), tf.zeros_like(magnitude[:, :, 0])]), None

    def masks(self, features: tf.Tensor) -> tf.Tensor:
        return tf.stack([features, features], axis=2)


def identity(hop: int = 128) -> Chunks:
    model_profile = profile(targets=("a", "b"), hop_length=hop)
    layout = ChunkLayout(model_profile, chunk_seconds=0.4, context_seconds=0.1, crossfade_seconds=0.05)
    return Chunks(Estimator(Identity(), model_profile, niter=0), layout, 2)


@pytest.mark.parametrize("hop", [100, 128, 200, 256])
@pytest.mark.parametrize("samples", [1, 2, 300, 2560, 2561, 20001])
def test_identity_returns_the_input_across_borders(samples: int, hop: int) -> None:
    waveform = noise(samples)
    estimates = run(identity(hop), waveform, 777)
    assert estimates.shape == (samples, 2, 2)
    np.testing.assert_allclose(estimates[..., 0], waveform, atol=1e-6)
    np.testing.assert_array_equal(estimates[..., 1], 0)


def test_a_sine_does_not_click_at_borders() -> None:
    model, separator = shared_model(niter=1)
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE).astype(np.float32)
    waveform = np.stack([sine, 0.5 * sine], axis=1)
    estimates = stacked(as_separator(model, chunk_seconds=0.4).separate(waveform))[1000:-1000]
    # What a sine has above twice its frequency is what the masks' changes put there; a click has energy everywhere.
    whole = stacked(separator.separate(waveform))[1000:-1000]
    for estimate, reference in zip(np.diff(estimates, 4, axis=0).T, np.diff(whole, 4, axis=0).T, strict=True):
        assert np.abs(estimate).max() < 1.5 * np.abs(reference).max() + 1e-4


def test_blocks_of_any_size_give_the_same() -> None:
    model_profile = profile()
    network = AnyNetwork(random_filter(model_profile), model_profile)
    layout = ChunkLayout(model_profile, chunk_seconds=0.5, context_seconds=0.2, crossfade_seconds=0.1)
    estimator = Estimator(network, model_profile, niter=1)
    for block, waveform in [(1, noise(3000)), (100, noise(30000)), (4096, noise(30000)), (29999, noise(30000))]:
        expected = run(Chunks(estimator, layout, 2), waveform, len(waveform))
        np.testing.assert_array_equal(run(Chunks(estimator, layout, 2), waveform, block), expected)


def test_context_is_real_audio() -> None:
    """With context as long as the recurrent memory, chunks equal the whole."""
    model, separator = shared_model(niter=1)
    waveform = noise(6 * RATE)
    whole = stacked(separator.separate(waveform))
    chunked = stacked(as_separator(model, chunk_seconds=1.0).separate(waveform))
    assert relative_rms(chunked, whole) < 1e-4
    assert not np.array_equal(chunked, whole)


def test_mono_through_a_stereo_model_is_one_channel_em() -> None:
    """The network hears mono twice; EM is that of one channel, as the equations say, not of two equal ones."""
    model, separator = shared_model(niter=1)
    waveform = noise(4000, 1)
    estimates = stacked(separator.separate(waveform))
    assert estimates.shape == (4000, 1, 3)
    masks = model.spectral_filter(tf.tile(tf.abs(model.stft(waveform[np.newaxis])), [1, 1, 1, 2]))
    magnitudes = tf.reduce_mean(masks, axis=3, keepdims=True)
    refined = model.expectation_maximization(model.stft(waveform[np.newaxis]), magnitudes)
    expected = np.stack([model.istft(refined[..., j], length=4000)[0] for j in range(3)], axis=-1)
    assert relative_rms(estimates, expected) < 1e-4


def test_layout_is_bounded_and_whole_windows() -> None:
    layout = ChunkLayout(ModelProfile(targets=("a",)), chunk_seconds=60.0)
    assert layout.step % 300 == 0
    assert layout.step < layout.longest < 1.2 * layout.step


def test_one_target_is_refined_against_the_rest() -> None:
    """EM with one target alone would return the mixture; the oracle has the rest as a second one."""
    model_profile = profile(targets=("vocals",))
    model = UMX(random_filter(model_profile), niter=1)
    waveform = noise(4000)
    stft = model.stft(waveform[np.newaxis])
    expected = ExpectationMaximization(niter=1, window_frames=20, residual=True)(
        stft, model.spectral_filter(tf.abs(stft))
    )
    expected = model.istft(expected[..., 0], length=4000)[0].numpy()
    assert relative_rms(model(waveform[np.newaxis])[0, ..., 0].numpy(), expected) < 1e-6
    assert relative_rms(as_separator(model).separate(waveform)["vocals"], expected) < 1e-4
    assert relative_rms(waveform, expected) > 0.1
    with pytest.raises(InputError, match="softmask: shares the mixture out"):
        UMX(model.spectral_filter, softmask=True)


def test_short_windows_and_hops() -> None:
    """Several EM windows in one STFT window."""
    model = UMX(random_filter(profile(window_frames=1, hop_length=64)), niter=1)
    waveform = noise(3000)
    whole = stacked(as_separator(model).separate(waveform))
    chunked = stacked(as_separator(model, chunk_seconds=0.001).separate(waveform))
    assert chunked.shape == whole.shape
    expected = model(waveform[np.newaxis])[0].numpy()
    assert relative_rms(whole, expected) < 1e-3


def test_chunk_seconds_are_bounded() -> None:
    with pytest.raises(InputError, match="chunk seconds: expected more than 0 and at most 600, got 1e"):
        as_separator(shared_model(niter=1)[0], chunk_seconds=1e6)
