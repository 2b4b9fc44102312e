"""Separating a file into files, in bounded memory: by default `output/<track>/<stem>.<ext>`, as databases have it.

Files appear under their names only when all of them are complete. Until then they are in a hidden folder of
the output folder (of the system's temporary folder, where the output is remote), which is removed in any case.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import string
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from umx_model.data import audio
from umx_model.data.remote import is_remote
from umx_model.errors import InputError
from umx_model.inference.stems import StemSelection
from umx_model.inference.stream import Estimated, StreamSeparation, in_background
from umx_model.inference.writers import ENCODING_SHARE, StemWriter

if TYPE_CHECKING:
    from umx_model.inference.separator import Separator

Waveform = npt.NDArray[np.float32]

NAME = "{track}/{target}.{ext}"
CLIPPING = ("scale", "refuse")

# Sample formats that each file format offers, by bit depth; None is what is written when none is asked for.
SUBTYPES: dict[str, dict[str | None, str]] = {
    "wav": {None: "PCM_16", "16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"},
    "flac": {None: "PCM_16", "16": "PCM_16", "24": "PCM_24"},
    "ogg": {None: "VORBIS"},
    "mp3": {None: "MPEG_LAYER_III"},
}


@dataclass(frozen=True)
class SeparatedFile:
    """What became of a file.

    Attributes:
        path: of the mixture.
        stems: the file written for each stem.
        gain: factor that all stems were multiplied with, below 1 where one would have clipped.
        audio_seconds: length of the mixture.
        seconds: time that separating it took, files included.
    """

    path: str
    stems: dict[str, str]
    gain: float
    audio_seconds: float
    seconds: float


def track_name(path: str | os.PathLike[str]) -> str:
    """Return what a file's stems are filed under: `a/song.mp3` -> `song`."""
    return os.path.splitext(os.path.basename(os.fspath(path)))[0]


def subtype(stem_format: str, bit_depth: str | None) -> str:
    """Return libsndfile's name for a bit depth of a file format.

    Raises:
        InputError: unknown format, or a bit depth that it does not have.
    """
    if stem_format not in SUBTYPES:
        raise InputError(f"format: {stem_format!r} is not one of {', '.join(SUBTYPES)}")
    depths = SUBTYPES[stem_format]
    if bit_depth not in depths:
        offered = ", ".join(depth for depth in depths if depth)
        raise InputError(
            f"bit depth: {stem_format} does not offer {bit_depth!r}"
            + (f", only {offered}" if offered else "; leave it out, the format is lossy")
        )
    return depths[bit_depth]


def stem_paths(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    stems: Sequence[str],
    stem_format: str = "wav",
    name: str = NAME,
) -> dict[str, str]:
    """Return the file that each stem of a mixture is written to.

    Args:
        path: of the mixture.
        output: folder to write to.
        stems: their names.
        stem_format: extension of the files.
        name: template, with `{track}` for the mixture's name without its extension, `{target}` for the stem's,
            `{ext}` for the format's.

    Raises:
        InputError: the template is not one, gives two stems one name, or leaves the output folder.
    """
    fields = {"track": track_name(path), "target": "", "ext": stem_format}
    try:
        fields_used = [parts[1:] for parts in string.Formatter().parse(name) if parts[1] is not None]
    except ValueError as error:
        raise InputError(f"name {name!r}: not a template ({error}); the default is {NAME}") from None
    unknown = [field for field, form, conversion in fields_used if field not in fields or form or conversion]
    if unknown:
        known = ", ".join(f"{{{field}}}" for field in fields)
        raise InputError(f"name {name!r}: field {{{unknown[0]}}} is not known, or has a format; use {known}")
    paths: dict[str, str] = {}
    for stem in stems:
        file = os.path.normpath(name.format(**fields | {"target": stem}))
        if os.path.isabs(file) or file.split(os.sep)[0] == os.pardir:
            raise InputError(f"name {name!r}: {file} is not in the output folder; choose the folder with the output")
        if not file.endswith(f".{stem_format}"):
            raise InputError(f"name {name!r}: {file} does not end in .{stem_format}; end it in .{{ext}}")
        paths[stem] = os.path.join(os.fspath(output), file)
    for stem, other in itertools.pairwise(stems):
        if paths[stem] == paths[other]:  # the template does not name the stem, and all are one
            raise InputError(f"name {name!r}: {stem} and {other} would both be {paths[stem]}; use {{target}} in it")
    return paths


