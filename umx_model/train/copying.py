"""Copying model folders file by file, in an order in which the copy can be used at any moment."""

from __future__ import annotations

import contextlib
import os
import re

import tensorflow as tf

from umx_model.data.remote import file_size, is_remote, read_range
from umx_model.model.checkpoint_files import list_checkpoints
from umx_model.model.folder import BEST, CHECKPOINTS
from umx_model.profile import FILE_NAME

STATE = "checkpoint"  # TensorFlow's name of the file that names the checkpoints of a folder

_PIECE = 2**24  # bytes of a remote file that are fetched at a time
_UNWANTED = re.compile(r"(^|/)\.|\.partial(/|$)|\.tempstate|_temp/|/$")


def newest_step(folder: str) -> int | None:
    """Return the step of the newest checkpoint in a model folder; None where there is none."""
    found = list_checkpoints(os.path.join(folder, CHECKPOINTS))
    return int(found[0].rpartition("-")[2]) if found else None


def list_files(folder: str) -> list[str]:
    """Return the names of all files in a folder and those below it, without hidden and half-written ones.

    A folder that is not there is empty. Each file comes after what it speaks of: the best weights, the
    checkpoints (data before the index, by which they are found), TensorFlow's files that name them, the
    rest, `profile.json`.
    """
    names = []
    for place, _, files in tf.io.gfile.walk(folder):
        names += [os.path.join(place, file)[len(folder) :].lstrip("/") for file in files]
    return sorted((name for name in names if name and not _UNWANTED.search(name)), key=_rank)


def _rank(name: str) -> tuple[int, str]:
    folder, file = os.path.split(name)
    if file == STATE:
        return (1 if os.path.basename(folder) == BEST else 2), name
    if folder.split("/")[0] == CHECKPOINTS:
        return 0, name
    return (4 if name == FILE_NAME else 3), name


def copy_file(source: str, target: str, size: int) -> None:
    """Copy a file of at least `size` bytes, which appears whole or not at all.

    Raises:
        OSError: less arrived, or the local disk is full.
        tf.errors.OpError: any other failure.
    """
    if is_remote(target):  # objects do, and to rename one means to copy it again
        tf.io.gfile.copy(source, target, overwrite=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _fetch(source, target + ".partial")
        os.replace(target + ".partial", target)
    copied = tf.io.gfile.stat(target).length
    if copied < size:
        raise OSError(f"{target}: {copied} bytes arrived of {size}")


def _fetch(source: str, target: str) -> None:
    """Copy a file to a local place; a remote one in large pieces, as TensorFlow would make many small requests."""
    if not is_remote(source):
        tf.io.gfile.copy(source, target, overwrite=True)
        return
    with open(target, "wb") as file:
        size = file_size(source)
        for start in range(0, size, _PIECE):
            file.write(read_range(source, start, min(_PIECE, size - start)))


def remove_file(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(path)


def probe(folder: str) -> None:
    """Raise what keeps a folder from being written to."""
    if not is_remote(folder):  # buckets have no folders, and TensorFlow looks for ever for those of a missing one
        tf.io.gfile.makedirs(folder)
    path = os.path.join(folder, ".writable")
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("")
    tf.io.gfile.remove(path)
