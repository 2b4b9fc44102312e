"""Separating live: blocks of any size in, blocks of the same size out, later by a fixed latency.

The latency is `n_fft - 1` samples (93 ms at the defaults) whatever the sizes of the blocks: a sample is
finished once the last STFT window that covers it is, and windows end up to a hop after they could.

    separator = StreamingSeparator("model/")
    for block in microphone:                  # [samples, channels]
        play(separator.push(block))           # [samples, channels, targets], `latency` samples later
    play(separator.flush())                   # the last `latency` samples

All that `push` and `flush` return, without its first `latency` samples, is what `UMX` with niter 0 makes of
the whole. Only causal models can do so: profiles with `unidirectional`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

from umx_model.errors import InputError
from umx_model.model.folded import FoldedBLSTM
from umx_model.model.folder import read_model
from umx_model.model.umx import UMX
from umx_model.pretrained import locate_model

Waveform = npt.NDArray[np.float32]

# Frames that run at once where a block brings many: bounds the memory that a long block takes.
_FRAMES = 64


@dataclass(frozen=True)
class StreamState:
    """A stream at one moment. Nothing in it is changed in place, so states may be kept and compared.

    Attributes:
        received: samples pushed.
        frames: STFT frames done.
        recent: the newest samples, `[n, channels]`; as soon as there are frames, `n_fft + 1` of them,
            the reflection before the first sample included.
        overlap: sum of the windowed frames where more are to come, `[n_fft, channels, targets]`.
        norm: sum of their squared windows, `[n_fft]`.
        ready: finished estimates that were not returned, `[n, channels, targets]`.
        network: the recurrent layers' state.
    """

    received: int
    frames: int
    recent: Waveform
    overlap: Waveform
    norm: npt.NDArray[np.float32]
    ready: Waveform
    network: Any


class StreamingSeparator:
    """Separates one stream, block by block, without EM.

    Args:
        model: a model in memory, a known name, a model folder, a weights file or a checkpoint.
        softmask: share the mixture among the targets, so that they sum to it; as in the profile by
            default. The profile's `niter` is not used: EM needs the future.

    Raises:
        InputError: no such model, or one whose network is not causal.
    """

    def __init__(self, model: UMX | str | os.PathLike[str], softmask: bool | None = None) -> None:
        if not isinstance(model, UMX):
            name = os.fspath(model)
            model = read_model(locate_model(name))[0]
        else:
            name = "model"
        profile = model.profile
        if not profile.unidirectional:
            raise InputError(
                f"{name}: its network also runs backwards in time, which a stream cannot; "
                "train a model with the setting model.unidirectional=true"
            )
        self.profile = profile
        self._stft = model.stft
        self._square = np.square(self._stft.window(tf.float32).numpy())
        try:
            network = FoldedBLSTM(model.spectral_filter)
        except ValueError:
            raise InputError(
                f"{name}: its architecture is {profile.architecture!r}; only 'blstm' can be streamed"
            ) from None
        self._network = network  # the compiled step does not keep its weights
        self._step = _make_step(network, model, profile.softmask if softmask is None else softmask)
        channels, targets = profile.channels, len(profile.targets)
        self._initial = StreamState(
            received=0,
            frames=0,
            recent=np.zeros([0, channels], np.float32),
            overlap=np.zeros([profile.n_fft, channels, targets], np.float32),
            norm=np.zeros([profile.n_fft], np.float32),
            ready=np.zeros([self.latency, channels, targets], np.float32),
            network=network.initial_state(1),
        )
        self._state = self._initial

    @property
    def latency(self) -> int:
        """Samples by which estimates come later than the mixture."""
        return self.profile.n_fft - 1

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the estimates, in the profile's order."""
        return self.profile.targets

    @property
    def sample_rate(self) -> int:
        """Rate in Hz that blocks must have."""
        return self.profile.sample_rate

    @property
    def channels(self) -> int:
        """Channels that blocks must have."""
        return self.profile.channels

    def push(self, block: npt.ArrayLike) -> Waveform:
        """Take the next samples and return as many estimates, of `latency` samples before.

        Args:
            block: floating-point `[samples, channels]` in [-1, 1], from 0 samples up.

        Returns:
            float32 `[samples, channels, targets]`; zeros before the stream's first sample.

        Raises:
            InputError: not such a block, or non-finite samples; the stream stays as it was.
        """
        samples = self._check(block)
        state, half = self._state, self.profile.n_fft // 2
        received = state.received + len(samples)
        signal = np.concatenate([state.recent, samples])
        frames = state.frames
        if received > half:
            frames = 1 + (received - half) // self.profile.hop_length
            if state.frames == 0:
                signal = np.pad(signal, [(half, 0), (0, 0)], mode="reflect")
        state = self._run(state, signal, received, frames)
        estimates, ready = state.ready[: len(samples)].copy(), state.ready[len(samples) :]
        recent = signal[-(self.profile.n_fft + 1) :].copy()
        self._state = replace(state, received=received, recent=recent, ready=ready)
        return estimates

    def flush(self) -> Waveform:
        """End the stream, so that the next block begins another.

        Returns:
            the last `latency` samples, float32 `[latency, channels, targets]`.
        """
        state, half, hop = self._state, self.profile.n_fft // 2, self.profile.hop_length
        if state.received:
            spec = keras.KerasTensor((1, state.received, self.channels))
            frames = self._stft.compute_output_spec(spec).shape[1]
            end = (frames - 1) * hop + half
            padding = [(0 if state.frames else half, end - state.received), (0, 0)]
            state = self._run(state, np.pad(state.recent, padding, mode="reflect"), end, frames)
        rest = _normalized(state.overlap, state.norm)[max(0, half - state.frames * hop) :]
        self.reset()
        return np.concatenate([state.ready, rest])[: self.latency]

    def reset(self) -> None:
        """Forget the stream: the next block begins another."""
        self._state = self._initial

    def state(self) -> StreamState:
        """Return the stream as it is, to be restored later, in this separator or in another of the same model."""
        return self._state

    def restore(self, state: StreamState) -> None:
        """Continue from a state."""
        self._state = state

    def _check(self, block: npt.ArrayLike) -> Waveform:
        samples = np.asarray(block)
        if samples.ndim != 2 or samples.shape[1] != self.channels:
            raise InputError(f"block: expected [samples, {self.channels} channels], got {list(samples.shape)}")
        if not np.issubdtype(samples.dtype, np.floating):
            raise InputError(f"block: expected floating-point samples in [-1, 1], got {samples.dtype}")
        if not np.isfinite(samples).all():
            raise InputError("block: holds non-finite samples (NaN or infinity)")
        return samples.astype(np.float32, copy=False)

    def _run(self, state: StreamState, signal: Waveform, end: int, frames: int) -> StreamState:
        """Run the frames up to number `frames`, of a signal whose last sample is number `end - 1`."""
        count, half, hop = frames - state.frames, self.profile.n_fft // 2, self.profile.hop_length
        if count == 0:
            return state
        start = len(signal) - end + state.frames * hop - half
        windows = sliding_window_view(signal[start:], self.profile.n_fft, axis=0)[::hop][:count]
        overlap, norm, network, ready = state.overlap.copy(), state.norm.copy(), state.network, [state.ready]
        position = state.frames * hop - half
        for first in range(0, count, _FRAMES):
            pieces, network = self._step(tf.constant(windows[first : first + _FRAMES]), network)
            for piece in pieces.numpy():
                overlap += piece
                norm += self._square
                ready.append(_normalized(overlap[:hop], norm[:hop])[max(0, -position) :])
                position += hop
                for sums in (overlap, norm):
                    sums[:-hop] = sums[hop:]
                    sums[-hop:] = 0
        return replace(state, frames=frames, overlap=overlap, norm=norm, ready=np.concatenate(ready), network=network)


