"""Excerpts to spectra, and how far estimates are from them: Open-Unmix's loss, and those of X-UMX."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

_EPSILON = 1e-10


def spectra(excerpts: tf.Tensor, stft: keras.layers.Layer) -> tuple[tf.Tensor, tf.Tensor]:
    """Transform excerpts and their mixture, the sum of their targets.

    One transform serves all: the mixture's spectrum is the sum of the targets' spectra.

    Args:
        excerpts: waveforms float32 `[batch, samples, channels, targets]`.
        stft: the `STFTLayer`.

    Returns:
        Spectra of the mixture `[batch, frames, bins, channels]` and of the targets
        `[batch, frames, bins, channels, targets]`, complex64.
    """
    channels, targets = excerpts.shape[2:]
    batch, samples = tf.shape(excerpts)[0], tf.shape(excerpts)[1]
    references = stft(tf.reshape(excerpts, [batch, samples, channels * targets]))
    frames, bins = tf.shape(references)[1], references.shape[2]
    references = tf.reshape(references, [batch, frames, bins, channels, targets])
    return tf.reduce_sum(references, axis=-1), references


def magnitudes(excerpts: tf.Tensor, stft: keras.layers.Layer) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the magnitudes of `spectra`, float32."""
    mixture, references = spectra(excerpts, stft)
    return tf.abs(mixture), tf.abs(references)


def phases(spectrum: tf.Tensor) -> tf.Tensor:
    """Return a complex64 spectrum divided by its magnitude; zero where it is zero."""
    # A product with the reciprocal: TensorFlow's division of complex numbers is slow.
    return spectrum * tf.cast(tf.math.reciprocal(tf.maximum(tf.abs(spectrum), _EPSILON)), tf.complex64)


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


def decibel_error(estimates: tf.Tensor, references: tf.Tensor, mixture: tf.Tensor, floor_db: float) -> tf.Tensor:
    """Squared error of each excerpt in dB, so that a quiet excerpt or a silent target counts as a loud one does.

    This is the loss of Wisdom et al., "Unsupervised Sound Separation Using Mixture Invariant Training", 2020:
    `10 log10(|s - e|^2 / |x|^2 + t)`, where `t` is the floor as a ratio. Nothing is won by what lies below the
    floor; where the target is silent, it asks for an estimate that is. The error is that of complex spectra, the
    estimate having the mixture's phase (Erdogan et al., "Phase-Sensitive and Recognition-Boosted Speech Separation
    Using Deep Recurrent Neural Networks", 2015), and so very nearly that of what will be heard.

    Args:
        estimates: magnitudes `[batch, frames, bins, channels, targets]`.
        references: spectra of the true targets, complex64 of the same shape.
        mixture: spectra `[batch, frames, bins, channels]`, complex64.
        floor_db: relative to the mixture.

    Returns:
        float32 `[batch, targets]`, dB relative to the mixture.
    """
    turned = references * tf.math.conj(phases(mixture))[..., tf.newaxis]
    # |s - e u|^2 = (e - Re s u*)^2 + (Im s u*)^2, where u is the phase; the last one depends on no estimate.
    error = tf.reduce_mean(tf.math.squared_difference(estimates, tf.math.real(turned)), axis=[1, 2, 3])
    error += tf.reduce_mean(tf.square(tf.math.imag(turned)), axis=[1, 2, 3])
    energy = tf.reduce_mean(tf.square(tf.abs(mixture)), axis=[1, 2, 3])[:, tf.newaxis]
    ratio = error / tf.maximum(energy, _EPSILON) + 10 ** (floor_db / 10)
    return 10 / np.log(10) * tf.math.log(ratio)


def wiener_filtered(estimates: tf.Tensor, mixture: tf.Tensor) -> tf.Tensor:
    """Share the mixture out in proportion to the power of the estimates: EM's first step, each channel on its own.

    Args:
        estimates: magnitudes `[batch, frames, bins, channels, targets]`.
        mixture: magnitudes `[batch, frames, bins, channels]`.

    Returns:
        magnitudes `[batch, frames, bins, channels, targets]`; their sum is the mixture, where there is any estimate.
    """
    power = tf.square(estimates)
    return power * (mixture / (tf.reduce_sum(power, axis=-1) + _EPSILON))[..., tf.newaxis]


