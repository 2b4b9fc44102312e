"""Separating a stream of audio of any rate, any channel count and any length, in bounded memory.

    blocks -> resampled -> groups of channels -> Chunks -> estimates              `estimate`
           -> resampled back -> pieces of estimates with their piece of mixture   `restore`

`Chunks` takes one channel, or as many as the model has. Audio with another channel count is separated in
groups, each on its own, and nothing is mixed or left out:

    model     audio                          groups
    mono      any                            every channel
    stereo    mono                           the channel
    stereo    3 (L R C)                      LR, C
    stereo    4 (L R Ls Rs)                  LR, LsRs
    stereo    5 (L R C Ls Rs)                LR, C, LsRs
    stereo    6 (5.1: L R C LFE Ls Rs)       LR, C, LFE, LsRs
    stereo    7 (6.1: L R C LFE Cs Ls Rs)    LR, C, LFE, Cs, LsRs
    stereo    8 (7.1: L R C LFE Lb Rb Ls Rs) LR, C, LFE, LbRb, LsRs
    stereo    more                           consecutive pairs; the last of an odd number alone
    others    another count                  every channel
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from umx_model.data.resampling import Resampler
from umx_model.errors import InputError
from umx_model.profile import ModelProfile

Waveform = npt.NDArray[np.float32]
Estimated = tuple[Waveform, list[Waveform]]
Item = TypeVar("Item")

# More are likelier an array with its axes swapped; seventh-order ambisonics has as many.
MAX_CHANNELS = 64
MIN_RATE = 1000

# Samples that are resampled back, and so returned, at once.
_PIECE = 65536

_PAIRS = {3: (0,), 4: (0, 2), 5: (0, 3), 6: (0, 4), 7: (0, 5), 8: (0, 4, 6)}  # first channels, for each count


class ChunkStream(Protocol):
    """One stream at the model's rate, as `umx_model.inference.chunks.Chunks`."""

    def push(self, block: Waveform, /) -> Waveform:
        """Take `[samples, channels]` and return estimates `[n >= 0, channels, targets]`."""
        ...

    def finish(self) -> Waveform:
        """Return the rest: in all, as many samples as were pushed."""
        ...


def channel_groups(channels: int, model_channels: int) -> list[list[int]]:
    """Return which channels are separated together, by the table above: always neighbours.

    >>> channel_groups(6, model_channels=2)
    [[0, 1], [2], [3], [4, 5]]
    """
    if channels == model_channels:
        return [list(range(channels))]
    if model_channels != 2 or channels == 1:
        return [[channel] for channel in range(channels)]
    first = _PAIRS.get(channels, range(0, channels - 1, 2))
    alone = set(range(channels)) - {channel + offset for channel in first for offset in (0, 1)}
    return sorted([[channel, channel + 1] for channel in first] + [[channel] for channel in alone])


