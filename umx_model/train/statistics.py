"""What training mixtures look like, to standardise the network's input with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.model.stft import STFTLayer
from umx_model.profile import Profile
from umx_model.progress import ProgressBar
from umx_model.train.batches import excerpt_length, piece_batches, readable
from umx_model.train.losses import magnitudes

# Of excerpt length: seven hours of music at the default of 6 s.
MAX_PIECES = 4096
_BATCH = 8


def input_statistics(
    profile: Profile, samples: Sequence[Sample], valid: Sequence[Sample] = (), quiet: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and standard deviation of the mixtures' magnitudes per bin.

    As in Open-Unmix (`get_statistics` in `scripts/train.py`, v1.3.0): over all frames of whole,
    unaugmented samples, of the magnitudes averaged over channels, the deviation floored at 1e-4 of
    the largest. Samples beyond `MAX_PIECES` excerpt lengths are left out, evenly over the database.

    Args:
        profile: of the model and its training.
        samples: the training samples.
        valid: samples that are read too, not measured, so that a damaged file is found now.
        quiet: show no progress bar.

    Returns:
        Mean and standard deviation, float64 `[bins]` each.

    Raises:
        InputError: a file cannot be read, or all mixtures are silent.
    """
    stft = STFTLayer(profile.model.n_fft, profile.model.hop_length, center=False)
    chosen = _spread(samples, excerpt_length(profile))
    batches = piece_batches(profile, chosen, _BATCH)

    @tf.function(input_signature=[batches.element_spec], autograph=False)
    def moments(pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mixture, _ = magnitudes(tf.reduce_sum(pieces, axis=-1, keepdims=True), stft)
        level = tf.cast(tf.reduce_mean(mixture, axis=-1), tf.float64)  # [batch, frames, bins]
        frames = tf.size(level[..., 0], out_type=tf.int64)
        return frames, tf.reduce_sum(level, axis=[0, 1]), tf.reduce_sum(tf.square(level), axis=[0, 1])

    frames, total, squares = 0, np.zeros(profile.model.bins), np.zeros(profile.model.bins)
    seconds = sum(sample.length for sample in (*chosen, *valid)) / profile.model.sample_rate
    with ProgressBar("measuring the music", total=seconds, unit="s", quiet=quiet) as bar:
        for pieces in readable(batches):
            batch_frames, batch_total, batch_squares = moments(pieces)
            frames += int(batch_frames)
            total += batch_total.numpy()
            squares += batch_squares.numpy()
            bar.advance(pieces.shape[0] * pieces.shape[1] / profile.model.sample_rate)
        for pieces in readable(piece_batches(profile, valid, _BATCH)) if valid else ():
            bar.advance(pieces.shape[0] * pieces.shape[1] / profile.model.sample_rate)
    mean = total / frames
    std = np.sqrt(np.maximum(squares / frames - mean**2, 0))
    if std.max() == 0:
        raise InputError("training samples: all mixtures are silent; there is nothing to learn from them")
    return mean, np.maximum(std, 1e-4 * std.max())


def _spread(samples: Sequence[Sample], piece: int) -> list[Sample]:
    """Choose samples at even distances that hold about `MAX_PIECES` pieces."""
    pieces = sum(-(-sample.length // piece) for sample in samples)
    count = max(1, min(len(samples), len(samples) * MAX_PIECES // pieces))
    return [samples[index * len(samples) // count] for index in range(count)]
