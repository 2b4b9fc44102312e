"""Excerpts of a database as a tf.data pipeline, read piecewise from the audio files themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_io.python.ops import core_ops

from umx_model.data import audio, augmentation
from umx_model.data.check import too_short
from umx_model.data.containers import find_wav_data
from umx_model.data.track_folder import Sample, concurrently, read_database
from umx_model.errors import InputError

# Splits that are yielded whole instead of as random excerpts.
WHOLE_SPLITS = ("valid", "test")

_NOT_FINITE = ": holds NaN or infinite values; replace the file"

# How a file is read: by libsndfile, or in place inside the graph. Other wav encodings could be read
# in place too, but the graph needs longer to decode 24-bit integers than libsndfile.
_LIBSNDFILE, _PCM_16, _FLOAT = range(3)
_IN_PLACE = {
    "WAV/PCM_16": (_PCM_16, tf.int16),
    "WAVEX/PCM_16": (_PCM_16, tf.int16),
    "WAV/FLOAT": (_FLOAT, tf.float32),
    "WAVEX/FLOAT": (_FLOAT, tf.float32),
}


class FixedSourcesTrackFolderDataset(tf.data.Dataset):
    """Waveforms of all targets of a database, float32 `[samples, channels, targets]`.

    Their sum over the last axis is the mixture. Only the pieces that are needed are read, in
    parallel and in a fixed order, straight from the files: 16-bit and float32 wav inside the graph
    through tensorflow-io, everything else through libsndfile.

    The split `train` yields excerpts without end. Excerpt number i depends on `seed` and i alone.
    In the order of their numbers, `samples` excerpts at a time go through all samples once.

    The splits `valid` and `test` yield every sample whole, unchanged and in order, in pieces of
    `excerpt_seconds`, of which the last may be shorter.

        dataset = FixedSourcesTrackFolderDataset("music", "train", ["vocals", "accompaniment"])
        for targets in dataset.batch(16).prefetch(1):      # [16, 264600, 2, 2]
            mixture = tf.reduce_sum(targets, axis=-1)

    Named after Open-Unmix's dataset of the same folder layout (`openunmix/data.py`, v1.3.0).

    Args:
        root: the database, see `umx_model.data.track_folder`; or the samples of the split, read before.
        split: `train`, `valid` or `test`.
        targets: names, in the order of the last axis; None for all, sorted.
        excerpt_seconds: length of an excerpt, or the longest piece.
        random_track_mix: take each target of an excerpt from an independent sample and start.
        gain_range: lowest and highest random gain of a target; None for none.
        swap_channels: probability that a target's left and right are swapped (stereo only).
        seed: of the sequence of excerpts.
        first_excerpt: number to start from, to continue an earlier sequence.
        num_parallel_calls: excerpts read at a time; by default as many as pay.
        shards: programs that share the work, each with a dataset of its own that is otherwise the same.
        shard: which of them this is: only excerpts (or pieces, counted from 0) whose number i has
            `i // shard_block % shards == shard` are read and yielded, in order.
        shard_block: neighbours that stay together, such as those of a batch.

    Attributes:
        samples: tuple of `Sample`.
        targets: tuple of names.
        sample_rate: Hz.
        channels: number of channels.

    Raises:
        InputError: the database cannot be used; a sample is shorter than an excerpt; samples
            differ in rate or channels. What goes wrong while reading surfaces as a
            `tf.errors.OpError`; `reading_error` makes an InputError of it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Sequence[Sample],
        split: str = "train",
        targets: Sequence[str] | None = None,
        excerpt_seconds: float = 6.0,
        random_track_mix: bool = True,
        gain_range: tuple[float, float] | None = (0.25, 1.25),
        swap_channels: float = 0.5,
        seed: int = 42,
        first_excerpt: int = 0,
        num_parallel_calls: int = tf.data.AUTOTUNE,
        shards: int = 1,
        shard: int = 0,
        shard_block: int = 1,
    ) -> None:
        if isinstance(root, str | os.PathLike):
            samples = read_database(root, targets, splits=(split,))[split]
        else:
            samples = tuple(root)
        self.samples = samples
        self.sample_rate, self.channels = _common_rate_and_channels(samples)
        self.targets = tuple(targets if targets is not None else samples[0].files)
        excerpt_samples = max(1, round(excerpt_seconds * self.sample_rate))
        with tf.device("CPU:0"):
            files = _FileTable(samples, self.targets, self.channels)

            def read_excerpt(number: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
                drawn = augmentation.draw(
                    number,
                    order,
                    seed,
                    files.lengths,
                    excerpt_samples,
                    len(self.targets),
                    gain_range,
                    swap_channels,
                )
                waveforms = files.read(drawn.samples, drawn.starts, excerpt_samples)
                return _targets_last(augmentation.apply(waveforms, drawn))

            def read_piece(place: tf.Tensor) -> tf.Tensor:
                sample, start = (tf.repeat(value, len(self.targets)) for value in (place[0], place[1]))
                return _targets_last(files.read(sample, start, place[2]))

            if split in WHOLE_SPLITS:
                places = tf.data.Dataset.from_tensor_slices(_pieces(samples, excerpt_samples))
                read: Callable[..., tf.Tensor] = read_piece
            else:
                if problems := too_short(samples, excerpt_seconds):
                    raise InputError("\n".join(problems))
                sequences = len(self.targets) if random_track_mix else 1
                places = augmentation.sample_order(seed, len(samples), sequences, first_excerpt)
                read = read_excerpt
            if shards > 1:
                numbered = places.enumerate(0 if split in WHOLE_SPLITS else first_excerpt)
                mine = numbered.filter(lambda number, *_: number // shard_block % shards == shard)
                places = mine.map(lambda _, place: place)
            self._dataset = places.map(read, num_parallel_calls=num_parallel_calls, deterministic=True)
        super().__init__(self._dataset._variant_tensor)

    @classmethod
    def from_samples(
        cls, samples: Sequence[Sample], split: str = "train", targets: Sequence[str] | None = None, **options: Any
    ) -> FixedSourcesTrackFolderDataset:
        """Make a dataset of samples that were inspected before; the options are those of the class."""
        return cls(samples, split, targets, **options)

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    @property
    def element_spec(self) -> tf.TensorSpec:
        """Spec of one element: float32 `[samples, channels, targets]`."""
        return self._dataset.element_spec


def reading_error(error: tf.errors.OpError) -> InputError | None:
    """Turn what a dataset raised into an InputError that names the file; None if no file was to blame."""
    found = re.search(r"InputError: (.*)", error.message)
    if found:
        return InputError(found.group(1).strip().rstrip("]"))
    if isinstance(error, tf.errors.NotFoundError):
        return InputError(re.sub(r"^(\{\{.*?\}\} )*", "", error.message.splitlines()[0]))
    return None


class _FileTable:
    """Where the audio of each sample and target is, as tensors that a graph can look things up in."""

    def __init__(self, samples: Sequence[Sample], targets: Sequence[str], channels: int) -> None:
        infos = [sample.files[target] for sample in samples for target in targets]
        ways = np.array(concurrently(_way_to_read, infos), np.int64).reshape(len(samples), len(targets), 2)
        self.lengths = tf.constant([sample.length for sample in samples], tf.int64)
        self._paths = tf.reshape([info.path for info in infos], ways.shape[:2])
        self._methods = tf.constant(ways[..., 0])
        self._offsets = tf.constant(ways[..., 1])
        self._used_methods = np.unique(ways[..., 0])
        self._targets = len(targets)
        self._channels = channels

    def read(self, samples: tf.Tensor, starts: tf.Tensor, length: tf.Tensor | int) -> list[tf.Tensor]:
        """Read a piece for each target.

        Args:
            samples: int64 `[targets]`, index of the sample.
            starts: int64 `[targets]`, first sample.
            length: of the piece.

        Returns:
            float32 `[length, channels]` for each target.
        """
        waveforms = []
        for target in range(self._targets):
            where = (samples[target], target)
            path, offset, method = self._paths[where], self._offsets[where], self._methods[where]
            waveform = self._read_file(path, offset, method, starts[target], tf.cast(length, tf.int64))
            waveforms.append(tf.ensure_shape(waveform, [length if isinstance(length, int) else None, self._channels]))
        return waveforms

    def _read_file(
        self, path: tf.Tensor, offset: tf.Tensor, method: tf.Tensor, start: tf.Tensor, length: tf.Tensor
    ) -> tf.Tensor:
        readers = {
            _LIBSNDFILE: lambda: tf.numpy_function(_read_with_libsndfile, (path, start, length), tf.float32),
            _PCM_16: lambda: tf.cast(self._read_in_place(path, offset, start, length, tf.int16), tf.float32) / 2**15,
            _FLOAT: lambda: _finite(self._read_in_place(path, offset, start, length, tf.float32), path),
        }
        used = [readers[used_method] for used_method in self._used_methods]
        if len(used) == 1:
            return used[0]()
        return tf.switch_case(tf.searchsorted(self._used_methods, [method])[0], used)

    def _read_in_place(
        self, path: tf.Tensor, offset: tf.Tensor, start: tf.Tensor, length: tf.Tensor, dtype: tf.DType
    ) -> tf.Tensor:
        """Read uncompressed little-endian samples at a known place in a file.

        `tfio.IOTensor.graph(dtype).from_audio` would do the same, but keeps the open file in a
        resource that all parallel calls of a graph share, and so hands out pieces of wrong files.
        """
        frame_bytes = dtype.size * self._channels
        first, wanted = offset + start * frame_bytes, length * frame_bytes
        file_bytes, _ = core_ops.io_file_info(path)
        message = tf.strings.join(["InputError: ", path, ": truncated since it was checked; replace the file"])
        with tf.control_dependencies([tf.debugging.Assert(first + wanted <= file_bytes, [message])]):
            content = core_ops.io_file_read(path, first, wanted, compression="")
        return tf.reshape(tf.io.decode_raw(content, dtype), [-1, self._channels])


def _targets_last(waveforms: Sequence[tf.Tensor]) -> tf.Tensor:
    # Twice as fast as stacking on the last axis.
    return tf.transpose(tf.stack(waveforms), [1, 2, 0])


def _way_to_read(info: audio.AudioInfo) -> tuple[int, int]:
    """Say how to read a file, and at which byte its samples start where they are read in place."""
    if info.format not in _IN_PLACE:
        return _LIBSNDFILE, 0
    method, dtype = _IN_PLACE[info.format]
    try:
        place = find_wav_data(info.path)
    except tf.errors.OpError as error:
        raise InputError(f"{info.path}: cannot be read ({error.message})") from None
    if place is None or place[1] != info.samples * info.channels * dtype.size:
        return _LIBSNDFILE, 0
    return method, place[0]


def _read_with_libsndfile(path: bytes, start: np.int64, length: np.int64) -> np.ndarray:
    waveform = audio.read(path.decode(), int(start), int(length))
    if not np.isfinite(waveform).all():
        raise InputError(f"{path.decode()}{_NOT_FINITE}")
    return waveform


def _finite(waveform: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
    message = tf.strings.join(["InputError: ", path, _NOT_FINITE])
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(waveform)), [message])]):
        return tf.identity(waveform)


def _pieces(samples: Sequence[Sample], piece_samples: int) -> np.ndarray:
    """Cut samples into pieces: int64 `[pieces, 3]` of sample index, start and length."""
    return np.array(
        [
            (index, start, min(piece_samples, sample.length - start))
            for index, sample in enumerate(samples)
            for start in range(0, sample.length, piece_samples)
        ],
        np.int64,
    )


def _common_rate_and_channels(samples: Sequence[Sample]) -> tuple[int, int]:
    if not samples:
        raise InputError("no samples; expected at least one")
    first = samples[0]
    for sample in samples:
        if (sample.sample_rate, sample.channels) != (first.sample_rate, first.channels):
            raise InputError(
                f"samples differ: {first.split}/{first.id} has {first.sample_rate} Hz, {first.channels} channels, "
                f"{sample.split}/{sample.id} {sample.sample_rate} Hz, {sample.channels}; make them equal"
            )
    return first.sample_rate, first.channels
