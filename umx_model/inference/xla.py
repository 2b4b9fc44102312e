"""Starting XLA without the lines that it prints."""

from __future__ import annotations

import functools
import os

import tensorflow as tf


@functools.cache
def start_xla() -> None:
    """Compile something small while nobody hears stderr, once per process.

    At its first compilation XLA prints what it runs on, and that it compiles: through a logging library that
    TensorFlow does not initialize, so that no log level applies to it.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # there is none
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.zeros([]))
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
