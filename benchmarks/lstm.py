"""Time of the fused LSTM against Keras' own: bidirectional, forward alone and with the gradient.

    python -m benchmarks.lstm [--units 256] [--batch 16] [--frames 255] [--repeat 5]

Prints the median seconds of each and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import umx_model  # noqa: F401  (sets TensorFlow up as the package uses it)

import keras  # isort: skip
import tensorflow as tf  # isort: skip
from umx_model.model.recurrent import LSTM


def seconds(function: Callable[[], object], repeat: int) -> float:
    """Median time of a call after the first, which traces."""
    function()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=256, help="per direction")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=255)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    features = 2 * options.units
    frames_first = tf.random.normal([options.frames, options.batch, features])
    batch_first = tf.transpose(frames_first, [1, 0, 2])

    ours = [LSTM(options.units), LSTM(options.units, reverse=True)]
    keras_lstm = keras.layers.LSTM(options.units, return_sequences=True)
    theirs = keras.layers.Bidirectional(keras_lstm)
    candidates: list[tuple[str, Callable[[], tf.Tensor], list[keras.layers.Layer]]] = [
        ("fused", lambda: tf.concat([layer(frames_first) for layer in ours], axis=-1), ours),
        ("keras", lambda: theirs(batch_first), [theirs]),
    ]
    print(f"{options.frames} frames, batch {options.batch}, 2 x {options.units} units, {features} features")
    for what in ("forward", "forward and gradient"):
        medians = []
        for _, run, layers in candidates:
            run()
            variables = [variable.value for layer in layers for variable in layer.trainable_variables]

            def both(run: Callable[[], tf.Tensor] = run, variables: list[tf.Variable] = variables) -> list[tf.Tensor]:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(tf.square(run()))
                return tape.gradient(loss, variables)

            medians.append(seconds(tf.function(run if what == "forward" else both), options.repeat))
        print(f"{what:22}  fused {medians[0]:.3f} s, Keras {medians[1]:.3f} s, ratio {medians[1] / medians[0]:.1f}")


if __name__ == "__main__":
    main()
