"""Spectrograms as pictures: what a report shows beside excerpts to listen to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.signal
import tensorflow as tf
from plotly.colors import hex_to_rgb, sequential

Waveform = npt.NDArray[np.floating]

LOWEST_HZ, HIGHEST_HZ = 40.0, 16000.0

_ROWS, _COLUMNS = 192, 480
_WINDOW_SECONDS = 0.046
_RANGE_DB = 80.0
_JPEG_QUALITY = 85


def pictures(waveforms: Sequence[Waveform], sample_rate: int) -> list[bytes]:
    """Draw the spectrograms of waveforms that belong together.

    Time goes to the right, frequency up from `LOWEST_HZ` to `HIGHEST_HZ` in octaves of equal height. The
    brightest colour is the loudest point of all of them, black is 80 dB below it, so that they compare.

    Args:
        waveforms: each `[samples, channels]`; channels are averaged in power.
        sample_rate: Hz.

    Returns:
        A JPEG file for each.
    """
    powers = [_power(waveform, sample_rate) for waveform in waveforms]
    loudest = max(max(power.max() for power in powers), np.finfo(np.float64).tiny)
    return [_picture(power / loudest) for power in powers]


def height(frequency: float) -> float:
    """Return where a frequency in Hz is in a picture: 0 at the lower edge, 1 at the upper one."""
    return float(np.log(frequency / LOWEST_HZ) / np.log(HIGHEST_HZ / LOWEST_HZ))


def _power(waveform: Waveform, sample_rate: int) -> npt.NDArray[np.float64]:
    """Return the power at each point of a picture, `[rows, columns]`, the highest frequency first."""
    window = max(2, min(round(_WINDOW_SECONDS * sample_rate), len(waveform)))
    hop = min(max(1, len(waveform) // _COLUMNS), window // 2)
    # The transform needs a window's worth of samples.
    padded = np.pad(waveform, ((0, max(0, window - len(waveform))), (0, 0)))
    bins, _, spectra = scipy.signal.stft(padded, sample_rate, nperseg=window, noverlap=window - hop, axis=0)
    power = np.mean(np.abs(spectra) ** 2, axis=1)
    frequencies = np.geomspace(HIGHEST_HZ, LOWEST_HZ, _ROWS)
    # Above half the sample rate there is nothing.
    return np.stack([np.interp(frequencies, bins, frame, right=0.0) for frame in power.T], axis=1)


def _picture(power: npt.NDArray[np.float64]) -> bytes:
    with np.errstate(divide="ignore"):
        level = np.clip(1.0 + 10.0 * np.log10(power) / _RANGE_DB, 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(sequential.Magma))
    colours = np.array([hex_to_rgb(colour) for colour in sequential.Magma], np.float64)
    pixels = np.stack([np.interp(level, stops, colours[:, channel]) for channel in range(3)], axis=-1)
    picture: bytes = tf.io.encode_jpeg(np.rint(pixels).astype(np.uint8), quality=_JPEG_QUALITY).numpy()
    return picture
