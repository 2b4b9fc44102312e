"""Which files a command line means, and that their stems do not get into each other's way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from umx_model.errors import InputError

# What is looked for in folders. A video has to be named: folders of music hold video clips of the same songs.
AUDIO_EXTENSIONS = (
    *("wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "aif", "aiff", "aifc"),
    *("au", "bwf", "caf", "oga", "rf64", "w64", "wave", "wma"),
)


@dataclass(frozen=True)
class Source:
    """A file to separate.

    Attributes:
        path: where it is; or a folder, where that is the problem.
        folder: where it was found in the folder that was named, "" for at its top or a named file.
        problem: why it cannot be separated, found without opening it.
    """

    path: str
    folder: str = ""
    problem: str | None = None


def find_sources(inputs: Sequence[str], output: str) -> list[Source]:
    """Find the files that are meant by files and folders, each once, in the order named and by name within folders.

    Folders are searched with all folders in them, through links too, but not the output folder (a second run
    would separate the first one's stems) nor anything whose name starts with a dot.

    Args:
        inputs: files and folders, local or remote.
        output: the output folder.

    Returns:
        At least one source per input, those with a `problem` included.

    Raises:
        InputError: an input is the output folder.
    """
    found: dict[str, Source] = {}
    for name in inputs:
        if not _is_folder(name):
            sources = [Source(name)]
        elif _identity(name) == _identity(output):
            raise InputError(
                f"{name}: is the output folder too, and the next run would separate the stems; choose another --output"
            )
        else:
            sources = list(_search(name, output)) or [_without_audio(name)]
        for source in sources:
            found.setdefault(_identity(source.path), _with_readable_name(source))
    return list(found.values())


def check_outputs(outputs: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Refuse a run in which files would overwrite each other or the audio that is to be separated.

    Args:
        outputs: each source's path and the stem files that it will be separated into.

    Raises:
        InputError: two sources have a stem file in common, or a source is another's stem file.
    """
    planned = [(path, list(files)) for path, files in outputs]
    sources = {_identity(path): path for path, _ in planned}
    owners: dict[str, str] = {}
    for path, files in planned:
        for file in files:
            other = owners.setdefault(_identity(file), path)
            if other != path:
                raise InputError(
                    f"{other} and {path} would both be written to {file}; rename one, or separate them into "
                    "different output folders"
                )
            if _identity(file) in sources:
                raise InputError(
                    f"{path}: a stem would be written over {file}, which is to be separated; choose another "
                    "--output or --name"
                )


def readable(path: str) -> str:
    r"""Return a path that can be printed and stored, with `\xff` for bytes that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _search(root: str, output: str) -> Iterator[Source]:
    problems: list[OSError] = []
    seen = {_identity(output)}
    # Top-down, so that what is removed from `folders` is not entered.
    for path, folders, files in _walk(root, problems):
        new = {_identity(os.path.join(path, name)): name for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for identity, name in new.items() if identity not in seen]
        seen |= set(new)
        folder = os.path.relpath(path, root) if path != root else ""
        for name in sorted(files):
            if not name.startswith(".") and name.rpartition(".")[2].lower() in AUDIO_EXTENSIONS:
                yield Source(os.path.join(path, name), folder)
    for problem in problems:
        yield _unreadable(problem)


def _walk(root: str, problems: list[OSError]) -> Iterator[tuple[str, list[str], list[str]]]:
    if "://" not in root:
        return os.walk(root, onerror=problems.append, followlinks=True)
    import tensorflow as tf

    return tf.io.gfile.walk(root)


def _is_folder(path: str) -> bool:
    if "://" not in path:
        return os.path.isdir(path)
    import tensorflow as tf

    return tf.io.gfile.isdir(path)


def _identity(path: str) -> str:
    """Return what two names of one file have in common."""
    return path if "://" in path else os.path.realpath(path)


def _with_readable_name(source: Source) -> Source:
    if source.problem is None and readable(source.path) != source.path:
        return Source(source.path, source.folder, f"{readable(source.path)}: its name is not UTF-8; rename it")
    return source


def _without_audio(folder: str) -> Source:
    looked_for = ", ".join(AUDIO_EXTENSIONS[:6])
    return Source(folder, problem=f"{folder}: no audio file in it or in its folders ({looked_for}, ...)")


def _unreadable(problem: OSError) -> Source:
    return Source(problem.filename, problem=f"{problem.filename}: cannot be read ({problem.strerror})")
