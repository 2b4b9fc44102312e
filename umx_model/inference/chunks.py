r"""Separating a stream at the model's rate: which frames the network hears together, and what is kept of them.

    frames     |---------------------------------------------------------------|
    chunk 0    |#####################\. . .|                                         # masks kept
    chunk 1             |. . . . . . /######################\. . .|                  . context
    chunk 2                                    |. . . . . . /##################|     / cross-fade
    windows    |------|------|------|------|------|------|------|------|------|     of EM

The network runs on chunks, each with real audio on both sides as context, and masks of neighbouring
chunks are cross-faded. Everything after that is as without chunks: EM windows start at the same frames,
and the inverse transform runs on. So memory is bounded, borders cannot click, and chunks differ from the
whole only in what the network no longer hears.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from umx_model.inference.estimator import Estimator
from umx_model.model.stft import centred_frames
from umx_model.profile import ModelProfile

Waveform = npt.NDArray[np.float32]

# EM windows at a time: XLA runs an equation on one core.
_WORKERS = 2


class ChunkLayout:
    """Lengths of chunks, in STFT frames.

    Args:
        profile: of the model.
        chunk_seconds: audio that the network hears at once, besides the context; rounded to whole EM
            windows, at least one, and at least an STFT window.
        context_seconds: audio on either side of a chunk that the network hears and whose masks are not used.
        crossfade_seconds: how long masks of one chunk pass over into those of the next.

    Attributes:
        step: frames from one chunk to the next.
        context: frames of context.
        fade: frames of a cross-fade.
        longest: an upper bound of the frames that the network gets at once.
    """

    def __init__(
        self,
        profile: ModelProfile,
        chunk_seconds: float = 60.0,
        context_seconds: float = 2.0,
        crossfade_seconds: float = 0.5,
    ) -> None:
        def frames(seconds: float) -> int:
            return math.ceil(seconds * profile.sample_rate / profile.hop_length)

        least = math.ceil(profile.n_fft / (profile.hop_length * profile.window_frames))
        self.step = max(least, round(frames(chunk_seconds) / profile.window_frames)) * profile.window_frames
        self.context = frames(context_seconds)
        self.fade = min(frames(crossfade_seconds), self.step)
        self.longest = self.step + max(self.fade, self.context) + self.context + profile.n_fft // profile.hop_length + 2


class Chunks:
    """One stream.

        chunks = Chunks(estimator, layout, channels=2)
        for block in blocks:
            estimates = chunks.push(block)
        estimates = chunks.finish()

    Args:
        estimator: what separates.
        layout: lengths of chunks.
        channels: 1, or the model's; EM on 1 is one-channel, whatever the model has.
    """

    def __init__(self, estimator: Estimator, layout: ChunkLayout, channels: int) -> None:
        self._estimator = estimator
        self._layout = layout
        profile = estimator.profile
        self._hop, self._n_fft = profile.hop_length, profile.n_fft
        self._blocks: list[Waveform] = []
        self._first = 0  # sample that the blocks begin with
        self._received = 0  # samples
        self._frame = 0  # that the next chunk begins with
        self._next: tf.Tensor | None = None  # what the last chunk says of the next one's first frames
        # The end of what is separated, where windows of the next chunk are still to be added.
        self._overlap = np.zeros((len(profile.targets), channels, self._n_fft - self._hop), np.float32)

    def push(self, block: Waveform) -> Waveform:
        """Take the next samples, `[samples, channels]` float32, and return what is ready, `[n, channels, targets]`."""
        self._blocks.append(block)
        self._received += len(block)
        layout, ready = self._layout, []
        while True:
            kept = self._frame + layout.step
            heard = kept + max(layout.fade, layout.context)
            if self._received < (heard - 1) * self._hop + self._n_fft // 2:
                break
            waveforms = self._separate(heard, kept)
            done = layout.step * self._hop
            self._overlap = waveforms[..., done:].copy()
            ready.append(self._after_padding(waveforms[..., :done]))
            self._advance(kept)
        return _samples_first(ready, self._overlap)

    def finish(self) -> Waveform:
        """Return the rest: in all, as many samples as were pushed."""
        if not self._received:
            return _samples_first([], self._overlap)
        frames = centred_frames(self._received, self._n_fft, self._hop)
        waveforms = self._separate(frames, frames)
        tail = self._n_fft - self._hop
        waveforms[..., -tail:] *= self._edge_gain(frames * self._hop, tail, frames)
        start = self._frame * self._hop - self._n_fft // 2
        return _samples_first([self._after_padding(waveforms)[..., : self._received - max(0, start)]], self._overlap)

    def _separate(self, heard: int, kept: int) -> Waveform:
        """Separate the frames up to `kept`, with those up to `heard` as context.

        Returns:
            `[targets, channels, samples]` from the first sample of the chunk's first frame on, with what the
            chunk before left, up to the last sample of the last frame.
        """
        layout, estimator = self._layout, self._estimator
        start = max(0, self._frame - layout.context)
        stft = estimator.spectrum(self._samples(start, heard))
        features = estimator.features(stft)[:, self._frame - start :]
        stft = stft[:, self._frame - start :]
        if self._next is not None:
            fade = min(layout.fade, features.shape[1])
            ramp = ((np.arange(fade, dtype=np.float32) + 0.5) / layout.fade)[:, np.newaxis]
            faded = self._next[:, :fade] + ramp * (features[:, :fade] - self._next[:, :fade])
            features = tf.concat([faded, features[:, fade:]], axis=1)
        frames, window = kept - self._frame, estimator.profile.window_frames
        self._next = features[:, frames : frames + layout.fade]

        waveforms = np.zeros((*self._overlap.shape[:2], (frames - 1) * self._hop + self._n_fft), np.float32)
        waveforms[..., : self._overlap.shape[2]] = self._overlap

        def separated(first: int) -> Waveform:
            last = min(first + window, frames)
            return estimator.waveforms(stft[:, first:last], features[:, first:last])

        starts = range(0, frames, window)
        with ThreadPoolExecutor(_WORKERS) as pool:
            for first, waveform in zip(starts, pool.map(separated, starts), strict=True):
                position = first * self._hop
                waveforms[..., position : position + waveform.shape[2]] += waveform
        if self._frame == 0:
            count = min(self._n_fft, frames * self._hop)
            waveforms[..., :count] *= self._edge_gain(0, count, frames)
        return waveforms

    def _samples(self, start: int, stop: int) -> Waveform:
        """Return the samples `[channels, samples]` of the frames `start` to `stop`, reflected at both ends."""
        half = self._n_fft // 2
        first, last = start * self._hop - half, (stop - 1) * self._hop + half
        samples = np.concatenate(self._blocks).T
        self._blocks = [samples.T]
        before, after = max(0, -first), max(0, last - self._received)
        if before or after:
            samples = np.pad(samples, [(0, 0), (before, after)], mode="reflect")
        offset = self._first - before
        return np.ascontiguousarray(samples[:, first - offset : last - offset])

    def _advance(self, frame: int) -> None:
        """Go on to the next chunk, and forget the samples that it does not need."""
        self._frame = frame
        # One window more than its first frame reaches back: the reflection at the end may want it.
        needed = max(0, (frame - self._layout.context) * self._hop - 2 * self._n_fft)
        self._blocks = [self._blocks[0][needed - self._first :].copy()]
        self._first = needed

    def _after_padding(self, waveforms: Waveform) -> Waveform:
        """Leave out the padding before the first sample."""
        return waveforms[..., self._n_fft // 2 :] if self._frame == 0 else waveforms

    def _edge_gain(self, start: int, count: int, frames: int) -> Waveform:
        """Return what makes up for the windows missing at an end, for `count` samples from (padded) sample `start`.

        The estimator divides by the sum of squared windows inside a stream; at its ends there are fewer, `frames`.
        """
        estimator = self._estimator
        positions = start + np.arange(count)
        offsets = positions[:, np.newaxis] - self._hop * np.arange(
            max(0, (start - self._n_fft) // self._hop + 1), min(frames, (start + count) // self._hop + 1)
        )
        inside = (offsets >= 0) & (offsets < self._n_fft)
        norm = np.sum(np.where(inside, estimator.window[np.where(inside, offsets, 0)] ** 2, 0), axis=1)
        gain = np.divide(estimator.norm[positions % self._hop], norm, where=norm > 1e-11, out=np.zeros(count))
        return gain.astype(np.float32)


def _samples_first(pieces: list[Waveform], like: Waveform) -> Waveform:
    """Join pieces `[targets, channels, samples]` to `[samples, channels, targets]`, a view of such memory."""
    joined = pieces[0] if len(pieces) == 1 else np.concatenate([like[..., :0], *pieces], axis=2)
    return joined.transpose(2, 1, 0)
