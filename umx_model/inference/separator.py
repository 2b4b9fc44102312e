"""Separating audio of any length with a model that takes whatever fits in memory.

The audio is cut into chunks. Every chunk is estimated together with real audio on both sides of it
(the context, which is thrown away again), and neighbouring chunks overlap by a short cross-fade:

    audio      |---------------------------------------------------------------|
    chunk 0    |######################\\ . . .|
    chunk 1            |. . . . . . . /######################\\ . . .|               # kept
    chunk 2                                   |. . . . . . . /##################|    . context

So the model's working memory is bounded, and nothing is heard or measured at the borders. The
mixture and all estimates are held whole (`separate`, `separate_file`); `separate_blocks` streams.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from umx_model.data import audio
from umx_model.errors import InputError
from umx_model.inference import files
from umx_model.model.umx import UMX
from umx_model.profile import ModelProfile

Waveform = npt.NDArray[np.float32]
Progress = Callable[[float, float], None]


class Separator:
    """Separates files and arrays of any length, rate and channel count that fits the model.

    Args:
        estimate: the model, mixture `[1, samples, channels]` float32 -> estimates
            `[1, samples, channels, targets]`, for any number of samples from 1 up.
        profile: what the model is.
        chunk_seconds: audio estimated at once, context included, or four STFT windows if that is
            more; bounds the model's working memory.
        context_seconds: real audio on either side of a chunk that the model hears but does not return;
            at least half an STFT window.
        crossfade_seconds: overlap of neighbouring chunks.

    Raises:
        ValueError: the context and the cross-fade leave nothing of a chunk.
    """

    def __init__(
        self,
        estimate: Callable[[tf.Tensor], tf.Tensor],
        profile: ModelProfile,
        chunk_seconds: float = 30.0,
        context_seconds: float = 2.0,
        crossfade_seconds: float = 0.5,
    ) -> None:
        self.profile = profile
        self._estimate = estimate
        # Whole STFT frames, so that chunks see the very frames that the undivided audio has.
        hop = profile.hop_length
        self._context = math.ceil(max(context_seconds * profile.sample_rate, profile.n_fft / 2) / hop) * hop
        self._fade = max(1, int(crossfade_seconds * profile.sample_rate))
        chunk = max(int(chunk_seconds * profile.sample_rate), 4 * profile.n_fft)
        self._step = (chunk - 2 * self._context - self._fade) // hop * hop
        if self._step < self._fade:
            raise ValueError(
                f"chunk_seconds must leave room for two contexts and cross-fades, got {chunk_seconds} "
                f"with {context_seconds} and {crossfade_seconds}"
            )

    @classmethod
    def from_model(cls, model: UMX) -> Separator:
        """Make a separator of a model in memory."""
        shape = [None, None, model.profile.channels]

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
        def estimate(mixture: tf.Tensor) -> tf.Tensor:
            return model(mixture, training=False)

        return cls(estimate, model.profile)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the estimates, in the profile's order."""
        return self.profile.targets

    @property
    def sample_rate(self) -> int:
        """Rate in Hz that the model works at; other rates are converted there and back."""
        return self.profile.sample_rate

    @property
    def channels(self) -> int:
        """Channels that the model works on; mono is duplicated, and its estimates are averaged."""
        return self.profile.channels

    def separate(
        self,
        mixture: str | os.PathLike[str] | npt.ArrayLike | tf.Tensor,
        sample_rate: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Waveform]:
        """Separate a file or a waveform.

        Args:
            mixture: a path (anything that soundfile or PyAV decodes), or floating-point audio
                `[samples, channels]` or `[samples]` in [-1, 1].
            sample_rate: of a waveform, in Hz; the model's if not given. A file knows its own.
            progress: called now and then with the seconds of audio done and their total.

        Returns:
            One `[samples, channels]` float32 array per target, with the rate, the length and the
            channel count of the mixture.

        Raises:
            InputError: not audio, no samples, non-finite samples, or channels that the model does not take.
        """
        if isinstance(mixture, (str, os.PathLike)):
            if sample_rate is not None:
                raise InputError(f"{os.fspath(mixture)}: sample_rate is for waveforms; a file knows its own")
            return self.separate_audio(audio.probe(mixture), progress)
        waveform = np.asarray(mixture)
        if not np.issubdtype(waveform.dtype, np.floating):
            raise InputError(f"mixture: expected floating-point audio in [-1, 1], got {waveform.dtype}")
        if waveform.ndim not in (1, 2):
            raise InputError(f"mixture: expected [samples, channels] or [samples], got shape {waveform.shape}")
        waveform = (waveform[:, np.newaxis] if waveform.ndim == 1 else waveform).astype(np.float32, copy=False)
        return self._separate(waveform, sample_rate or self.sample_rate, "mixture", progress)

    def separate_audio(self, info: audio.AudioInfo, progress: Progress | None = None) -> dict[str, Waveform]:
        """Separate a file that has been probed; see `separate`."""
        self._check_channels(info.channels, info.path)
        return self._separate(audio.read(info.path), info.sample_rate, info.path, progress)

    def separate_file(
        self,
        path: str | os.PathLike[str],
        output: str | os.PathLike[str],
        stem_format: str = "wav",
        bit_depth: str | None = None,
        targets: Sequence[str] | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, str]:
        """Separate a file into files `output/<track>/<target>.<format>`: see `files.separate_file`."""
        return files.separate_file(self, path, output, stem_format, bit_depth, targets, overwrite, progress)

    def separate_blocks(self, blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        """Separate a stream of audio, holding one chunk at a time.

        Args:
            blocks: consecutive pieces `[samples, channels]` of any lengths, at the model's rate and channel count.

        Yields:
            Consecutive pieces `[samples, channels, targets]` float32, together as long as the input.
        """
        source = iter(blocks)
        buffer = np.zeros((0, self.channels), np.float32)
        origin = start = 0  # sample numbers of the buffer's first sample and of the chunk's
        tail: Waveform | None = None
        fade_in = ((np.arange(self._fade, dtype=np.float32) + 0.5) / self._fade)[:, None, None]
        while True:
            stop = start + self._step + self._fade
            # One sample more than this chunk needs tells whether it is the last.
            while origin + len(buffer) <= stop + self._context and (block := next(source, None)) is not None:
                buffer = np.concatenate([buffer, block])
            total = origin + len(buffer)
            last = total <= stop + self._context
            if total == 0:
                return
            piece = buffer if last else buffer[: stop + self._context - origin]
            chunk = self._estimate(tf.constant(piece[None]))[0].numpy()
            chunk = chunk[start - origin : None if last else stop - origin]
            if tail is not None:
                chunk[: self._fade] = tail + fade_in * (chunk[: self._fade] - tail)
            if last:
                yield chunk
                return
            yield chunk[: self._step]
            tail = chunk[self._step :]
            start += self._step
            done = max(0, start - self._context) - origin
            buffer, origin = buffer[done:], origin + done

    def _separate(self, waveform: Waveform, rate: int, name: str, progress: Progress | None) -> dict[str, Waveform]:
        length, channels = waveform.shape
        if length == 0:
            raise InputError(f"{name}: no samples to separate")
        self._check_channels(channels, name)
        if not np.isfinite(waveform).all():
            raise InputError(f"{name}: holds non-finite samples (NaN or infinity)")
        mixture = audio.resample(waveform, rate, self.sample_rate) if rate != self.sample_rate else waveform
        if channels < self.channels:
            mixture = np.repeat(mixture, self.channels, axis=1)
        estimates = {target: np.empty(mixture.shape, np.float32) for target in self.targets}
        position = 0
        if progress is not None:
            progress(0, length / rate)
        for block in self.separate_blocks([mixture]):
            for index, target in enumerate(self.targets):
                estimates[target][position : position + len(block)] = block[..., index]
            position += len(block)
            if progress is not None:
                progress(position / self.sample_rate, length / rate)
        return {target: self._as_given(estimate, length, channels, rate) for target, estimate in estimates.items()}

    def _check_channels(self, channels: int, name: str) -> None:
        if channels not in (1, self.channels):
            wanted = "mono" if self.channels == 1 else f"{self.channels} channels or to mono"
            raise InputError(
                f"{name}: has {channels} channels and the model takes {self.channels}; convert it to {wanted} first "
                "(waveforms are [samples, channels])"
            )

    def _as_given(self, estimate: Waveform, length: int, channels: int, rate: int) -> Waveform:
        """Return an estimate with the rate, length and channel count of what was to be separated."""
        if channels < self.channels:
            estimate = estimate.mean(axis=1, keepdims=True)
        if rate != self.sample_rate:
            # There and back may round up to one sample more or less at the end.
            estimate = audio.resample(estimate, self.sample_rate, rate)[:length]
            estimate = np.pad(estimate, [(0, length - len(estimate)), (0, 0)])
        return estimate
