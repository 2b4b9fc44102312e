"""Excerpts of a database as a tf.data pipeline, read piecewise from the audio files themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from umx_model.data import augmentation
from umx_model.data.check import too_short
from umx_model.data.pieces import PieceReader
from umx_model.data.track_folder import Sample, read_database
from umx_model.errors import InputError

# Splits that are yielded whole instead of as random excerpts.
WHOLE_SPLITS = ("valid", "test")

# Excerpts read at a time from other computers, where most of the time is waiting; locally no more than that.
_REMOTE_CALLS = 16


class FixedSourcesTrackFolderDataset(tf.data.Dataset):
    """Waveforms of all targets of a database, float32 `[samples, channels, targets]`.

    Their sum over the last axis is the mixture. Only the pieces that are needed are read, in
    parallel and in a fixed order, straight from the files, local or remote.

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
        speed_range: lowest and highest random speed of a target, which changes its pitch; None for none.
        silent_targets: probability that a target is left out of an excerpt.
        seed: of the sequence of excerpts.
        first_excerpt: number to start from, to continue an earlier sequence.
        num_parallel_calls: excerpts read at a time; None for one per core, and more from other computers.
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
        speed_range: tuple[float, float] | None = None,
        silent_targets: float = 0.0,
        seed: int = 42,
        first_excerpt: int = 0,
        num_parallel_calls: int | None = None,
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
        reader = PieceReader(samples, self.targets)
        if num_parallel_calls is None:
            # tf.data's own choice starts low and takes minutes to grow.
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            num_parallel_calls = _REMOTE_CALLS if reader.any_remote else min(cores, _REMOTE_CALLS)
        with tf.device("CPU:0"):
            lengths = tf.constant([sample.length for sample in samples], tf.int64)

            def read_drawn(drawn: augmentation.Draw, length: tf.Tensor | int) -> tf.Tensor:
                waveforms = tf.numpy_function(reader.read, (tf.cast(length, tf.int64), *drawn), tf.float32)
                known = length if isinstance(length, int) else None
                return tf.ensure_shape(waveforms, [known, self.channels, len(self.targets)])

            def read_excerpt(number: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
                drawn = augmentation.draw(
                    number,
                    order,
                    seed,
                    lengths,
                    excerpt_samples,
                    len(self.targets),
                    gain_range,
                    swap_channels,
                    speed_range,
                    silent_targets,
                )
                return read_drawn(drawn, excerpt_samples)

            def read_piece(place: tf.Tensor) -> tf.Tensor:
                return read_drawn(augmentation.unchanged(place[0], place[1], len(self.targets)), place[2])

            if split in WHOLE_SPLITS:
                places = tf.data.Dataset.from_tensor_slices(_pieces(samples, excerpt_samples))
                read: Callable[..., tf.Tensor] = read_piece
            else:
                fastest = max(1.0, speed_range[1]) if speed_range else 1.0
                if problems := too_short(samples, excerpt_seconds * fastest):
                    raise InputError("\n".join(problems))
                sequences = len(self.targets) if random_track_mix else 1
                places = augmentation.sample_order(seed, len(samples), sequences, first_excerpt)
                read = read_excerpt
            if shards > 1:
                numbered = places.enumerate(0 if split in WHOLE_SPLITS else first_excerpt)
                mine = numbered.filter(lambda number, *_: number // shard_block % shards == shard)
                places = mine.map(lambda _, place: place)
            self._dataset = places.map(read, num_parallel_calls=num_parallel_calls, deterministic=True)
            if reader.any_remote:
                options = tf.data.Options()
                options.threading.private_threadpool_size = _REMOTE_CALLS  # otherwise as many as there are cores
                self._dataset = self._dataset.with_options(options)
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
