"""Audio files: probe, stream, read, write. Waveforms are float32 `[samples, channels]`.

libsndfile (soundfile) reads wav, flac, ogg, opus, mp3, aiff, w64 and rf64; FFmpeg (PyAV) what it
cannot open: m4a, mp4, webm and the first audio stream of any video. Paths are local, or anything
that `tf.io.gfile` opens (`gs://`, `s3://`), of which only the parts that are needed are fetched.
Channels come in the order of wav files (L R C LFE ...) whatever the format. Files that are missing,
empty, truncated or corrupt raise `InputError`.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import soundfile as sf
import tensorflow as tf

from umx_model.data.containers import check_chunks, check_mp4, check_ogg
from umx_model.data.remote import RemoteFileForC, file_size, is_remote, is_web
from umx_model.errors import InputError

Path = str | os.PathLike[str]

BLOCK_SAMPLES = 65536
_HARDLY_ANY_SPACE = 2**20  # bytes

# What libsndfile calls each extension that can be written; opus is a subtype of ogg there.
_WRITABLE = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "opus": "OGG", "mp3": "MP3", "aiff": "AIFF", "aif": "AIFF"}
_DEFAULT_SUBTYPE = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III"}
# Lossy encoders, which are told to keep what they can: about 300 kbit/s for stereo (libsndfile's own are 80 to 130).
_SETTINGS: dict[str | None, dict[str, Any]] = {
    "VORBIS": {"compression_level": 0.2},
    "MPEG_LAYER_III": {"compression_level": 0.0, "bitrate_mode": "CONSTANT"},
}
# A wav file counts its bytes in 32 bits; a longer one is written as RF64 (EBU Tech 3306), which readers take for wav.
_WAV_BYTES = 2**32 - 2**16
_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}

# Vorbis and Opus order channels their own way (Vorbis I specification, 4.3.9), of which libsndfile takes no notice.
_VORBIS_ORDER = {
    3: [0, 2, 1],
    5: [0, 2, 1, 3, 4],
    6: [0, 2, 1, 5, 3, 4],
    7: [0, 2, 1, 6, 5, 3, 4],
    8: [0, 2, 1, 7, 5, 6, 3, 4],
}


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        path: as given to `probe`.
        format: container and encoding, `WAV/PCM_16`, `FLAC/PCM_24`, `OGG/VORBIS`, `PyAV/aac`.
        sample_rate: Hz.
        channels: number of channels.
        samples: length per channel.
    """

    path: str
    format: str
    sample_rate: int
    channels: int
    samples: int


def probe(path: Path) -> AudioInfo:
    """Read an audio file's header.

    A file that only FFmpeg reads is decoded once, because its header does not tell its length
    exactly.

    Raises:
        InputError: missing, zero-length, truncated, or not audio.
    """
    name = os.fspath(path)
    _check_file(name)
    try:
        with _open(name) as (file, remote):
            _check_remote(remote)
            if file.frames == 0:
                raise InputError(f"{name}: holds no audio (0 samples)")
            if file.frames >= 2**62:
                raise InputError(f"{name}: its header does not tell its length; convert it to wav or flac")
            info = AudioInfo(
                name, f"{file.format}/{file.subtype}", int(file.samplerate), int(file.channels), int(file.frames)
            )
    except sf.LibsndfileError:
        return _probe_pyav(name)
    _check_complete(name, info.format)
    return info


def stream(
    path: Path, block_samples: int = BLOCK_SAMPLES, start: int = 0, samples: int | None = None
) -> Iterator[np.ndarray]:
    """Yield an audio file, or a piece of it, block by block.

    Args:
        path: the file.
        block_samples: length of a block; the last one may be shorter.
        start: first sample, at or before the end. Files that only FFmpeg reads are decoded from
            their beginning, because seeking in them is not exact.
        samples: how many samples; None for all up to the end.

    Yields:
        Waveforms float32 `[<= block_samples, channels]`.

    Raises:
        InputError: missing or not audio; or truncated, corrupt, or ending before `start + samples`,
            which may be noticed only after some blocks.
    """
    name = os.fspath(path)
    _check_file(name)
    try:
        with _open(name) as (file, remote):
            if samples is None:
                _check_complete(name, file.format)
            total = int(file.frames)
            stop = total if samples is None else start + samples
            if stop > total or start > total:
                raise _too_short(name, total, max(start, stop))
            position = start
            order = _VORBIS_ORDER.get(file.channels) if file.format == "OGG" else None
            try:
                if start:
                    file.seek(start)
                if remote is not None:
                    remote.expect_share((stop - start) / max(total, 1))
                while position < stop:
                    block = file.read(min(block_samples, stop - position), dtype="float32", always_2d=True)
                    _check_remote(remote)
                    if not len(block):
                        raise _too_short(name, position, total)
                    position += len(block)
                    yield block if order is None else block[:, order]
            except sf.LibsndfileError as problem:
                reason = problem.error_string.rstrip(".")
                raise InputError(
                    f"{name}: truncated or corrupt after sample {position} ({reason}); replace the file"
                ) from None
            return
    except sf.LibsndfileError:
        blocks = (frame.to_ndarray().T for frame, _ in _frames(name))
    yield from _cut(name, blocks, block_samples, start, samples)