class StreamSeparation:
    """The separation of one stream of audio.

        separation = StreamSeparation(separator.start, separator.profile, 48000, channels=6)
        for mixture, estimates in separation.restore(separation.estimate(blocks)):
            ...

    The two halves may run in two threads: the network in one, resampling back and what comes after in the other.

    Args:
        start: makes a stream of so many channels.
        profile: of the model.
        sample_rate: of the audio, in Hz.
        channels: of the audio.
        name: what the audio is called in messages.

    Raises:
        InputError: more channels, or a lower rate, than audio has.
    """

    def __init__(
        self,
        start: Callable[[int], ChunkStream],
        profile: ModelProfile,
        sample_rate: int,
        channels: int,
        name: str = "mixture",
    ) -> None:
        if not 1 <= channels <= MAX_CHANNELS:
            raise InputError(
                f"{name}: has {channels} channels; expected 1 to {MAX_CHANNELS} (waveforms are [samples, channels])"
            )
        if sample_rate < MIN_RATE:
            raise InputError(f"{name}: has a sample rate of {sample_rate} Hz; expected {MIN_RATE} or more")
        self._start = start
        self._groups = channel_groups(channels, profile.channels)
        self._targets = len(profile.targets)
        self._model_rate = profile.sample_rate
        self._rate = sample_rate
        self._channels = channels
        self._name = name

    def estimate(self, blocks: Iterable[Waveform]) -> Iterator[Estimated]:
        """Separate blocks of audio.

        Args:
            blocks: consecutive pieces `[samples, channels]` float32 of any lengths.

        Yields:
            Each block as it came, with the estimates `[n >= 0, channels, targets]` of each group of channels, at
            the model's rate, that it made ready; at last an empty block with the rest.

        Raises:
            InputError: a sample is NaN or infinite, or a block has another channel count.
        """
        streams = [self._start(len(group)) for group in self._groups]
        ready = [_Queue(len(group), self._targets) for group in self._groups]
        resampler = Resampler(self._rate, self._model_rate, self._channels)

        def push(waveform: Waveform) -> None:
            for group, stream, estimates in zip(self._groups, streams, ready, strict=True):
                estimates.push(stream.push(waveform[:, group[0] : group[-1] + 1]))

        def collect() -> list[Waveform]:
            samples = min(estimates.samples for estimates in ready)
            return [estimates.take(samples) for estimates in ready]

        position = 0
        for block in blocks:
            self._check(block, position)
            position += len(block)
            push(resampler.push(block))
            yield block, collect()
        push(resampler.finish())
        for stream, estimates in zip(streams, ready, strict=True):
            estimates.push(stream.finish())
        yield np.zeros((0, self._channels), np.float32), collect()

    def restore(self, estimated: Iterable[Estimated]) -> Iterator[tuple[Waveform, Waveform]]:
        """Bring what `estimate` yields back to the rate, the length and the channels of the audio.

        Yields:
            Consecutive pieces of the mixture `[n > 0, channels]` and of its estimates `[n, channels, targets]`,
            together as long as the mixture.
        """
        shape = self._channels, self._targets
        mixture, restored = _Queue(self._channels), _Queue(*shape)
        resampler = Resampler(self._model_rate, self._rate, shape[0] * shape[1])

        def ready() -> Iterator[tuple[Waveform, Waveform]]:
            samples = min(mixture.samples, restored.samples)
            if samples:
                yield mixture.take(samples), restored.take(samples)

        for block, estimates in estimated:
            mixture.push(block)
            for piece in self._pieces(estimates):
                if not np.isfinite(piece).all():
                    raise InputError(
                        f"{self._name}: the model's estimates are not finite; the audio is louder than numbers can "
                        "hold, or the model's weights are not finite"
                    )
                restored.push(resampler.push(piece.reshape(len(piece), -1)).reshape(-1, *shape))
                yield from ready()
            del estimates  # may be large, and the next ones are long in coming
        # There and back rounds up, so what is left of the estimates when the mixture is used up is nobody's.
        restored.push(resampler.finish().reshape(-1, *shape))
        yield from ready()

    def _pieces(self, estimates: list[Waveform]) -> Iterator[Waveform]:
        """Yield short pieces `[samples, channels, targets]` of the groups' estimates, put together."""
        for first in range(0, len(estimates[0]), _PIECE):
            parts = [part[first : first + _PIECE] for part in estimates]
            piece = np.empty((len(parts[0]), self._channels, self._targets), np.float32)
            for group, part in zip(self._groups, parts, strict=True):
                piece[:, group[0] : group[-1] + 1] = part
            del parts, part
            yield piece

    def _check(self, block: Waveform, position: int) -> None:
        if block.ndim != 2 or block.shape[1] != self._channels:
            raise InputError(f"{self._name}: expected blocks [samples, {self._channels}], got shape {block.shape}")
        if not np.isfinite(block).all():
            sample, channel = np.argwhere(~np.isfinite(block))[0]
            position += int(sample)
            raise InputError(
                f"{self._name}: non-finite sample ({block[sample, channel]}) at {position} "
                f"({position / self._rate:.3f} s), channel {channel + 1}; repair or cut the audio"
            )


@contextlib.contextmanager
def in_background(consume: Callable[[Iterator[Item]], None], depth: int = 1) -> Iterator[Callable[[Item], None]]:
    """Let a thread consume what this one produces, so that neither waits for the other.

        with in_background(write_all) as put:
            for item in items:
                put(item)

    Args:
        consume: called in the thread with an iterator over what is put.
        depth: items that may wait.

    Raises:
        Exception: what `consume` raised, from the next `put` or at the end.
    """
    items: queue.Queue[object] = queue.Queue(depth)
    end = object()
    failures: list[BaseException] = []

    def taken() -> Iterator[Item]:
        while True:
            try:
                # Ctrl-C in the middle of `put` can lose the call that ends this waiting, so it looks now and then.
                item = items.get(timeout=1)
            except queue.Empty:
                continue
            if item is end:
                return
            yield item  # type: ignore[misc]

    def run() -> None:
        source = taken()
        try:
            consume(source)
        except BaseException as failure:
            failures.append(failure)
            for _ in source:  # so that no `put` waits for ever
                pass

    def put(item: Item) -> None:
        if failures:
            raise failures[0]
        items.put(item)

    thread = threading.Thread(target=run, name="umx-pro-background", daemon=True)
    try:
        thread.start()  # Ctrl-C may come in the middle of this
        yield put
    finally:
        items.put(end)
        if thread.is_alive():
            thread.join()
    if failures:
        raise failures[0]


class _Queue:
    """Audio that waits for its counterpart: blocks `[samples, *shape]` in, the first so many samples out."""

    def __init__(self, *shape: int) -> None:
        self._empty = np.zeros((0, *shape), np.float32)
        self._blocks: deque[Waveform] = deque()
        self.samples = 0

    def push(self, block: Waveform) -> None:
        self._blocks.append(block)
        self.samples += len(block)

    def take(self, samples: int) -> Waveform:
        self.samples -= samples
        parts = [self._empty]
        while samples:
            block = self._blocks.popleft()
            if len(block) > samples:
                self._blocks.appendleft(block[samples:])
                block = block[:samples]
            parts.append(block)
            samples -= len(block)
        return parts[-1] if len(parts) <= 2 else np.concatenate(parts)
