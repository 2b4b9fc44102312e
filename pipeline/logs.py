"""Logging of a run: everything in a file, only what a user can act on in the terminal."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# The runner reports how a run ends; what these libraries log about it on the way (and their
# warnings about their own insides) is for the file.
_CHATTY = ("absl", "apache_beam", "tensorflow", "tensorflow_data_validation", "tfx", "py.warnings", "h5py", "google")


@contextmanager
def logged_to(folder: str) -> Iterator[str]:
    """Send log records to a new file in a folder while the block runs.

    Args:
        folder: made where it is missing.

    Yields:
        The file's path. Our own warnings, and those of libraries that warn rarely, also go to stderr.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, time.strftime("%Y%m%d-%H%M%S.log"))
    file = logging.FileHandler(path, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("umx-pro: %(levelname)s: %(message)s"))
    terminal.addFilter(lambda record: record.name.split(".")[0] not in _CHATTY)

    root = logging.getLogger()
    kept_handlers, kept_level = root.handlers, root.level
    loggers = [logging.getLogger(name) for name in _CHATTY]
    kept = [(logger, logger.handlers, logger.level) for logger in loggers]
    root.handlers = [file, terminal]
    root.setLevel(logging.INFO)
    for logger in loggers:
        logger.handlers = []  # some of them print on their own besides
        logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield path
    finally:
        logging.captureWarnings(False)
        root.handlers = kept_handlers
        root.setLevel(kept_level)
        for logger, handlers, level in kept:
            logger.handlers = handlers
            logger.setLevel(level)
        file.close()
