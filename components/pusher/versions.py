"""Versions of the served model: numbered folders of which the newest is served.

    <destination>/
        1/ 2/ 3/                  versions, numbered as TensorFlow Serving expects; the highest is served
            saved_model.pb ...    the end-to-end SavedModel
            profile.json          with the weights a model folder, for `load_separator`
            model.weights.h5
            card.md               what the model is, for people
            lineage.json          where it comes from, for programs
        partial-4-1f2e3d4c/       a version that is being written, or was when its writer was killed

A version is complete once it has its `saved_model.pb`, and what reads versions here takes complete
ones only. On a file system a version appears by one rename. A bucket has no folders to rename: all
files are first written under a name that is no number, then moved one by one on the server's side,
`saved_model.pb` last. For that moment TensorFlow Serving may see a number that it cannot load; it goes on
with the version that it has and tries again (`--max_num_load_retries`, 5, every minute). Removal is the
other way round. Only folders with a `lineage.json`, which were pushed from here, are ever removed.
"""

from __future__ import annotations

import datetime
import json
import os
import posixpath
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from umx_model.data.remote import is_remote
from umx_model.errors import InputError

LINEAGE = "lineage.json"
CARD = "card.md"
_COMPLETE = "saved_model.pb"
_PARTIAL = re.compile(r"partial-(\d+)-[0-9a-f]{8}")


def list_versions(destination: str) -> list[str]:
    """Return the folders of complete versions, oldest first; of a missing destination none."""
    return [folder for folder in _numbered(destination) if _is_complete(folder)]


def current_version(destination: str) -> str | None:
    """Return the folder of the newest complete version, which is what servers load; None where there is none."""
    return next((folder for folder in reversed(_numbered(destination)) if _is_complete(folder)), None)


def find_version(destination: str, version: str) -> str:
    """Return the folder of a complete version.

    Args:
        destination: folder of versions.
        version: its number.

    Raises:
        InputError: there is no such version.
    """
    versions = list_versions(destination)
    for folder in versions:
        if number(folder) == version.strip("/"):
            return folder
    known = ", ".join(map(number, versions)) or "none"
    raise InputError(f"{destination}: has no version {version}; there: {known}")


def number(version: str) -> str:
    """Return the number of a version's folder."""
    return os.path.basename(version.rstrip("/"))


def read_lineage(version: str) -> dict[str, Any]:
    """Read where a version comes from.

    Args:
        version: its folder.

    Returns:
        What `lineage.json` holds; nothing where there is none, as in what was not pushed from here:

        weights_sha256: of `model.weights.h5`.
        model: URI of the model folder that was pushed.
        data_fingerprint: of the database that it was trained on.
        started_from: the version whose weights training started from; null for random ones.
        evaluation: URI of the evaluation that it passed.
        scores: SDR in dB per target.
        verdict: why it was pushed, in sentences.
        baseline_version, baseline_weights_sha256: what it was compared with; null where nothing was served.
        niter, softmask: as evaluated and as served.
        exported_by: of the code that wrote the SavedModel.
        time: when it was pushed, UTC.
        rolled_back_from: number of the version that this one restored; null for others.
        pushed_as: number that a run first pushed what was restored as; null for others.
        withdrawn: models that rollbacks took out of service: weights_sha256, version and time of each.

    Raises:
        InputError: it is damaged.
    """
    path = os.path.join(version, LINEAGE)
    try:
        with tf.io.gfile.GFile(path) as file:
            found = json.loads(file.read())
    except tf.errors.NotFoundError:
        return {}
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); restore it, or remove the version"
        ) from None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: expected names and values, found {type(found).__name__}; restore it, or remove the version"
        )
    return found


def served_weights(version: str | None) -> str:
    """Return what tells the weights of a version from others.

    Args:
        version: its folder; None where nothing is served.

    Returns:
        Their SHA-256; where the version does not say, `unknown` and its number; empty where nothing is served.
    """
    if version is None:
        return ""
    return read_lineage(version).get("weights_sha256") or f"unknown-{number(version)}"


def add_version(destination: str, fill: Callable[[str], None], keep: int) -> str:
    """Add a version, then remove the oldest.

    Args:
        destination: folder of versions; made where it is missing.
        fill: writes the version into the folder that it is given.
        keep: how many complete versions to leave.

    Returns:
        The new version's folder.

    Raises:
        InputError: the destination cannot be written.
    """
    with _explained(destination):
        folder = _publish(destination, fill)
        _tidy(destination, keep)
    return folder


def rollback(destination: str, version: str) -> str:
    """Make an earlier version current, by copying it to a new number.

    The model that was current is withdrawn: pipeline runs do not push it again.

    Args:
        destination: folder of versions.
        version: number of the version to restore.

    Returns:
        The new version's folder.

    Raises:
        InputError: there is no such version, it is current, or the destination cannot be written.
    """
    source, current = find_version(destination, version), current_version(destination)
    lineage, replaced = read_lineage(source), read_lineage(current or source)
    same = ("weights_sha256", "niter", "softmask", "exported_by")
    if source == current or (lineage and all(lineage.get(name) == replaced.get(name) for name in same)):
        raise InputError(
            f"{destination}: what version {version} holds is served already, as version {number(current or source)}"
        )
    withdrawn = {
        "weights_sha256": replaced.get("weights_sha256"),
        "version": number(current or source),
        "time": timestamp(),
    }
    restored = {
        **lineage,
        "time": withdrawn["time"],
        "rolled_back_from": number(source),
        "pushed_as": lineage.get("pushed_as") or number(source),
        "withdrawn": [*still_withdrawn(replaced, lineage.get("weights_sha256")), withdrawn],
    }

    def fill(folder: str) -> None:
        _copy_tree(source, folder)
        write_text(os.path.join(folder, LINEAGE), json.dumps(restored, indent=2) + "\n")
        note = (
            f"\n## Rollback\n\nA copy of version {number(source)}, made current by a rollback on {withdrawn['time']}; "
            f"version {withdrawn['version']} was withdrawn.\n"
        )
        card = os.path.join(source, CARD)
        write_text(os.path.join(folder, CARD), (_read_text(card) if tf.io.gfile.exists(card) else "") + note)

    with _explained(destination):
        return _publish(destination, fill)


