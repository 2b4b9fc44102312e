"""Pieces of audio files, decoded straight into the array that the targets of an excerpt share.

Uncompressed wav samples are read at their place in the file and brought to float32, scaled and swapped in one
pass over them, which takes a third of the time that libsndfile does; libsndfile reads everything else.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import soxr
import tensorflow as tf

from umx_model.data import audio
from umx_model.data.containers import find_wav_data
from umx_model.data.remote import is_remote, read_range
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError

# Bytes of a sample, for the encodings that are read in place.
_IN_PLACE = {
    f"{container}/{encoding}": size
    for container in ("WAV", "WAVEX")
    for encoding, size in (("PCM_16", 2), ("PCM_24", 3), ("FLOAT", 4))
}
# Of a change of speed: artefacts lie 100 dB below the music, at a third of the time that the resampler of files takes.
_SPEED_QUALITY = "MQ"
# Of a tensor that TensorFlow takes over from NumPy without a copy.
_ALIGNMENT = 64


class _Reads:
    """Those underway, which the interpreter must not end in the midst of.

    tf.data reads ahead on threads of its own. One that wants to call Python while the interpreter ends waits for
    it, and the interpreter for the thread, for ever. So at the end all reads return at once, until the
    buffers are full and no more are asked for.
    """

    QUIET_SECONDS = 0.2
    PATIENCE_SECONDS = 5.0

    def __init__(self) -> None:
        self.ending = False
        self._underway = 0
        self._latest = 0.0
        self._lock = threading.Lock()
        atexit.register(self._end)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a read."""
        with self._lock:
            self._underway += 1
        try:
            yield
        finally:
            with self._lock:
                self._underway -= 1
                self._latest = time.monotonic()

    def _end(self) -> None:
        self.ending = True
        began = time.monotonic()
        while time.monotonic() - began < self.PATIENCE_SECONDS:
            if not self._underway and time.monotonic() - self._latest > self.QUIET_SECONDS:
                return
            time.sleep(0.02)


_reads = _Reads()


class _File(NamedTuple):
    """Where a file's samples start and how many bytes each has; 0 bytes for files that libsndfile reads."""

    path: str
    offset: int
    sample_bytes: int
    may_be_non_finite: bool


class PieceReader:
    """Reads pieces of the files of a database; safe to call from many threads.

    Args:
        samples: of one channel count.
        targets: names, in the order of the last axis.
    """

    def __init__(self, samples: Sequence[Sample], targets: Sequence[str]) -> None:
        self._infos = [[sample.files[target] for target in targets] for sample in samples]
        self._channels = samples[0].channels
        self._located: dict[str, _File] = {}
        self.any_remote = any(is_remote(info.path) for infos in self._infos for info in infos)

    def _file(self, info: audio.AudioInfo) -> _File:
        """Locate a file's samples when it is first read: for all files at once, that would delay the start."""
        file = self._located.get(info.path)
        if file is None:
            file = self._located[info.path] = _locate(info)
        return file

    def read(
        self,
        length: np.int64,
        samples: np.ndarray,
        starts: np.ndarray,
        gains: np.ndarray,
        swaps: np.ndarray,
        speeds: np.ndarray,
    ) -> np.ndarray:
        """Read a piece for each target, and change it as was drawn.

        Args:
            length: of the piece as it is returned.
            samples: int64 `[targets]`, index of the sample that the target is taken from.
            starts: int64 `[targets]`, first sample.
            gains: float32 `[targets]`, to multiply with.
            swaps: bool `[targets]`, whether left and right change places (stereo only).
            speeds: float32 `[targets]`, at which it is played; `ceil(length * speed)` samples are read, as far
                as there are so many.

        Returns:
            float32 `[length, channels, targets]`.

        Raises:
            InputError: a file is missing, truncated, corrupt, or holds NaN or infinite values.
        """
        waveforms = _aligned((int(length), self._channels, len(samples)))
        with _reads.one():
            if not _reads.ending:
                self._fill(waveforms, samples, starts, gains, swaps, speeds)
        return waveforms

    def _fill(
        self,
        waveforms: np.ndarray,
        samples: np.ndarray,
        starts: np.ndarray,
        gains: np.ndarray,
        swaps: np.ndarray,
        speeds: np.ndarray,
    ) -> None:
        """Read into `[length, channels, targets]`; see `read`."""
        length = len(waveforms)
        for target, (sample, start) in enumerate(zip(samples, starts, strict=True)):
            info = self._infos[sample][target]
            played = int(np.ceil(float(speeds[target]) * length))
            if speeds[target] != 1:
                played = min(played, info.samples - int(start))
            values, scale = _read(self._file(info), int(start), played, self._channels)
            if speeds[target] != 1:
                values = _play(values, float(speeds[target]), length)
            factor = np.float32(gains[target] * scale)
            out = waveforms[..., target]
            if swaps[target] and self._channels == 2:
                # By channel: NumPy is slow on axes that run backwards.
                np.multiply(values[:, 1], factor, out=out[:, 0], dtype=np.float32)
                np.multiply(values[:, 0], factor, out=out[:, 1], dtype=np.float32)
            else:
                np.multiply(values, factor, out=out, dtype=np.float32)


