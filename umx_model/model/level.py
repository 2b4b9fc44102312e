"""How loud a mixture is, so that what a network sees of it need not depend on that."""

from __future__ import annotations

import tensorflow as tf


def level(magnitude: tf.Tensor) -> tf.Tensor:
    """Return how loud mixtures are: their magnitudes' mean, weighted with the magnitudes themselves.

    Pauses and empty bins have no part in it, so that it does not depend on how much of them there is.

    Args:
        magnitude: `[batch, frames, ...]`, float32, of at least rank 3.

    Returns:
        `[batch, 1, ...]`, positive.
    """
    axes = list(range(1, len(magnitude.shape)))
    total = tf.reduce_sum(magnitude, axis=axes, keepdims=True)
    return tf.maximum(tf.reduce_sum(tf.square(magnitude), axis=axes, keepdims=True), 1e-20) / tf.maximum(total, 1e-10)
