"""Databases of stems: which samples are there, and do their headers agree?

    root/
      train/                    also valid/, and optionally test/
        any name/               one sample: all files of one length, rate and channel count
          vocals.wav            one file per target; any format that libsndfile reads
          accompaniment.flac

A file named `mixture` is passed over, because the mixture is the sum of the targets. So are hidden
files and files that are not audio. Web servers (`https://`) list no folders, so there the root holds
`files.txt`, with the path of one file per line.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import tensorflow as tf

from umx_model.data import folders
from umx_model.data.audio import AudioInfo, probe
from umx_model.data.remote import is_remote, is_web, web_headers
from umx_model.errors import InputError

Path = str | os.PathLike[str]
T = TypeVar("T")
R = TypeVar("R")

SPLITS = ("train", "valid", "test")
REQUIRED_SPLITS = ("train", "valid")

_SPOT = 4096  # bytes read at each of five places of a file for the fingerprint

_LIBSNDFILE_EXTENSIONS = (
    *("wav", "wave", "flac", "ogg", "oga", "opus", "mp3"),
    *("aiff", "aif", "aifc", "w64", "rf64", "caf", "au", "snd"),
)
# Known so that they are refused by name instead of reported as a missing target.
_OTHER_EXTENSIONS = ("m4a", "mp4", "aac", "wma", "webm", "mka", "mkv", "mov", "avi", "ac3", "ape", "wv", "tta")

# Files are read by one thread as long as it waits for less than this share of the time, and then by many,
# which for a fast disk would mostly wait for each other.
_WAITING_SHARE, _WATCHED_SECONDS, _THREADS = 0.75, 0.05, 16


@dataclass(frozen=True)
class Sample:
    """One sample folder.

    Attributes:
        id: the folder's name.
        split: `train`, `valid` or `test`.
        sample_rate: Hz.
        channels: of every target.
        length: in samples per channel.
        files: target name to audio file.
    """

    id: str
    split: str
    sample_rate: int
    channels: int
    length: int
    files: dict[str, AudioInfo]


def read_database(
    root: Path, targets: Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> dict[str, tuple[Sample, ...]]:
    """Read the headers of all audio files of a database, and check that they agree.

    Args:
        root: the database; local, or anything that `tf.io.gfile` opens.
        targets: names, in the order wanted; None for those of most samples, sorted.
        splits: to read; None for train and valid, which must be there, and test, which may.

    Returns:
        Samples by split, sorted by name; each sample's `files` are in the order of the targets.

    Raises:
        InputError: one line for each problem: root or split missing or empty; a sample that lacks
            a target, has an unknown one or two files for one; files that differ in length, rate or
            channels; a file that is zero-length, truncated, corrupt or of a format that cannot be
            read piecewise.
    """
    name = os.fspath(root)
    places = list_sample_folders(name, splits)
    files = concurrently(lambda place: audio_files(name, *place), places)
    found = {target for sample_files in files for target in sample_files}
    if targets is None:
        targets = _common_targets(name, files)
    unknown = [target for target in targets if target not in found]
    if unknown:
        there = ", ".join(sorted(found)) or "no audio files"
        raise InputError(f"{name}: no sample has the target {_quoted(unknown)}; the samples hold {there}")
    known = tuple(targets)
    inspected = concurrently(
        lambda listed: inspect_sample(name, *listed[0], known, listed[1]), zip(places, files, strict=True)
    )
    problems = [problem for _, sample_problems in inspected for problem in sample_problems]
    if problems:
        raise InputError("\n".join(problems))
    samples = [sample for sample, _ in inspected if sample is not None]
    return {
        split: tuple(sample for sample in samples if sample.split == split)
        for split in dict.fromkeys(split for split, _ in places)
    }


def found_targets(root: Path, splits: Sequence[str] | None = None) -> list[str]:
    """Return the targets of a database, sorted: those that most samples have; no file is opened.

    Args:
        root: the database.
        splits: to look into; None as in `read_database`.

    Raises:
        InputError: root or a split is missing or empty, or no target is in most samples.
    """
    name = os.fspath(root)
    places = list_sample_folders(name, splits)
    return list(_common_targets(name, concurrently(lambda place: audio_files(name, *place), places)))


def list_sample_folders(root: Path, splits: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """List a database's samples as (split, folder name), in order; see `read_database`.

    Raises:
        InputError: root or a split is missing or empty.
    """
    name = os.fspath(root)
    if not folders.is_folder(name):
        raise InputError(f"{name}: no such folder; expected a database with train/ and valid/")
    there = folders.names(name)
    if not there:
        raise InputError(f"{name}: empty folder; expected a database with train/ and valid/")
    wanted = [split for split in SPLITS if split in there or split in REQUIRED_SPLITS] if splits is None else splits
    found, problems = [], []
    for split in wanted:
        path = os.path.join(name, split)
        if not folders.is_folder(name, split):
            problems.append(f"{name}: no folder '{split}'; expected one holding sample folders")
            continue
        entries = folders.names(name, split)
        which = concurrently(functools.partial(folders.is_folder, name, split), entries)
        names = [entry for entry, is_folder in zip(entries, which, strict=True) if is_folder]
        if not names:
            problems.append(f"{path}: no sample folders; expected {split}/<sample>/<target>.wav")
        found += [(split, entry) for entry in names]
    if problems:
        raise InputError("\n".join(problems))
    return found


def inspect_sample(
    root: Path, split: str, name: str, targets: Sequence[str], found: dict[str, list[str]] | None = None
) -> tuple[Sample | None, list[str]]:
    """Read the headers of one sample's files.

    Args:
        root: the database.
        split: `train`, `valid` or `test`.
        name: of the sample's folder.
        targets: that it must have.
        found: names of its audio files by target, if the folder was listed before.

    Returns:
        The sample, or None where it cannot be used, and one line for each problem.
    """
    folder = os.path.join(os.fspath(root), split, name)
    found = audio_files(os.fspath(root), split, name) if found is None else found
    problems = []
    for target in targets:
        if target not in found:
            there = ", ".join(sorted(found)) or "no audio files"
            problems.append(f"{folder}: lacks the target '{target}' (found {there}); add {target}.wav")
    for target, files in found.items():
        if target not in targets:
            problems.append(
                f"{os.path.join(folder, files[0])}: unknown target '{target}'; expected {', '.join(targets)}; "
                "remove the file, or name its target among the targets"
            )
        elif len(files) > 1:
            problems.append(f"{folder}: {len(files)} files for the target '{target}' ({', '.join(files)}); keep one")
    infos: dict[str, AudioInfo] = {}
    for target in targets:
        for file in found.get(target, ()):
            try:
                info = probe(os.path.join(folder, file))
            except InputError as problem:
                problems.append(str(problem))
                continue
            if info.format.startswith("PyAV"):
                codec = info.format.removeprefix("PyAV/")
                problems.append(f"{info.path}: seeking in {codec} audio is not exact; convert it to wav or flac")
            else:
                infos[target] = info
    problems += _differences(folder, infos)
    if problems:
        return None, problems
    first = infos[targets[0]]
    return Sample(name, split, first.sample_rate, first.channels, first.samples, infos), []


def database_fingerprint(root: Path, splits: Sequence[str] = SPLITS) -> str:
    """Return a hex digest that changes when any file of the database is added, removed or edited.

    It covers the relative path, size and modification time of every file in the splits, and of local
    files a few spots of their content: unpacked files may have one time and size.

    Args:
        root: the database.
        splits: its folders to look at.

    Raises:
        InputError: there is no such folder.
    """
    name = os.fspath(root)
    if not folders.is_folder(name):
        raise InputError(f"{name}: no such folder; expected a database with train/ and valid/")
    paths = []
    for split in splits:
        paths += folders.files(name, split)
    paths.sort()
    digest = hashlib.sha256()
    for path, identity in zip(paths, concurrently(_identity, paths), strict=True):
        digest.update(f"{path[len(name) :].strip('/')}\0".encode() + identity)
    return digest.hexdigest()


def _identity(path: str) -> bytes:
    if is_web(path):
        headers = web_headers(path)
        return "\0".join(str(headers[name]) for name in ("Content-Length", "ETag", "Last-Modified")).encode()
    if is_remote(path):
        remote = tf.io.gfile.stat(path)
        return f"{remote.length}\0{remote.mtime_nsec}\n".encode()
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())  # gfile's times are whole seconds
        digest = hashlib.sha256(f"{status.st_size}\0{status.st_mtime_ns}".encode())
        for quarter in range(5):
            file.seek(max(0, status.st_size * quarter // 4 - _SPOT))
            digest.update(file.read(_SPOT))
    return digest.digest()


def audio_files(root: str, *below: str) -> dict[str, list[str]]:
    """Return the names of the audio files in a folder of a database by target, `mixture` left out."""
    found: dict[str, list[str]] = {}
    for file in folders.names(root, *below):
        target, extension = os.path.splitext(file)
        known = extension.lstrip(".").lower() in _LIBSNDFILE_EXTENSIONS + _OTHER_EXTENSIONS
        if known and target != "mixture":
            found.setdefault(target, []).append(file)
    return found


def _common_targets(root: str, files: Sequence[dict[str, list[str]]]) -> tuple[str, ...]:
    """Sort out what most samples have, so that one that lacks a target or has one too many stands out."""
    counts = Counter(target for sample_files in files for target in sample_files)
    targets = tuple(sorted(target for target, count in counts.items() if 2 * count > len(files)))
    if not targets:
        there = f"; the samples hold {', '.join(sorted(counts))}" if counts else ""
        raise InputError(f"{root}: no audio file of one name in most samples; expected one per target{there}")
    return targets


def _differences(folder: str, infos: dict[str, AudioInfo]) -> list[str]:
    """One line for each property in which the files of a sample differ."""
    problems = []
    for what, unit in (("samples", "samples"), ("sample_rate", "Hz"), ("channels", "channels")):
        values = {target: getattr(info, what) for target, info in infos.items()}
        if len(set(values.values())) > 1:
            each = ", ".join(f"{target} {value}" for target, value in values.items())
            label = {"samples": "length", "sample_rate": "sample rate", "channels": "channel count"}[what]
            problems.append(f"{folder}: the targets differ in {label} ({each} {unit}); make them equal")
    return problems


def concurrently(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Map a function that reads files, in as many threads as are of use for where the files are."""
    remaining = iter(items)
    results = []
    began, computing = time.perf_counter(), time.thread_time()
    for item in remaining:
        results.append(function(item))
        now = time.perf_counter()
        if now - began > _WATCHED_SECONDS:
            computed = time.thread_time() - computing
            if computed < (1 - _WAITING_SHARE) * (now - began):
                with ThreadPoolExecutor(_THREADS) as pool:
                    return results + list(pool.map(function, remaining))
            began, computing = now, computing + computed
    return results


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