def source_combinations(targets: int) -> np.ndarray:
    """Return all combinations of 1 to N - 1 of N targets (X-UMX's combination scheme; of one target, itself).

    Returns:
        float32 `[combinations, targets]`, one where a target takes part, else zero; 14 combinations for N = 4.
    """
    sizes = range(1, max(targets, 2))
    chosen = [which for size in sizes for which in itertools.combinations(range(targets), size)]
    return np.array([[target in which for target in range(targets)] for which in chosen], np.float32)


def combination_error(estimates: tf.Tensor, references: tf.Tensor, combinations: np.ndarray) -> tf.Tensor:
    """Squared error of sums of magnitudes: summed over batch and frames, averaged over bins, channels, combinations.

    Divided by the number of frames it is the frequency-domain loss of X-UMX (Sawata et al., 2021;
    `freq_domain_loss` in asteroid's `egs/musdb18/X-UMX/train.py`): the mean, over combinations, of the mean
    squared error between the sum of the estimated and the sum of the true magnitudes. The square of a sum
    is a sum of products, so the products of the targets' errors serve all combinations.

    Args:
        estimates: magnitudes `[batch, frames, bins, channels, targets]`.
        references: the same of the true targets.
        combinations: see `source_combinations`.

    Returns:
        float64 scalar.
    """
    bins, channels, targets = references.shape[2:]
    batch, frames = tf.shape(references)[0], tf.shape(references)[1]
    errors = tf.reshape(estimates - references, [batch, frames, bins * channels, targets])
    products = tf.cast(tf.matmul(errors, errors, transpose_a=True), tf.float64)  # [batch, frames, targets, targets]
    products = tf.reduce_sum(products, axis=[0, 1]) / (bins * channels)
    # The mean of c^T products c over combinations c.
    weights = combinations.T @ combinations / len(combinations)
    return tf.reduce_sum(products * tf.cast(weights, tf.float64))


def weighted_sdr(
    estimates: tf.Tensor, references: tf.Tensor, mixture: tf.Tensor, combinations: np.ndarray
) -> tf.Tensor:
    """One plus the weighted SDR loss of each excerpt, averaged over channels and combinations.

    For the sum s of a combination's waveforms, its estimate e and the mixture x it is (Choi et al., 2019)

        1 - a cos(e, s) - (1 - a) cos(x - e, x - s),   a = |s|^2 / (|s|^2 + |x - s|^2),

    between 0 (perfect) and 2; cos(u, v) is the inner product over time over both norms. Averaged over
    the batch it is the time-domain loss of X-UMX (`time_domain_loss` in asteroid's
    `egs/musdb18/X-UMX/train.py`), with its epsilons. Silence anywhere gives finite values and gradients.

    Args:
        estimates: waveforms `[batch, samples, channels, targets]`.
        references: the same of the true targets.
        mixture: waveforms `[batch, samples, channels]`.
        combinations: see `source_combinations`.

    Returns:
        float32 `[batch]`.
    """
    targets = references.shape[-1]
    # All inner products of the sums are sums of those between the mixture, the references and the estimates.
    signals = tf.concat([mixture[..., tf.newaxis], references, estimates], axis=-1)
    signals = tf.transpose(signals, [0, 2, 3, 1])  # [batch, channels, 1 + 2 * targets, samples]
    products = tf.matmul(signals, signals, transpose_b=True)
    silent = np.zeros_like(combinations)
    of_mixture = np.ones([len(combinations), 1], np.float32)
    s = np.concatenate([0 * of_mixture, combinations, silent], axis=1)
    e = np.concatenate([0 * of_mixture, silent, combinations], axis=1)
    x = np.concatenate([of_mixture, np.zeros([len(combinations), 2 * targets], np.float32)], axis=1)

    def inner(u: np.ndarray, v: np.ndarray) -> tf.Tensor:
        return tf.einsum("ki,bcij,kj->bck", u, products, v)

    def energy(u: np.ndarray) -> tf.Tensor:
        return tf.nn.relu(inner(u, u))  # rounding may leave less than nothing

    def cosine(u: np.ndarray, v: np.ndarray) -> tf.Tensor:
        norms = tf.sqrt(_EPSILON + energy(u)) * tf.sqrt(_EPSILON + energy(v))
        return inner(u, v) / (norms + _EPSILON)

    weight = energy(s) / (energy(s) + energy(x - s) + _EPSILON)
    losses = 1.0 - weight * cosine(e, s) - (1.0 - weight) * cosine(x - e, x - s)
    return tf.reduce_mean(losses, axis=[1, 2])


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
