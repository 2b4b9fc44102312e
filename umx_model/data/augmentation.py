"""Random draws for training excerpts; `umx_model/data/pieces.py` applies them while it reads.

Open-Unmix's augmentation (`openunmix/data.py`, v1.3.0): each target of an excerpt may come from an
independent sample and start, is scaled by a uniform gain, and has its left and right channels swapped at
random; the mixture is their sum. A target may also be played faster or slower, as by a tape, which
changes its pitch: with little singing to learn from, it makes other voices of it. Or it may be left out
altogether. All draws are stateless: those of excerpt number i depend on the seed and i alone, so neither
parallel reading nor resuming changes an excerpt.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Philox gives the same numbers on every device; the default depends on it.
_ALGORITHM = "philox"


class Draw(NamedTuple):
    """What was drawn for one excerpt, a value per target.

    Attributes:
        samples: int64 `[targets]`, index of the sample that the target is taken from.
        starts: int64 `[targets]`, its first sample in the excerpt.
        gains: float32 `[targets]`.
        swaps: bool `[targets]`, whether left and right change places.
        speeds: float32 `[targets]`, seconds of the sample in a second of the excerpt.
    """

    samples: tf.Tensor
    starts: tf.Tensor
    gains: tf.Tensor
    swaps: tf.Tensor
    speeds: tf.Tensor


def sample_order(seed: int, samples: int, sequences: int, first_excerpt: int = 0) -> tf.data.Dataset:
    """Say from which samples each excerpt is taken.

    The database is gone through in rounds: `samples` excerpts in a row take each sample once, in a
    random order that differs from round to round and from sequence to sequence.

    Args:
        seed: of the orders.
        samples: how many there are.
        sequences: independent orders: one per target, or one for all.
        first_excerpt: number to start from.

    Returns:
        An endless dataset of the excerpt's number, int64 scalar, and indices of samples, int64 `[sequences]`.
    """

    def one_round(number: tf.Tensor) -> tf.data.Dataset:
        keys = tf.random.stateless_uniform(
            [sequences, samples], tf.random.fold_in(tf.constant([seed, 0], tf.int64), number), alg=_ALGORITHM
        )
        order = tf.cast(tf.argsort(keys, axis=-1, stable=True), tf.int64)
        return tf.data.Dataset.from_tensor_slices(
            (number * samples + tf.range(samples, dtype=tf.int64), tf.transpose(order))
        )

    first_round, done = divmod(first_excerpt, samples)
    rounds = tf.data.Dataset.range(first_round, np.iinfo(np.int64).max // samples)
    return rounds.flat_map(one_round).skip(done)


def draw(
    number: tf.Tensor,
    samples: tf.Tensor,
    seed: int,
    lengths: tf.Tensor,
    excerpt_samples: int,
    targets: int,
    gain_range: tuple[float, float] | None,
    swap_channels: float,
    speed_range: tuple[float, float] | None = None,
    silent_targets: float = 0.0,
) -> Draw:
    """Draw an excerpt.

    Args:
        number: int64 scalar, which excerpt of the endless sequence.
        samples: int64 `[targets]`, from which sample each target is taken, with a start and a speed of
            its own; or `[1]`, one sample, start and speed for all targets.
        seed: of the sequence.
        lengths: int64 `[samples]`, length of each sample, at least `excerpt_samples` at the highest speed.
        excerpt_samples: length of an excerpt.
        targets: how many there are.
        gain_range: lowest and highest gain; None for gains of 1.
        swap_channels: probability of a swap.
        speed_range: lowest and highest speed, between which its logarithm is uniform; None for 1.
        silent_targets: probability that a target's gain is 0.
    """
    seeds = tf.random.split(tf.random.fold_in(tf.constant([seed, 1], tf.int64), number), 3)
    speeds = tf.ones(tf.shape(samples))
    if speed_range is not None:
        low, high = np.log(speed_range[0]), np.log(speed_range[1])
        key = tf.random.fold_in(tf.constant([seed, 2], tf.int64), number)
        speeds = tf.exp(tf.random.stateless_uniform(tf.shape(samples), key, low, high, alg=_ALGORITHM))
    positions = tf.random.stateless_uniform(tf.shape(samples), seeds[0], dtype=tf.float64, alg=_ALGORITHM)
    played = tf.cast(tf.math.ceil(tf.cast(speeds, tf.float64) * excerpt_samples), tf.int64)
    # A speed is a float32, and the highest may be a hair above what samples were checked for.
    choices = tf.maximum(tf.gather(lengths, samples) - played + 1, 1)
    starts = tf.minimum(tf.cast(positions * tf.cast(choices, tf.float64), tf.int64), choices - 1)

    low, high = gain_range if gain_range is not None else (1.0, 1.0)
    gains = tf.random.stateless_uniform([targets], seeds[1], low, high, alg=_ALGORITHM)
    if silent_targets:
        key = tf.random.fold_in(tf.constant([seed, 3], tf.int64), number)
        gains *= tf.cast(tf.random.stateless_uniform([targets], key, alg=_ALGORITHM) >= silent_targets, tf.float32)
    swaps = tf.random.stateless_uniform([targets], seeds[2], alg=_ALGORITHM) < swap_channels
    samples, starts, speeds = (tf.broadcast_to(values, [targets]) for values in (samples, starts, speeds))
    return Draw(samples, starts, gains, swaps, speeds)


def unchanged(sample: tf.Tensor, start: tf.Tensor, targets: int) -> Draw:
    """Return what takes all targets from one place, int64 scalars, and leaves them as they are."""
    ones = tf.ones([targets])
    return Draw(tf.fill([targets], sample), tf.fill([targets], start), ones, tf.zeros([targets], tf.bool), ones)
