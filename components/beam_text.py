"""Small results of a Beam job, handed back to the process that started it."""

import apache_beam as beam
import tensorflow as tf


def write_lines(prefix: str) -> beam.PTransform:
    """Return a transform that writes one line per element: text without line breaks."""
    return beam.io.WriteToText(prefix)


def read_lines(prefix: str) -> list[str]:
    """Read what `write_lines` wrote, sorted: Beam keeps no order."""
    lines: list[str] = []
    for path in tf.io.gfile.glob(prefix + "-*"):
        with tf.io.gfile.GFile(path) as file:
            lines += file.read().splitlines()
    return sorted(lines)