def read(path: Path, start: int = 0, samples: int | None = None) -> np.ndarray:
    """Read an audio file, or a piece of it, into float32 `[samples, channels]`; see `stream`."""
    blocks = list(stream(path, BLOCK_SAMPLES if samples is None else max(samples, 1), start, samples))
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros((0, probe(path).channels), np.float32)


@contextmanager
def create(
    path: Path, sample_rate: int, channels: int, subtype: str | None = None, samples: int = 0
) -> Iterator[sf.SoundFile]:
    """Open an audio file for writing, which appears under its name only once it is complete.

        with create("vocals.flac", 44100, channels=2) as file:
            for block in blocks:
                file.write(block)

    Args:
        path: its extension says the format: wav, flac, ogg, opus, mp3 or aiff.
        sample_rate: Hz.
        channels: number of channels.
        subtype: encoding as libsndfile names it (`PCM_16`, `PCM_24`, `FLOAT`); None for the
            format's usual one. Integer encodings clip at full scale.
        samples: that are going to be written, if that may be many: a wav file above 4 GiB becomes RF64.

    Raises:
        InputError: the format is not known, cannot hold this audio, or the file cannot be written.
        OSError: no space is left on the device (`errno.ENOSPC`).
    """
    name = os.fspath(path)
    subtype = check_format(name, sample_rate, channels, subtype)
    container = _WRITABLE[_extension(name)]
    if container == "WAV" and samples * channels * _SAMPLE_BYTES.get(subtype, 4) > _WAV_BYTES:
        container = "RF64"
    remote = is_remote(name)
    folder = tempfile.gettempdir() if remote else os.path.dirname(os.path.abspath(name))
    if not os.path.isdir(folder):
        raise InputError(f"{name}: cannot be written: no folder {folder}; make it first")
    partial = os.path.join(folder, f".{uuid.uuid4().hex}.partial")
    try:
        settings = _SETTINGS.get(subtype, {})
        with sf.SoundFile(partial, "w", sample_rate, channels, subtype, format=container, **settings) as file:
            yield file
        try:
            if remote:
                tf.io.gfile.copy(partial, f"{name}.partial", overwrite=True)
                tf.io.gfile.rename(f"{name}.partial", name, overwrite=True)
            else:
                os.replace(partial, name)
        except (tf.errors.OpError, OSError) as problem:
            raise InputError(f"{name}: cannot be written ({getattr(problem, 'message', problem)})") from None
    except sf.LibsndfileError as problem:
        # libsndfile does not say why a write failed; others who failed too may have made some room again.
        if shutil.disk_usage(folder).free < _HARDLY_ANY_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name) from None
        raise InputError(f"{name}: cannot be written ({problem.error_string.rstrip('.')})") from None
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def write(path: Path, waveform: np.ndarray, sample_rate: int, subtype: str | None = None) -> None:
    """Write a waveform `[samples, channels]` or `[samples]`; see `create` for formats and errors."""
    waveform = np.asarray(waveform, np.float32)
    waveform = waveform[:, np.newaxis] if waveform.ndim == 1 else waveform
    with create(path, sample_rate, waveform.shape[1], subtype) as file:
        # In blocks: libsndfile crashes when it is given a long Vorbis stream in one call.
        for start in range(0, len(waveform), BLOCK_SAMPLES):
            file.write(waveform[start : start + BLOCK_SAMPLES])


def check_format(path: Path, sample_rate: int, channels: int, subtype: str | None = None) -> str:
    """Return the encoding that a file will be written in; see `create`.

    Raises:
        InputError: the extension is not known, or its format cannot hold this audio.
    """
    name, extension = os.fspath(path), _extension(path)
    if extension not in _WRITABLE:
        raise InputError(f"{name}: cannot write '{extension}' files; use one of {', '.join(_WRITABLE)}")
    container = _WRITABLE[extension]
    subtype = subtype or _DEFAULT_SUBTYPE.get(extension) or str(sf.default_subtype(container))
    if not sf.check_format(container, subtype):
        known = ", ".join(sf.available_subtypes(container))
        raise InputError(f"{name}: {extension} files cannot hold {subtype}; use one of {known}")
    try:
        # libsndfile crashes on higher rates, and leaves more channels in an order that is not Vorbis'.
        if container == "OGG" and (sample_rate > 200_000 or channels > 2):
            raise ValueError
        sf.SoundFile(io.BytesIO(), "w", sample_rate, channels, subtype, format=container).close()
    except (sf.LibsndfileError, ValueError):
        raise InputError(
            f"{name}: {extension} files cannot hold {channels} channels at {sample_rate} Hz; use wav"
        ) from None
    return subtype


