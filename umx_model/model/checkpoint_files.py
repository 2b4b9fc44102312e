"""Folders of TensorFlow checkpoints: each of them whole or not there, and what is damaged found out when it is read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from umx_model.data.remote import is_remote
from umx_model.errors import InputError

PARTIAL = ".partial"

_INDEX = re.compile(r"((?:epoch-(\d+)-)?step-(\d+))\.index$")
_FILE = re.compile(r"\.(index|data-\d+-of-\d+)$")
# Errors that say nothing about what a checkpoint holds.
_OUT_OF_REACH = (
    InputError,
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnauthenticatedError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.ResourceExhaustedError,
)


class DamagedError(Exception):
    """A checkpoint cannot be read."""


@contextmanager
def damage() -> Iterator[None]:
    """Raise DamagedError where what is read turns out to be damaged; not where it cannot be reached."""
    try:
        yield
    except _OUT_OF_REACH:
        raise
    except (tf.errors.OpError, ValueError, LookupError, AssertionError, TypeError) as error:
        lines = re.sub(r"^\{\{.*?\}\} ", "", str(getattr(error, "message", error)).strip()).splitlines()
        raise DamagedError(lines[0] if lines else type(error).__name__) from None


def list_checkpoints(folder: str) -> list[str]:
    """List the path prefixes of a folder's checkpoints, the newest first.

    By their names: TensorFlow's own list, the file `checkpoint`, may be damaged or missing.
    """
    try:
        names = tf.io.gfile.listdir(folder)
    except tf.errors.NotFoundError:
        return []
    matches = [match for name in names if (match := _INDEX.match(name))]
    matches.sort(key=lambda match: (int(match[3]), int(match[2] or -1)), reverse=True)
    return [os.path.join(folder, match[1]) for match in matches]


def write(checkpoint: tf.train.Checkpoint, folder: str, name: str, keep: int) -> str:
    """Write a checkpoint, whole or not at all, and remove what it replaces.

    Args:
        checkpoint: what to write.
        folder: where.
        name: of the checkpoint.
        keep: how many to keep, this one among them. Those of later steps, from which training went
            back to an earlier one, are not.

    Returns:
        The path prefix.
    """
    partial = os.path.join(folder, PARTIAL)
    tf.io.gfile.makedirs(partial)
    try:
        checkpoint.write(os.path.join(partial, name))
        _remove(os.path.join(folder, name))
        # The index comes last in the alphabet: with it, the checkpoint can be seen.
        for file in sorted(tf.io.gfile.listdir(partial)):
            if file.startswith(f"{name}."):
                _reach_disk(os.path.join(partial, file))
                tf.io.gfile.rename(os.path.join(partial, file), os.path.join(folder, file), overwrite=True)
    finally:
        tf.io.gfile.rmtree(partial)
    prefix = os.path.join(folder, name)
    with tf.io.gfile.GFile(os.path.join(folder, "checkpoint.partial"), "w") as file:
        file.write(f'model_checkpoint_path: "{name}"\n')  # for TensorFlow's own tools
    tf.io.gfile.rename(os.path.join(folder, "checkpoint.partial"), os.path.join(folder, "checkpoint"), overwrite=True)
    prefixes = list_checkpoints(folder)
    place = prefixes.index(prefix)
    kept = {os.path.basename(path) for path in prefixes[place : place + keep]}
    # Also what a process left that was killed between an index and its data.
    others = {file.rpartition(".")[0] for file in tf.io.gfile.listdir(folder) if _FILE.search(file)} - kept
    for other in sorted(others):
        _remove(os.path.join(folder, other))
    return prefix


def _remove(prefix: str) -> None:
    """Remove a checkpoint, the index first, without which the rest is not seen."""
    folder, name = os.path.split(prefix)
    files = [file for file in tf.io.gfile.listdir(folder) if file.startswith((f"{name}.index", f"{name}.data-"))]
    for file in sorted(files, reverse=True):
        tf.io.gfile.remove(os.path.join(folder, file))


def _reach_disk(path: str) -> None:
    """Wait until a file is where a power cut does not take it from."""
    if not is_remote(path):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
