"""Excerpts to magnitudes, and how far estimates are from them."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


def magnitudes(excerpts: tf.Tensor, stft: keras.layers.Layer) -> tuple[tf.Tensor, tf.Tensor]:
    """Transform excerpts and their mixture, the sum of their targets.

    One transform serves all: the mixture's spectrum is the sum of the targets' spectra.

    Args:
        excerpts: waveforms float32 `[batch, samples, channels, targets]`.
        stft: the `STFTLayer`.

    Returns:
        Magnitudes of the mixture `[batch, frames, bins, channels]` and of the targets
        `[batch, frames, bins, channels, targets]`, float32.
    """
    channels, targets = excerpts.shape[2:]
    batch, samples = tf.shape(excerpts)[0], tf.shape(excerpts)[1]
    spectra = stft(tf.reshape(excerpts, [batch, samples, channels * targets]))
    frames, bins = tf.shape(spectra)[1], spectra.shape[2]
    spectra = tf.reshape(spectra, [batch, frames, bins, channels, targets])
    return tf.abs(tf.reduce_sum(spectra, axis=-1)), tf.abs(spectra)


def squared_error(estimates: tf.Tensor, references: tf.Tensor) -> tf.Tensor:
    """Squared error per target, summed over batch and frames, averaged over bins and channels.

    Divided by the number of frames it is the recipe's mean squared error of magnitudes; the division is
    the caller's, who knows the frames on all devices (training) or in all pieces (validation).

    Args:
        estimates: magnitudes `[batch, frames, bins, channels, targets]`.
        references: the same of the true targets.

    Returns:
        float64 `[targets]`: a float32 sum over so many numbers would be off by percents.
    """
    bins, channels = references.shape[2:4]
    per_frame = tf.reduce_sum(tf.math.squared_difference(estimates, references), axis=2)
    return tf.reduce_sum(tf.cast(per_frame, tf.float64), axis=[0, 1, 2]) / (bins * channels)


def add_weight_decay(
    gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable], factor: float
) -> list[tf.Tensor]:
    """Add the gradient of `factor / 2 * |w|^2`: L2 coupled with the optimizer.

    This is `weight_decay` of `torch.optim.Adam`. That of Keras optimizers is decoupled: it bypasses
    Adam's normalisation and so is another method.
    """
    return [
        gradient + factor * tf.convert_to_tensor(variable)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]