def _extension(path: Path) -> str:
    return os.path.splitext(path)[1].lstrip(".").lower()


def _check_file(path: str) -> None:
    """Raise InputError where there is no file, or nothing in it."""
    printable = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if printable != path:
        raise InputError(f"{printable}: its name is not UTF-8; rename it")
    try:
        if is_web(path):
            length, is_folder = file_size(path), False
        else:
            status = tf.io.gfile.stat(path)
            length, is_folder = status.length, status.is_directory
    except tf.errors.NotFoundError:
        raise InputError(f"{path}: no such file") from None
    except tf.errors.OpError as problem:
        raise InputError(f"{path}: cannot be read ({problem.message})") from None
    if is_folder:
        raise InputError(f"{path}: is a folder; expected an audio file")
    if length == 0:
        raise InputError(f"{path}: zero-length file; replace it")
    if not is_remote(path) and not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read (permission denied)")


def _check_complete(path: str, form: str) -> None:
    """Raise InputError for a truncated file that libsndfile reads as a shorter one."""
    if form.startswith("OGG"):
        check_ogg(path)
    if form.startswith(("WAV", "RF64", "W64", "AIFF", "AU")):
        check_chunks(path)


@contextmanager
def _open(path: str) -> Iterator[tuple[sf.SoundFile, RemoteFileForC | None]]:
    """Open with libsndfile; the second value is the file underneath, if that is remote."""
    remote = RemoteFileForC(path) if is_remote(path) else None
    try:
        with sf.SoundFile(path if remote is None else remote) as file:
            yield file, remote
    except sf.LibsndfileError:
        _check_remote(remote)
        raise
    except TypeError:  # soundfile asks for rate and channels where the extension is .raw
        raise InputError(f"{path}: headerless audio cannot be read; convert it to wav or flac") from None


def _check_remote(remote: RemoteFileForC | None) -> None:
    """Raise what libsndfile kept silent about."""
    if remote is not None and remote.error is not None:
        raise InputError(f"{remote.path}: cannot be read ({remote.error.message})") from None


def _too_short(path: str, found: int, expected: int) -> InputError:
    return InputError(f"{path}: truncated or corrupt: {found} samples found, {expected} expected; replace the file")


def _probe_pyav(path: str) -> AudioInfo:
    samples, channels, rate, codec = 0, 0, 0, ""
    for frame, codec in _frames(path):  # noqa: B007
        samples, channels, rate = samples + frame.samples, frame.layout.nb_channels, frame.sample_rate
    if not samples:
        raise InputError(f"{path}: holds no audio (0 samples)")
    return AudioInfo(path, f"PyAV/{codec}", rate, channels, samples)


def _frames(path: str) -> Iterator[tuple[av.AudioFrame, str]]:
    """Decode the first audio stream with FFmpeg to planar float32 frames, with the codec's name."""
    check_mp4(path)
    try:
        with av.open(RemoteFileForC(path) if is_remote(path) else path, "r") as container:
            if not container.streams.audio:
                raise InputError(f"{path}: has no audio stream")
            audio = container.streams.audio[0]
            if audio.codec_context is None:  # PyAV crashes on it
                raise InputError(f"{path}: FFmpeg has no decoder for its audio; convert it to wav or flac")
            converter = av.AudioResampler(format="fltp")
            for packet in container.demux(audio):
                if packet.is_corrupt:
                    raise InputError(f"{path}: truncated or corrupt; replace the file")
                for decoded in audio.decode(packet):
                    for frame in converter.resample(decoded):
                        yield frame, audio.codec_context.name
    except av.error.FFmpegError as failure:
        raise InputError(f"{path}: not an audio file, or a corrupt one (FFmpeg: {failure.strerror})") from None


def _cut(
    path: str, blocks: Iterator[np.ndarray], block_samples: int, start: int, samples: int | None
) -> Iterator[np.ndarray]:
    """Regroup blocks of any size into blocks of `block_samples`, from `start` on."""
    position = 0  # of the next incoming sample
    left = samples
    held: list[np.ndarray] = []
    held_samples = 0
    for incoming in blocks:
        block = incoming[max(start - position, 0) :]
        position += len(incoming)
        if left is not None:
            block = block[:left]
            left -= len(block)
        if len(block):
            held.append(block)
            held_samples += len(block)
        if held_samples >= block_samples:
            joined = np.concatenate(held)
            whole = held_samples - held_samples % block_samples
            for first in range(0, whole, block_samples):
                yield joined[first : first + block_samples]
            held, held_samples = [joined[whole:]], held_samples - whole
        if left == 0:
            break
    if held_samples:
        yield np.concatenate(held)
    if position < start or (left is not None and left > 0):
        raise _too_short(path, position, start + (samples or 0))
