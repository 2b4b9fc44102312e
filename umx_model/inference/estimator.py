"""The arithmetic of a separation, on pieces that fit in memory; `Chunks` decides which pieces.

    samples --spectrum--> STFT --features--> features --waveforms--> waveforms that overlap

Axes are in the order that the Fourier transform leaves: channels, frames, bins.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from umx_model.model import expectation_maximization as em
from umx_model.model.network_input import network_input
from umx_model.model.umx import check_softmask
from umx_model.profile import ModelProfile


class Network(Protocol):
    """A joint spectral filter in two steps, so that masks are made when they are used, a window at a time."""

    def features(self, magnitude: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Magnitudes `[batch, frames, channels, bins]` -> features `[targets, batch, frames, width]`, and a state.

        The channels are those of `network_input`.
        """

    def masks(self, features: tf.Tensor) -> tf.Tensor:
        """Features `[targets, ..., width]` -> masks `[targets, ..., channels, bins]`."""


class AnyNetwork:
    """A joint spectral filter of any architecture; its features are the masks.

    Args:
        spectral_filter: magnitudes `[batch, frames, bins, channels]`, those of `network_input`, ->
            estimates `[batch, frames, bins, channels, targets]`.
        profile: of the model.
    """

    def __init__(self, spectral_filter: Any, profile: ModelProfile) -> None:
        self._spectral_filter = spectral_filter
        self._split = [profile.channels, profile.bins]

    def features(self, magnitude: tf.Tensor) -> tuple[tf.Tensor, None]:
        """Run the filter; see `Network`."""
        magnitude = tf.transpose(magnitude, [0, 1, 3, 2])
        estimates = self._spectral_filter(magnitude)
        magnitude = magnitude[..., : self._split[0]]
        masks = tf.transpose(tf.math.divide_no_nan(estimates, magnitude[..., tf.newaxis]), [4, 0, 1, 3, 2])
        return tf.reshape(masks, tf.concat([tf.shape(masks)[:3], [int(np.prod(self._split))]], axis=0)), None

    def masks(self, features: tf.Tensor) -> tf.Tensor:
        """Give the channels and bins their axes; see `Network`."""
        return tf.reshape(features, tf.concat([tf.shape(features)[:-1], self._split], axis=0))


