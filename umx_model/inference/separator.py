"""Separating arrays, streams and files: the class behind `umx_model.load_separator`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from umx_model.data import audio
from umx_model.errors import InputError
from umx_model.inference import files
from umx_model.inference.stems import StemSelection
from umx_model.inference.stream import ChunkStream, Estimated, StreamSeparation, in_background
from umx_model.profile import ModelProfile

Waveform = npt.NDArray[np.float32]
Progress = Callable[[float, float], None]


class Separator:
    """Separates audio of any length, rate and channel count; `stream.py` says how channels are grouped.

    Args:
        start: begins to separate a stream at the model's rate; given its channel count, 1 or the
            model's, it returns what `umx_model.inference.chunks.Chunks` is.
        profile: what the model is.
    """

    def __init__(self, start: Callable[[int], ChunkStream], profile: ModelProfile) -> None:
        self.start = start
        self.profile = profile

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
        """Channels that the model works on; audio with others is separated in groups of them."""
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
            The model's estimate of each target, one `[samples, channels]` float32 array with the rate, the
            length and the channel count of the mixture.

        Raises:
            InputError: not audio, no samples, or non-finite samples.
        """
        if isinstance(mixture, (str, os.PathLike)):
            if sample_rate is not None:
                raise InputError(f"{os.fspath(mixture)}: sample_rate is for waveforms; a file knows its own")
            info = audio.probe(mixture)
            blocks: Iterable[Waveform] = audio.stream(mixture)
            name, rate, shape = info.path, info.sample_rate, (info.samples, info.channels)
        else:
            waveform = _as_waveform(mixture)
            if not len(waveform):
                raise InputError("mixture: no samples to separate")
            blocks = (
                waveform[first : first + audio.BLOCK_SAMPLES] for first in range(0, len(waveform), audio.BLOCK_SAMPLES)
            )
            name, rate, shape = "mixture", self._rate(sample_rate), (len(waveform), waveform.shape[1])

        separation = StreamSeparation(self.start, self.profile, rate, shape[1], name)
        estimates = {target: np.empty(shape, np.float32) for target in self.targets}
        done = 0

        def keep(estimated: Iterator[Estimated]) -> None:
            nonlocal done
            for _, piece in separation.restore(estimated):
                for index, estimate in enumerate(estimates.values()):
                    estimate[done : done + len(piece)] = piece[..., index]
                done += len(piece)

        report = progress or (lambda done, total: None)
        with in_background(keep) as put:
            for estimated in separation.estimate(blocks):
                report(done / rate, shape[0] / rate)
                put(estimated)
                del estimated
        report(done / rate, shape[0] / rate)
        return estimates

    def separate_blocks(
        self, blocks: Iterable[Waveform], sample_rate: int | None = None, channels: int | None = None
    ) -> Iterator[Waveform]:
        """Separate a stream of audio in bounded memory.

        Args:
            blocks: consecutive pieces `[samples, channels]` float32 of any lengths.
            sample_rate: of the audio, in Hz; the model's if not given.
            channels: of the audio; those of the first block if not given.

        Yields:
            Consecutive pieces `[samples, channels, targets]` float32, together as long as the audio.

        Raises:
            InputError: a non-finite sample, or a block of another shape.
        """
        source = (_as_waveform(block).copy() for block in blocks)
        if channels is None:
            first = next(source, None)
            if first is None:
                return
            channels = first.shape[1]
        else:
            first = np.zeros((0, channels), np.float32)
        separation = StreamSeparation(self.start, self.profile, self._rate(sample_rate), channels)
        for _, estimates in separation.restore(separation.estimate(itertools.chain([first], source))):
            yield estimates

    def separate_file(
        self,
        path: str | os.PathLike[str],
        output: str | os.PathLike[str],
        selection: StemSelection | None = None,
        *,
        stem_format: str = "wav",
        bit_depth: str | None = None,
        name: str = files.NAME,
        clipping: str = "scale",
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> files.SeparatedFile:
        """Separate a file into files, in bounded memory: see `files.separate_file`."""
        return files.separate_file(
            self,
            path,
            output,
            selection,
            stem_format=stem_format,
            bit_depth=bit_depth,
            name=name,
            clipping=clipping,
            overwrite=overwrite,
            progress=progress,
        )

    def _rate(self, sample_rate: int | None) -> int:
        """Return the rate of audio that has none of its own."""
        if sample_rate is None:
            return self.sample_rate
        if sample_rate != int(sample_rate) or sample_rate < 1:
            raise InputError(f"sample_rate: expected a whole number of Hz, got {sample_rate}")
        return int(sample_rate)


def _as_waveform(mixture: npt.ArrayLike | tf.Tensor) -> Waveform:
    """Return what the caller means as audio `[samples, channels]` float32, or say why it is not."""
    waveform = np.asarray(mixture)
    if not np.issubdtype(waveform.dtype, np.floating):
        raise InputError(f"mixture: expected floating-point audio in [-1, 1], got {waveform.dtype}")
    if waveform.ndim not in (1, 2):
        raise InputError(f"mixture: expected [samples, channels] or [samples], got shape {waveform.shape}")
    return (waveform[:, np.newaxis] if waveform.ndim == 1 else waveform).astype(np.float32, copy=False)