def _make_step(network: FoldedBLSTM, model: UMX, softmask: bool) -> Any:
    """Compile what happens to frames.

    Returns:
        (cut samples float32 `[frames, channels, n_fft]`, network's state) -> (windowed estimates
        `[frames, n_fft, channels, targets]`, next state).
    """
    n_fft, window = model.profile.n_fft, model.stft.window(tf.float32)
    eps = model.expectation_maximization.eps
    pieces = tf.TensorSpec([None, model.profile.channels, n_fft], tf.float32)
    states = tf.nest.map_structure(tf.TensorSpec.from_tensor, network.initial_state(1))

    @tf.function(input_signature=[pieces, states])
    def step(pieces: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        spectrum = tf.signal.rfft(pieces * window)  # [frames, channels, bins]
        magnitude = tf.abs(spectrum)
        masks, state = network(magnitude[tf.newaxis], state)
        masks = masks[:, 0]  # [targets, frames, channels, bins]
        if softmask:
            masks /= eps + magnitude * tf.reduce_sum(masks, axis=0)
            masks *= magnitude
        estimates = tf.signal.irfft(tf.cast(masks, tf.complex64) * spectrum, [n_fft]) * window
        return tf.transpose(estimates, [1, 3, 2, 0]), state

    return step.get_concrete_function()  # calling it saves what choosing among several traces costs


def _normalized(overlap: Waveform, norm: npt.NDArray[np.float32]) -> Waveform:
    """Undo the windows, as `ISTFTLayer` does: samples that no window reaches are zero."""
    return overlap / np.where(norm > 1e-11, norm, np.inf)[:, np.newaxis, np.newaxis]
