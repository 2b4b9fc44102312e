"""What is in the folders of a database: as the file system lists it, or, at web servers, as `files.txt` does."""

from __future__ import annotations

import functools
import os

import tensorflow as tf

from umx_model.data.remote import is_web
from umx_model.errors import InputError

LISTING = "files.txt"


def is_folder(root: str, *below: str) -> bool:
    """Tell whether a database holds a folder.

    Raises:
        InputError: the database is at a web server that has no `files.txt`.
    """
    return bool(names(root, *below)) if is_web(root) else tf.io.gfile.isdir(os.path.join(root, *below))


def names(root: str, *below: str) -> list[str]:
    """Return the names in a folder of a database, sorted, without hidden ones.

    Raises:
        InputError: the database is at a web server that has no `files.txt`.
    """
    if is_web(root):
        found = set(_listed(root).get(below, ()))
    else:
        # Object stores end folders with a slash.
        found = {entry.rstrip("/") for entry in tf.io.gfile.listdir(os.path.join(root, *below))}
    return sorted(entry for entry in found if not entry.startswith("."))


def files(root: str, *below: str) -> list[str]:
    """Return the paths of all files in and below a folder of a database, without hidden ones.

    Raises:
        InputError: the database is at a web server that has no `files.txt`.
    """
    if is_web(root):
        listed = _listed(root)
        places = [folder for folder in listed if folder[: len(below)] == below]
        return [
            os.path.join(root, *place, name)
            for place in places
            for name in names(root, *place)
            if (*place, name) not in listed
        ]
    found = tf.io.gfile.walk(os.path.join(root, *below))
    return [os.path.join(folder, file) for folder, _, within in found for file in within if not file.startswith(".")]


@functools.lru_cache(maxsize=8)
def _listed(root: str) -> dict[tuple[str, ...], list[str]]:
    """Read which paths a web server holds: names by folder, given as its parts below the root."""
    try:
        with tf.io.gfile.GFile(os.path.join(root, LISTING), "r") as file:
            lines = file.read().splitlines()
    except tf.errors.OpError as error:
        raise InputError(
            f"{root}: web servers list no folders, and {LISTING} cannot be read there ({error.message}); "
            f"make it in the database's folder with `find train valid -type f > {LISTING}`"
        ) from None
    folders: dict[tuple[str, ...], dict[str, None]] = {}
    for line in lines:
        parts = tuple(part for part in line.strip().split("/") if part not in ("", "."))
        for depth, name in enumerate(parts):
            folders.setdefault(parts[:depth], {})[name] = None
    return {folder: list(found) for folder, found in folders.items()}