def _play(values: np.ndarray, speed: float, length: int) -> np.ndarray:
    """Return values as float32 `[length, channels]`, played at a speed."""
    played = soxr.resample(np.asarray(values, np.float32), speed, 1.0, quality=_SPEED_QUALITY)[:length]
    return np.pad(played, ((0, length - len(played)), (0, 0)))


def _locate(info: audio.AudioInfo) -> _File:
    # Of encodings that libsndfile makes floats of, these hold floats themselves.
    may_be_non_finite = info.format.endswith(("/FLOAT", "/DOUBLE"))
    if info.format in _IN_PLACE:
        size = _IN_PLACE[info.format]
        try:
            place = find_wav_data(info.path)
        except (tf.errors.OpError, OSError) as error:
            raise InputError(f"{info.path}: cannot be read ({getattr(error, 'message', error)})") from None
        if place is not None and place[1] == info.samples * info.channels * size:
            return _File(info.path, place[0], size, may_be_non_finite)
    return _File(info.path, 0, 0, may_be_non_finite)


def _read(file: _File, start: int, length: int, channels: int) -> tuple[np.ndarray, np.float32]:
    """Return values `[length, channels]` of any type, and what to multiply them with for waveforms within [-1, 1]."""
    if not file.sample_bytes:
        waveform = audio.read(file.path, start, length)
        return _finite(waveform, file.path) if file.may_be_non_finite else waveform, np.float32(1)
    frame_bytes = file.sample_bytes * channels
    first, wanted = file.offset + start * frame_bytes, length * frame_bytes
    if file.sample_bytes == 2:
        content = _content(file.path, first, wanted)
        return np.frombuffer(content, "<i2").reshape(length, channels), np.float32(2**-15)
    if file.sample_bytes == 4:
        content = _content(file.path, first, wanted)
        return _finite(np.frombuffer(content, "<f4").reshape(length, channels), file.path), np.float32(1)
    # Four bytes at every third, of which the lowest is the neighbour's.
    content = _content(file.path, first - 1, wanted + 1)
    values: np.ndarray = np.ndarray((length, channels), "<i4", content, 0, (frame_bytes, 3))
    return values & np.int32(-256), np.float32(2**-31)


def _content(path: str, start: int, length: int) -> bytes:
    try:
        if is_remote(path):
            return read_range(path, start, length)
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(length)
    except tf.errors.OutOfRangeError:
        content = b""
    except tf.errors.NotFoundError:
        raise InputError(f"{path}: no such file") from None
    except tf.errors.OpError as error:
        raise InputError(f"{path}: cannot be read ({error.message})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) < length:
        raise InputError(f"{path}: truncated since it was checked; replace the file")
    return content


def _finite(waveform: np.ndarray, path: str) -> np.ndarray:
    if not np.isfinite(waveform).all():
        raise InputError(f"{path}: holds NaN or infinite values; replace the file")
    return waveform


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return an uninitialised float32 array."""
    size = int(np.prod(shape)) * 4
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(np.float32).reshape(shape)
