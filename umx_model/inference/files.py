"""Separating a file into files, in the layout that databases have: `output/<track>/<target>.<ext>`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from umx_model.data import audio
from umx_model.errors import InputError

if TYPE_CHECKING:
    from umx_model.inference.separator import Separator

# Sample formats that each file format offers, by bit depth; None is what is written when none is asked for.
SUBTYPES: dict[str, dict[str | None, str | None]] = {
    "wav": {None: "PCM_16", "16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"},
    "flac": {None: "PCM_16", "16": "PCM_16", "24": "PCM_24"},
    "ogg": {None: "VORBIS"},
}


def track_name(path: str | os.PathLike[str]) -> str:
    """Return the name of the folder that a file's estimates go to: `a/song.mp3` -> `song`."""
    return os.path.splitext(os.path.basename(os.fspath(path)))[0]


def subtype(stem_format: str, bit_depth: str | None) -> str | None:
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


def check_targets(targets: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the targets to write, in the model's order; all if None.

    Raises:
        InputError: a target that the model does not estimate.
    """
    unknown = [target for target in targets or () if target not in known]
    if unknown:
        raise InputError(f"targets: the model has no {', '.join(unknown)}; it has {', '.join(known)}")
    return tuple(target for target in known if targets is None or target in targets)


def separate_file(
    separator: Separator,
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    stem_format: str = "wav",
    bit_depth: str | None = None,
    targets: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[float, float], None] | None = None,
) -> dict[str, str]:
    """Separate a file and write one file per target, `output/<track>/<target>.<stem_format>`.

    Files appear under their names only when all of them are complete. They have the rate, the length
    and the channel count of the mixture.

    Args:
        separator: the model to use.
        path: anything that soundfile or PyAV decodes.
        output: folder to write to; made if missing.
        stem_format: "wav", "flac" or "ogg".
        bit_depth: "16" (the default), "24" or, in wav, "32f". Integer formats clip at [-1, 1].
        targets: which to write; all if None.
        overwrite: replace files that exist.
        progress: called now and then with the seconds of audio done and their total.

    Returns:
        The path written for each target.

    Raises:
        InputError: the input cannot be used, the output exists or cannot be written, or an option is wrong.
    """
    path, output = os.fspath(path), os.fspath(output)
    chosen = check_targets(targets, separator.targets)
    sample_format = subtype(stem_format, bit_depth)
    track = track_name(path)
    written = {target: os.path.join(output, track, f"{target}.{stem_format}") for target in chosen}
    existing = [name for name in written.values() if tf.io.gfile.exists(name)]
    if existing and not overwrite:
        raise InputError(
            f"{existing[0]}: exists already; overwrite it with --overwrite or choose another output folder"
        )
    for name in existing:
        if tf.io.gfile.isdir(name):
            raise InputError(f"{name}: is a folder; remove it or choose another output folder")
    info = audio.probe(path)
    with _temporary_folder(output, track) as folder:
        estimates = separator.separate_audio(info, progress)
        for target in chosen:
            audio.write(
                os.path.join(folder, f"{target}.{stem_format}"), estimates[target], info.sample_rate, sample_format
            )
        for target, name in written.items():
            try:
                tf.io.gfile.rename(os.path.join(folder, f"{target}.{stem_format}"), name, overwrite=True)
            except (tf.errors.OpError, OSError):
                raise _cannot_write(name) from None
    return written


@contextlib.contextmanager
def _temporary_folder(output: str, track: str) -> Iterator[str]:
    """Make a hidden folder and one for the track; in the end remove it, and what was made for it and is empty."""
    folder, track_folder = os.path.join(output, f".{track}.{os.getpid()}.partial"), os.path.join(output, track)
    made = [name for name in (track_folder, output) if not tf.io.gfile.exists(name)]
    try:
        try:
            tf.io.gfile.makedirs(folder)
            tf.io.gfile.makedirs(track_folder)
        except (tf.errors.OpError, OSError):
            raise _cannot_write(track_folder) from None
        yield folder
    finally:
        if tf.io.gfile.exists(folder):
            tf.io.gfile.rmtree(folder)
        for name in made:
            if tf.io.gfile.isdir(name) and not tf.io.gfile.listdir(name):
                tf.io.gfile.rmtree(name)


def _cannot_write(path: str) -> InputError:
    return InputError(f"{path}: cannot be written; choose another output folder")