def separate_file(
    separator: Separator,
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    selection: StemSelection | None = None,
    *,
    stem_format: str = "wav",
    bit_depth: str | None = None,
    name: str = NAME,
    clipping: str = "scale",
    overwrite: bool = False,
    progress: Callable[[float, float], None] | None = None,
) -> SeparatedFile:
    """Separate a file and write one file per stem, with the rate, the length and the channels of the mixture.

    Args:
        separator: the model to use.
        path: anything that soundfile or PyAV decodes.
        output: folder to write to; made if missing.
        selection: which stems; one per target if None.
        stem_format: "wav" (RF64 above 4 GiB), "flac", "ogg" (Vorbis) or "mp3"; the lossy ones for one or
            two channels, at a high bit rate.
        bit_depth: of wav and flac: "16" (the default), "24" or, in wav, "32f", which is float.
        name: template of the files' names in `output`, see `stem_paths`.
        clipping: where a stem exceeds full scale, "scale" multiplies all of them with one gain, so that their sum
            is the mixture but for that gain, and "refuse" raises InputError. Float files keep what exceeds it.
        overwrite: replace files that exist.
        progress: called now and then with the seconds of audio done and their total; encoding
            counts as the share of the work that it is.

    Raises:
        InputError: the input cannot be used, the output exists or cannot be written, an option is wrong,
            or the device is full.
    """
    started = time.perf_counter()
    path, output = os.fspath(path), os.fspath(output)
    encoding = subtype(stem_format, bit_depth)
    if clipping not in CLIPPING:
        raise InputError(f"clipping: {clipping!r} is not one of {', '.join(CLIPPING)}")
    stems = (selection or StemSelection()).resolve(separator.targets)
    files = stem_paths(path, output, stems.names, stem_format, name)
    info = audio.probe(path)
    separation = StreamSeparation(separator.start, separator.profile, info.sample_rate, info.channels, path)
    audio.check_format(next(iter(files.values())), info.sample_rate, info.channels, encoding)
    total = info.samples / info.sample_rate
    share = ENCODING_SHARE[stem_format] if encoding != "FLOAT" else 0.0
    report = progress or (lambda done, total: None)
    try:
        with (
            _working_folder(output, files.values()) as folder,
            StemWriter(folder, stems.names, stem_format, encoding, info, clipping) as writer,
        ):
            for file in files.values():
                _check_free(file, path, overwrite)
            _check_space(output, folder, writer.needed_bytes)

            def write(estimated: Iterator[Estimated]) -> None:
                for mixture, estimates in separation.restore(estimated):
                    writer.write(stems(mixture, estimates))

            with in_background(write) as put:
                for estimated in separation.estimate(audio.stream(path)):
                    report(writer.seconds * (1 - share), total)
                    put(estimated)
                    del estimated
            gain = writer.finish(lambda done: report(total * (1 - share + share * done), total))
            _publish(writer.files, list(files.values()))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{output}: no space left on the device; free some or choose another output") from None
        raise
    report(total, total)
    return SeparatedFile(path, files, gain, total, time.perf_counter() - started)


def _check_free(file: str, mixture: str, overwrite: bool) -> None:
    """Raise InputError where a file cannot be written, or must not."""
    exists = tf.io.gfile.exists(file)
    if not is_remote(file):
        try:
            os.lstat(file)  # follows no link, and knows names that are too long
            exists = True
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _cannot_write(file, error) from None
    if file == mixture or (exists and os.path.realpath(file) == os.path.realpath(mixture)):
        raise InputError(f"{mixture}: would be replaced by its own stem; choose another output folder or name")
    if tf.io.gfile.isdir(file):
        raise InputError(f"{file}: is a folder; remove it or choose another output folder")
    if exists and not overwrite:
        raise InputError(f"{file}: exists already; overwrite it with --overwrite or choose another output folder")


def _check_space(output: str, folder: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{output}: no space left on the device: {needed / 1e9:.3g} GB are needed while separating, "
            f"{free / 1e9:.3g} GB are free; free some or choose another output"
        )


@contextlib.contextmanager
def _working_folder(output: str, files: Iterable[str]) -> Iterator[str]:
    """Make the folders that files go to and a local one to work in; in the end remove it, and what is empty."""
    folders = dict.fromkeys([output, *(os.path.dirname(file) for file in files)])
    missing = [folder for name in folders for folder in _missing(name)]
    working = ""
    try:
        try:
            for folder in folders:
                tf.io.gfile.makedirs(folder or os.curdir)
            working = tempfile.mkdtemp(".partial", ".", None if is_remote(output) else output)
        except (OSError, tf.errors.OpError) as error:
            raise _cannot_write(folder, error) from None
        yield working
    finally:
        if working:
            shutil.rmtree(working, ignore_errors=True)
        for folder in sorted(missing, key=len, reverse=True):
            if tf.io.gfile.isdir(folder) and not tf.io.gfile.listdir(folder):
                tf.io.gfile.rmtree(folder)


def _missing(folder: str) -> Iterator[str]:
    """Yield a folder and those above it that do not exist."""
    while folder and not tf.io.gfile.exists(folder):
        yield folder
        folder = os.path.dirname(folder)


def _publish(complete: Sequence[str], files: Sequence[str]) -> None:
    """Give complete files their names; all of them, or none that is new."""
    new: list[str] = []
    try:
        for source, file in zip(complete, files, strict=True):
            if not tf.io.gfile.exists(file):
                new.append(file)
            if not is_remote(file):
                os.replace(source, file)
            else:
                tf.io.gfile.copy(source, f"{file}.partial", overwrite=True)
                tf.io.gfile.rename(f"{file}.partial", file, overwrite=True)
    except BaseException as error:
        for name in new:
            if tf.io.gfile.exists(name):
                tf.io.gfile.remove(name)
        if isinstance(error, OSError | tf.errors.OpError):
            raise _cannot_write(file, error) from None
        raise


def _cannot_write(path: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return InputError(f"{path}: cannot be written; choose another output folder")
