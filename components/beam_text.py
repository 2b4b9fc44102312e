"""Small results of a Beam job, handed back to the process that started it."""

import logging
from collections.abc import Sequence

import apache_beam as beam
import tensorflow as tf

_log = logging.getLogger(__name__)


def write_lines(prefix: str) -> beam.PTransform:
    """Return a transform that writes one line per element: text without line breaks."""
    return beam.io.WriteToText(prefix)


def read_lines(prefix: str) -> list[str]:
    """Read what `write_lines` wrote, sorted: Beam keeps no order.

    Raises:
        FileNotFoundError: nothing was written, not even that there was nothing to write.
    """
    paths = tf.io.gfile.glob(prefix + "-*")
    if not paths:
        raise FileNotFoundError(f"{prefix}: Beam has written no such files")
    lines: list[str] = []
    for path in paths:
        with tf.io.gfile.GFile(path) as file:
            lines += file.read().splitlines()
    return sorted(lines)


def failure(name: str, error: Exception) -> str:
    """Say in one line what went wrong with an element, and in the log where.

    To be called in a DoFn that hands the line on instead of raising: of an exception, Beam prints the
    traceback to the terminal and wraps the message in its own words.
    """
    _log.info("%s failed", name, exc_info=error)
    return " ".join(f"{name}: {type(error).__name__}: {error}".split())


def raise_failures(lines: Sequence[str]) -> None:
    """Raise what `failure` said about elements, if it said anything.

    Raises:
        RuntimeError: the first line, and how many more there are.
    """
    if lines:
        raise RuntimeError(lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""))
