"""Short-time Fourier transform and its inverse, as Keras layers.

The convention is that of `torch.stft` as Open-Unmix uses it (`openunmix/transforms.py`, v1.3.0):
periodic Hann window of `n_fft` samples, one-sided, not normalised, reflect padding by `n_fft / 2`
when centred. `scipy.signal.stft` with the same window gives the same frames times a constant.
"""

from __future__ import annotations

from typing import Any, TypeVar

import keras
import tensorflow as tf

Count = TypeVar("Count", int, tf.Tensor)


def centred_frames(samples: Count, n_fft: int, hop_length: int) -> Count:
    """Return how many frames a centred `STFTLayer` makes of a signal."""
    after = samples % hop_length  # samples after the last frame's centre, less than n_fft / 2
    extra = (8 * after + 3 * n_fft - 1) // (6 * n_fft)  # 1 where `after` is more than 3/8 of n_fft, else 0
    return 1 + samples // hop_length + extra


class _FourierLayer(keras.layers.Layer):
    """What the two transforms share: their settings, checked and saved."""

    def __init__(self, n_fft: int = 4096, hop_length: int = 1024, center: bool = True, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        if n_fft < 2 or n_fft % 2:
            raise ValueError(f"n_fft must be even and at least 2, got {n_fft}")
        if not 1 <= hop_length <= n_fft // 2:
            raise ValueError(f"hop_length must be in [1, n_fft / 2 = {n_fft // 2}], got {hop_length}")
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.center = center

    def window(self, dtype: tf.DType) -> tf.Tensor:
        """Return the periodic Hann window, [n_fft]."""
        return tf.cast(tf.signal.hann_window(self.n_fft, periodic=True, dtype=tf.float64), dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        settings = {"n_fft": self.n_fft, "hop_length": self.hop_length, "center": self.center}
        return {**super().get_config(), **settings}


@keras.saving.register_keras_serializable(package="umx_model")
class STFTLayer(_FourierLayer):
    """Waveform to complex spectrogram.

    Args:
        n_fft: window and transform length in samples, even.
        hop_length: samples from one frame to the next, at most `n_fft / 2`.
        center: pad `n_fft / 2` samples by reflection on both sides, so that frame `i` is centred on
            sample `i * hop_length`; signals shorter than the padding are reflected repeatedly, as
            `numpy.pad` does. Otherwise frames start at sample 0, samples after the last full frame
            are left out, and a signal shorter than one frame is zero-padded to one.

    Where more than 3/8 of `n_fft` follows the last frame's centre (so only with hops above that), the last
    samples would hang on the very edge of one window, and dividing by it would turn a masked spectrogram
    into a click. There one more frame follows than in `torch.stft`.

    Input shape:
        `[batch, samples, channels]`, float32 or float64, from 1 sample up.

    Output shape:
        `[batch, frames, n_fft / 2 + 1, channels]`, complex64 or complex128, with
        `1 + samples // hop_length` frames when centred (but see above) and
        `1 + (samples - n_fft) // hop_length` otherwise.

    >>> STFTLayer()(tf.zeros([1, 264600, 2])).shape
    TensorShape([1, 259, 2049, 2])
    """

    def call(self, waveform: tf.Tensor) -> tf.Tensor:
        """Transform each channel on its own."""
        waveform = tf.transpose(waveform, [0, 2, 1])  # [batch, channels, samples]
        if self.center:
            samples = tf.shape(waveform)[-1]
            frames = centred_frames(samples, self.n_fft, self.hop_length)
            waveform = _reflect(waveform, self.n_fft // 2, self.n_fft // 2 + (frames - 1) * self.hop_length - samples)
        missing = tf.maximum(0, self.n_fft - tf.shape(waveform)[-1])
        waveform = tf.pad(waveform, [[0, 0], [0, 0], [0, missing]])
        frames = tf.signal.frame(waveform, self.n_fft, self.hop_length)
        spectrum = tf.signal.rfft(frames * self.window(waveform.dtype))  # [batch, channels, frames, bins]
        return tf.transpose(spectrum, [0, 2, 3, 1])

    def compute_output_spec(self, waveform: Any) -> keras.KerasTensor:
        """Return the shape and dtype of the spectrogram."""
        batch, samples, channels = waveform.shape
        frames = None
        if samples is not None:
            if self.center:
                frames = centred_frames(samples, self.n_fft, self.hop_length)
            else:
                frames = 1 + max(samples - self.n_fft, 0) // self.hop_length
        dtype = "complex128" if waveform.dtype == "float64" else "complex64"
        return keras.KerasTensor((batch, frames, self.n_fft // 2 + 1, channels), dtype=dtype)


@keras.saving.register_keras_serializable(package="umx_model")
class ISTFTLayer(_FourierLayer):
    """Complex spectrogram to waveform, the least-squares inverse of `STFTLayer`.

    Windowed overlap-add, divided by the summed squared windows. Samples that no window reaches
    (the very first one and those after the last frame, when not centred) are zero.

    Args:
        n_fft: as in the `STFTLayer` to invert.
        hop_length: as in the `STFTLayer` to invert.
        center: as in the `STFTLayer` to invert.

    Input shape:
        `[batch, frames, n_fft / 2 + 1, channels]`, complex64 or complex128, and the keyword `length`, the
        number of samples to return.

    Output shape:
        `[batch, length, channels]`, float32 or float64.
    """

    def call(self, stft: tf.Tensor, length: int | tf.Tensor) -> tf.Tensor:
        """Transform each channel on its own."""
        spectrum = tf.transpose(stft, [0, 3, 1, 2])  # [batch, channels, frames, bins]
        frames = tf.signal.irfft(spectrum, [self.n_fft])
        window = self.window(frames.dtype)
        waveform = tf.signal.overlap_and_add(frames * window, self.hop_length)
        squares = tf.tile(tf.square(window)[tf.newaxis], [tf.shape(frames)[2], 1])
        norm = tf.signal.overlap_and_add(squares, self.hop_length)
        waveform = tf.math.divide_no_nan(waveform, tf.where(norm > 1e-11, norm, 0))
        start = self.n_fft // 2 if self.center else 0
        waveform = waveform[..., start : start + length]
        waveform = tf.pad(waveform, [[0, 0], [0, 0], [0, length - tf.shape(waveform)[-1]]])
        return tf.transpose(waveform, [0, 2, 1])

    def compute_output_spec(self, stft: Any, length: Any) -> keras.KerasTensor:
        """Return the shape and dtype of the waveform."""
        samples = length if isinstance(length, int) else None
        dtype = "float64" if stft.dtype == "complex128" else "float32"
        return keras.KerasTensor((stft.shape[0], samples, stft.shape[3]), dtype=dtype)


def _reflect(waveform: tf.Tensor, before: int, after: int) -> tf.Tensor:
    """Pad the last axis by reflection, however short it is (`tf.pad` wants it longer than the padding)."""
    samples = tf.shape(waveform)[-1]
    period = tf.maximum(2 * (samples - 1), 1)

    def mirrored(index: tf.Tensor) -> tf.Tensor:
        index = tf.math.floormod(index, period)
        return tf.gather(waveform, tf.where(index < samples, index, period - index), axis=-1)

    return tf.concat([mirrored(tf.range(-before, 0)), waveform, mirrored(samples + tf.range(after))], axis=-1)
