"""Changing the sample rate with the SoX resampler (soxr, very high quality), whole or as a stream."""

from __future__ import annotations

import numpy as np
import soxr

_QUALITY = "VHQ"


def resampled_length(samples: int, from_rate: int, to_rate: int) -> int:
    """Return how many samples at `to_rate` hold `samples` at `from_rate`, rounded up."""
    return -(-samples * to_rate // from_rate)


class Resampler:
    """Changes the rate of a stream of audio.

        resampler = Resampler(44100, 48000, channels=2)
        converted = [resampler.push(block) for block in blocks] + [resampler.finish()]

    All that it returns is what converting the whole at once gives, without delay.

    Args:
        from_rate: Hz of what is pushed.
        to_rate: Hz of what is returned.
        channels: of both.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._rates = from_rate, to_rate
        self._channels = channels
        self._stream = (
            soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality=_QUALITY)
            if from_rate != to_rate
            else None
        )
        self._pushed = self._returned = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take float32 `[samples, channels]`, of any length, and return what is ready."""
        self._pushed += len(block)
        if self._stream is not None:
            block = self._stream.resample_chunk(np.ascontiguousarray(block))
        self._returned += len(block)
        return block

    def finish(self) -> np.ndarray:
        """Return the rest: in all, `resampled_length` of what was pushed.

        Where the resampler rounds down, a sample of silence ends it.
        """
        rest = np.zeros((0, self._channels), np.float32)
        if self._stream is not None and self._pushed:
            rest = self._stream.resample_chunk(rest, last=True)
        due = resampled_length(self._pushed, *self._rates) - self._returned
        rest = rest[:due]
        return np.pad(rest, ((0, due - len(rest)), (0, 0)))


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the sample rate of a waveform.

    Args:
        waveform: float32 `[samples, channels]`.
        from_rate: Hz of `waveform`.
        to_rate: Hz wanted.

    Returns:
        float32 `[ceil(samples * to_rate / from_rate), channels]`.
    """
    resampler = Resampler(from_rate, to_rate, waveform.shape[1])
    return np.concatenate([resampler.push(np.asarray(waveform, np.float32)), resampler.finish()])