class Estimator:
    """The steps of a separation.

    Args:
        network: what estimates the masks.
        profile: of the model.
        niter: EM iterations; 0 gives the magnitudes the mixture's phase.
        softmask: start EM from a soft mask.
        eps: EM's regularisation.

    Raises:
        InputError: a soft mask for one target.
    """

    def __init__(
        self, network: Network, profile: ModelProfile, niter: int, softmask: bool = False, eps: float = 1e-10
    ) -> None:
        check_softmask(profile, softmask)
        self.profile = profile
        self._network = network
        self._niter = niter
        self._softmask = softmask
        self._eps = eps
        n_fft, hop = profile.n_fft, profile.hop_length
        self.window = np.hanning(n_fft + 1)[:-1]
        # Dividing by the summed squared windows, as the inverse does, is periodic but for both ends.
        squares = np.zeros(-(-n_fft // hop) * hop)
        squares[:n_fft] = self.window**2
        norm = np.sum(squares.reshape(-1, hop), axis=0)
        self.norm = np.tile(norm, len(squares) // hop)[:n_fft]
        self._synthesis_window = (self.window / self.norm).astype(np.float32)
        bins, channels = profile.bins, profile.channels

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32)], autograph=False)
        def spectrum(samples: tf.Tensor) -> tf.Tensor:
            frames = tf.signal.frame(samples, n_fft, hop)
            return tf.signal.rfft(frames * self.window.astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, None, bins], tf.complex64)], autograph=False)
        def features(stft: tf.Tensor) -> tf.Tensor:
            # A mono stream through a stereo network is a centred one.
            stft = tf.ensure_shape(tf.tile(stft, [channels // tf.shape(stft)[0], 1, 1]), [channels, None, bins])
            magnitude = tf.transpose(network_input(stft, profile, axis=0), [1, 0, 2])
            return network.features(magnitude[tf.newaxis])[0][:, 0]

        self.spectrum = spectrum
        self.features = features
        # A function for each channel count: XLA compiles for known shapes.
        self._waveforms = {count: self._make_waveforms(count) for count in {1, channels}}

    def waveforms(self, stft: tf.Tensor, features: tf.Tensor) -> npt.NDArray[np.float32]:
        """Refine one EM window and return to the time domain.

        Args:
            stft: the mixture's `[channels, frames, bins]` complex64, at most `window_frames` frames.
            features: `[targets, frames, width]`.

        Returns:
            Waveforms `[targets, channels, (frames - 1) * hop_length + n_fft]` to be overlapped and added.
        """
        # XLA compiles for one shape; silence adds nothing to any sum over frames, nor to the waveforms.
        frames = stft.shape[1]
        missing = [[0, 0], [0, self.profile.window_frames - frames], [0, 0]]
        if frames < self.profile.window_frames:
            stft, features = tf.pad(stft, missing), tf.pad(features, missing)
        waveforms: npt.NDArray[np.float32] = self._waveforms[stft.shape[0]](stft, features).numpy()
        return waveforms[..., : (frames - 1) * self.profile.hop_length + self.profile.n_fft]

    def _make_waveforms(self, channels: int) -> Any:
        """Return the function of `waveforms` for so many channels and a full window."""
        profile, eps = self.profile, self._eps
        signature = [
            tf.TensorSpec([channels, profile.window_frames, profile.bins], tf.complex64),
            tf.TensorSpec([len(profile.targets), profile.window_frames, None], tf.float32),
        ]
        # Each equation is a program of its own: in a single one, XLA would have them repeat each other's
        # work. It cannot solve the systems of more than two channels.
        jit = functools.partial(tf.function, jit_compile=channels <= 2, autograph=False)
        initial = jit(_estimates)
        covariance = jit(lambda x, source: _spatial_covariance(x, source, eps))
        whitened = jit(lambda x, source, r: em.whitened(x, _estimates(x, source), r, eps))
        wiener = jit(lambda x, source, r, z: em.wiener_filter(_estimates(x, source), r, z))
        overlapped = jit(
            lambda frames, scale: _overlap_and_add(frames * (scale * self._synthesis_window), profile.hop_length)
        )

        @tf.function(input_signature=signature, autograph=False)
        def waveforms(stft: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
            masks = self._network.masks(features)
            if channels < profile.channels:
                masks = tf.reduce_mean(masks, axis=2, keepdims=True)
            if self._softmask:
                magnitudes = masks * tf.transpose(tf.abs(stft), [1, 0, 2])
                masks = magnitudes / (eps + tf.reduce_sum(magnitudes, axis=0))
            if len(profile.targets) == 1 and self._niter:
                masks = tf.concat([masks, 1 - masks], axis=0)  # as UMX does: the rest is a target, too
            masks = tf.ensure_shape(masks, [masks.shape[0], profile.window_frames, channels, profile.bins])
            x, scale = em.normalised(stft)
            estimates = masks
            for _ in range(self._niter):
                r = covariance(x, estimates)
                estimates = wiener(x, estimates, r, whitened(x, estimates, r))
            if not self._niter:
                estimates = initial(x, masks)
            return overlapped(tf.signal.irfft(estimates[: len(profile.targets)], [profile.n_fft]), scale)

        return waveforms


def _estimates(x: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
    """Return estimates `[targets, channels, frames, bins]`, given them or masks `[targets, frames, channels, bins]`."""
    if source.dtype.is_complex:
        return source
    masks = tf.transpose(source, [0, 2, 1, 3])
    return tf.complex(masks * tf.math.real(x), masks * tf.math.imag(x))


def _spatial_covariance(x: tf.Tensor, source: tf.Tensor, eps: float) -> tf.Tensor:
    """`em.spatial_covariance`, adding frame by frame, along the memory; XLA's own sums would go across it."""

    def products(frame: tf.Tensor) -> tf.Tensor:
        # Masks have their frames elsewhere than estimates.
        piece = source[:, :, frame, tf.newaxis] if source.dtype.is_complex else source[:, frame, tf.newaxis]
        return em.outer_products(_estimates(x[:, frame, tf.newaxis], piece))

    _, total = tf.while_loop(
        lambda frame, total: frame < x.shape[1],
        lambda frame, total: (frame + 1, total + products(frame)),
        (1, products(0)),
    )
    return em.covariance_of(total, eps)


def _overlap_and_add(frames: tf.Tensor, hop: int) -> tf.Tensor:
    """`tf.signal.overlap_and_add`, as a sum that XLA makes one pass of."""
    *outer, count, length = frames.shape
    parts = -(-length // hop)
    frames = tf.pad(frames, [[0, 0]] * (len(outer) + 1) + [[0, parts * hop - length]])
    frames = tf.reshape(frames, [*outer, count, parts, hop])
    shifted = [
        tf.pad(frames[..., part, :], [[0, 0]] * len(outer) + [[part, parts - 1 - part], [0, 0]])
        for part in range(parts)
    ]
    return tf.reshape(tf.add_n(shifted), [*outer, (count + parts - 1) * hop])[..., : (count - 1) * hop + length]
