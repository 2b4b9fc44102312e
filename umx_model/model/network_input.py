"""What a joint spectral filter reads of a mixture."""

from __future__ import annotations

import tensorflow as tf

from umx_model.profile import ModelProfile


def network_input(stft: tf.Tensor, profile: ModelProfile, axis: int = -1) -> tf.Tensor:
    """Return the magnitudes that the model's network reads of a mixture.

    They are those of the channels. A refiner (`model.refiner_channels`) of stereo also reads that of half their
    difference, which has nothing of what is in the middle, as singing mostly is; magnitudes of channels do not tell.

    Args:
        stft: of the mixture, complex64, `[batch, frames, bins, channels]` where the channels are last.
        profile: of the model.
        axis: that of the channels.

    Returns:
        float32, of the same shape but for `profile.network_channels` channels.
    """
    magnitude = tf.abs(stft)
    if profile.network_channels == profile.channels:
        return magnitude
    left, right = tf.split(stft, 2, axis)
    return tf.concat([magnitude, tf.abs(left - right) / 2], axis)
