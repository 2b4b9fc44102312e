"""STFT and its inverse against SciPy, NumPy and each other."""

import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from umx_model.model.stft import ISTFTLayer, STFTLayer


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape)


def scipy_stft(waveform: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """[samples, channels] -> [frames, bins, channels], no padding, scaled like a plain FFT of windowed frames."""
    window = scipy.signal.get_window("hann", n_fft, fftbins=True)
    _, _, spectrum = scipy.signal.stft(
        waveform.T, window=window, nperseg=n_fft, noverlap=n_fft - hop, boundary=None, padded=False
    )
    return np.moveaxis(spectrum, 0, -1).swapaxes(0, 1) * window.sum()


@pytest.mark.parametrize(("n_fft", "hop", "channels"), [(512, 128, 1), (512, 128, 2), (4096, 1024, 2), (256, 100, 3)])
def test_uncentred_equals_scipy(n_fft, hop, channels):
    waveform = noise(9000, channels)
    expected = scipy_stft(waveform, n_fft, hop)
    stft = STFTLayer(n_fft, hop, center=False)
    np.testing.assert_allclose(stft(waveform[None])[0], expected, atol=1e-9)
    np.testing.assert_allclose(stft(waveform[None].astype(np.float32))[0], expected, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 255, 256, 257, 512, 5000])
def test_centred_equals_scipy_on_reflected_signal(samples):
    waveform = noise(samples, 2)
    padded = np.pad(waveform, ((256, 256), (0, 0)), mode="reflect")
    np.testing.assert_allclose(STFTLayer(512, 128)(waveform[None])[0], scipy_stft(padded, 512, 128), atol=1e-9)


def test_frames_of_six_seconds():
    waveform = tf.zeros([1, 6 * 44100, 2])
    for center, frames in ((False, 255), (True, 259)):
        layer = STFTLayer(center=center)
        assert layer(waveform).shape == (1, frames, 2049, 2)
        assert layer.compute_output_spec(keras.KerasTensor(waveform.shape)).shape == (1, frames, 2049, 2)


def test_sine_of_one_bin():
    # A cosine of amplitude 1 on bin k has magnitude sum(window) / 2 there, and half of it beside.
    time = np.arange(4096)
    stft = STFTLayer(512, 128, center=False)(np.cos(2 * np.pi * 20 * time / 512)[None, :, None])
    magnitude = np.abs(stft[0, 3, :, 0])
    np.testing.assert_allclose(magnitude[19:22], [64, 128, 64], atol=1e-9)
    assert magnitude[:18].max() < 1e-9


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("samples", [1, 2, 127, 128, 1000, 4096, 44101])
def test_round_trip(samples, channels):
    waveform = noise(2, samples, channels).astype(np.float32)
    restored = ISTFTLayer()(STFTLayer()(waveform), length=samples).numpy()
    assert restored.shape == waveform.shape
    assert np.sqrt(np.mean((restored - waveform) ** 2)) < 1e-6


@pytest.mark.parametrize("hop", [1, 64, 128, 150, 192, 193, 200, 255, 256])
def test_round_trip_with_any_hop(hop):
    # The longest tail after the last frame's centre, where a window's edge is all there is.
    samples = 5 * hop + hop - 1
    waveform = noise(1, samples, 2).astype(np.float32)
    stft = STFTLayer(512, hop)
    spectrum = stft(waveform)
    assert spectrum.shape == stft.compute_output_spec(keras.KerasTensor(waveform.shape)).shape
    restored = ISTFTLayer(512, hop)(spectrum, length=samples).numpy()
    assert np.sqrt(np.mean((restored - waveform) ** 2)) < 1e-6
    # A mask makes spectrograms that no signal has; their inverse must not explode anywhere.
    mask = np.random.default_rng(1).uniform(0, 1, spectrum.shape)
    masked = ISTFTLayer(512, hop)(tf.cast(mask, tf.complex64) * spectrum, length=samples).numpy()
    assert np.abs(masked).max() < 3


def test_round_trip_uncentred_inside_the_frames():
    waveform = noise(1, 2000, 1)
    restored = ISTFTLayer(512, 128, center=False)(STFTLayer(512, 128, center=False)(waveform), length=2000).numpy()
    covered = 512 + (2000 - 512) // 128 * 128
    np.testing.assert_allclose(restored[:, 1:covered], waveform[:, 1:covered], atol=1e-6)
    assert not restored[:, covered:].any()


def test_in_a_functional_model_with_any_length():
    inputs = keras.Input((None, 2))
    stft = STFTLayer(256, 64)(inputs)
    assert (stft.shape, stft.dtype) == ((None, None, 129, 2), "complex64")
    model = keras.Model(inputs, stft)
    for samples in (1, 333):
        waveform = noise(1, samples, 2).astype(np.float32)
        np.testing.assert_allclose(model(waveform), STFTLayer(256, 64)(waveform), atol=1e-5)
    assert keras.Model.from_config(model.get_config())(waveform).shape == model(waveform).shape


@pytest.mark.parametrize(("n_fft", "hop"), [(511, 128), (512, 300), (512, 0), (0, 1)])
def test_impossible_settings(n_fft, hop):
    with pytest.raises(ValueError, match="must be"):
        STFTLayer(n_fft, hop)