def find_withdrawal(lineage: Mapping[str, Any], weights_sha256: str | None) -> dict[str, Any] | None:
    """Return when and as which version a model was withdrawn, by the current version's lineage; None if it was not."""
    return next((entry for entry in lineage.get("withdrawn", []) if entry["weights_sha256"] == weights_sha256), None)


def is_withdrawn(lineage: Mapping[str, Any], weights_sha256: str | None) -> bool:
    """Say whether a model was withdrawn, by the current version's lineage."""
    return find_withdrawal(lineage, weights_sha256) is not None


def still_withdrawn(lineage: Mapping[str, Any], weights_sha256: str | None) -> list[dict[str, Any]]:
    """Return the models that stay withdrawn when another one is served after a version.

    Args:
        lineage: of the version that was current.
        weights_sha256: of the model that will be served, which is not withdrawn any more.
    """
    return [entry for entry in lineage.get("withdrawn", []) if entry["weights_sha256"] != weights_sha256]


def timestamp() -> str:
    """Return the time as it is recorded: UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_text(path: str, text: str) -> None:
    """Write a text file, over an older one."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)


def _read_text(path: str) -> str:
    with tf.io.gfile.GFile(path) as file:
        return str(file.read())


@contextmanager
def _explained(destination: str) -> Iterator[None]:
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise InputError(
            f"{destination}: cannot push here ({reason.splitlines()[0]}); make it writable, or choose another push "
            "destination"
        ) from None


def _publish(destination: str, fill: Callable[[str], None]) -> str:
    if not is_remote(destination):
        tf.io.gfile.makedirs(destination)
    version = str(max([0, *map(int, map(number, _numbered(destination)))]) + 1)
    folder = os.path.join(destination, version)
    partial = _partial(destination, version)
    tf.io.gfile.makedirs(partial)
    try:
        fill(partial)
        if is_remote(destination):
            _move_files(partial, folder)
        else:
            tf.io.gfile.rename(partial, folder)
    except BaseException:
        if tf.io.gfile.isdir(partial):
            tf.io.gfile.rmtree(partial)
        raise
    return folder


def _move_files(source: str, folder: str) -> None:
    """Move files one by one: first the one that says whose they are, last the one that makes a version complete."""
    for name in sorted(_files(source), key=lambda name: (name != LINEAGE, name == _COMPLETE)):
        tf.io.gfile.rename(os.path.join(source, name), os.path.join(folder, name))
    if tf.io.gfile.isdir(source):
        tf.io.gfile.rmtree(source)  # what stands for its folders


def _copy_tree(source: str, folder: str) -> None:
    for name in _files(source):
        path = os.path.join(folder, name)
        tf.io.gfile.makedirs(os.path.dirname(path))
        tf.io.gfile.copy(os.path.join(source, name), path)


def _files(folder: str) -> list[str]:
    """Return the files below a folder, relative to it."""
    start = len(folder.rstrip("/")) + 1
    return [posixpath.join(place, name)[start:] for place, _, names in tf.io.gfile.walk(folder) for name in names]


def _tidy(destination: str, keep: int) -> None:
    """Remove old versions, and what was left of pushes that were killed; never what was not pushed from here."""
    numbered = _numbered(destination)
    complete = [folder for folder in numbered if _is_complete(folder)]
    newest = int(number(complete[-1]))
    kept = set(complete[-max(1, keep) :])
    for folder in numbered:
        pushed = tf.io.gfile.exists(os.path.join(folder, LINEAGE))
        if pushed and folder not in kept and int(number(folder)) < newest:
            _remove(destination, folder)
    for name in tf.io.gfile.listdir(destination):
        partial = _PARTIAL.fullmatch(name.rstrip("/"))
        if partial and int(partial[1]) <= newest:
            tf.io.gfile.rmtree(os.path.join(destination, name.rstrip("/")))


def _remove(destination: str, folder: str) -> None:
    """Remove a version so that no reader takes what is left of it for complete."""
    if is_remote(folder):
        # In the reverse of the order of a push: what is left where this is stopped can still be told to be ours.
        for name in sorted(_files(folder), key=lambda name: (name == LINEAGE, name != _COMPLETE)):
            tf.io.gfile.remove(os.path.join(folder, name))
    else:
        away = _partial(destination, number(folder))
        tf.io.gfile.rename(folder, away)
        folder = away
    if tf.io.gfile.isdir(folder):
        tf.io.gfile.rmtree(folder)


def _partial(destination: str, version: str) -> str:
    return os.path.join(destination, f"partial-{version}-{uuid.uuid4().hex[:8]}")


def _numbered(destination: str) -> list[str]:
    try:
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(destination)]
    except tf.errors.NotFoundError:
        return []
    return [os.path.join(destination, name) for name in sorted(filter(str.isdecimal, names), key=int)]


def _is_complete(folder: str) -> bool:
    return bool(tf.io.gfile.exists(os.path.join(folder, _COMPLETE)))
