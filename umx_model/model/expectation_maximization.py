"""Multichannel Wiener filtering by expectation maximization, vectorised over frames, bins and targets.

The equations are those of norbert (`norbert/__init__.py`, v0.2.1; Nugraha, Liutkus & Vincent,
"Multichannel audio source separation with deep neural networks", 2016), one function each:

    v_j = mean_c |y_jc|^2                                power spectral density
    R_j = sum_t y_j y_j^H / (eps + sum_t v_j)            spatial covariance, per bin
    Cxx = sum_j v_j R_j + sqrt(eps) I                    model of the mixture
    y_j = v_j R_j Cxx^-1 x                               Wiener filter

All of it runs in float64: two equal channels make Cxx nearly singular, and its determinant in float32
is then noise (Open-Unmix issue 127).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="umx_model")
class ExpectationMaximization(keras.layers.Layer):
    """Refines magnitude estimates of the targets into complex ones that sum to the mixture.

    Args:
        niter: EM iterations; 0 returns the initial estimates.
        window_frames: frames that are refined together. Windows are independent, each with its own
            spatial covariances, which bounds the memory; None takes all frames at once.
        softmask: start from a soft mask on the mixture instead of the magnitudes with its phase.
        residual: add a target that takes what the initial estimates leave of the mixture.
        eps: regularisation. It decides how much energy quiet bins may have and so the result:
            norbert takes the machine epsilon of the input's type, Open-Unmix 1e-10.

    Input shape:
        the mixture's STFT `[batch, frames, bins, channels]`, complex64 or complex128, and
        magnitudes `[batch, frames, bins, channels or 1, targets]`, float32 or float64.

    Output shape:
        `[batch, frames, bins, channels, targets (+ 1 with residual)]`, of the STFT's type. From one
        iteration on, targets sum to the mixture, but for what `sqrt(eps)` takes from quiet bins:
        at most about 1e-3 of the window's peak (5e-3 where that is between 1 and 10).

    Windows with a peak above 10 are scaled to 10 while they are refined, as in norbert; so are those
    with a peak below 1 (a sine of -60 dB at the usual window), which norbert lets drown in `sqrt(eps)`.
    """

    def __init__(
        self,
        niter: int = 1,
        window_frames: int | None = 300,
        softmask: bool = False,
        residual: bool = False,
        eps: float = 1e-10,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if niter < 0:
            raise ValueError(f"niter must be at least 0, got {niter}")
        if window_frames is not None and window_frames < 1:
            raise ValueError(f"window_frames must be at least 1 or None, got {window_frames}")
        if eps <= 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.niter = niter
        self.window_frames = window_frames
        self.softmask = softmask
        self.residual = residual
        self.eps = eps

    def call(self, mixture: tf.Tensor, magnitudes: tf.Tensor) -> tf.Tensor:
        """Estimate the targets' STFTs."""
        if not self.niter:
            return self._initial_estimates(mixture, tf.cast(magnitudes, mixture.dtype.real_dtype))
        if self.window_frames is None:
            return self._refine(mixture, magnitudes)

        frames = tf.shape(mixture)[1]
        windows = tf.maximum(1, -(-frames // self.window_frames))
        # Silent frames add nothing to any sum over frames, so the last window may be filled up with them.
        missing = windows * self.window_frames - frames

        def split(x: tf.Tensor) -> tf.Tensor:
            x = tf.pad(x, [[0, 0], [0, missing]] + [[0, 0]] * (x.shape.rank - 2))
            x = tf.reshape(x, tf.concat([[tf.shape(x)[0], windows, self.window_frames], tf.shape(x)[2:]], axis=0))
            return tf.einsum("bw...->wb...", x)

        def refine(window: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            return self._refine(*window)

        signature = tf.TensorSpec([None, self.window_frames, *self._estimate_shape(mixture, magnitudes)], mixture.dtype)
        estimates = tf.map_fn(
            refine, (split(mixture), split(magnitudes)), parallel_iterations=1, fn_output_signature=signature
        )
        estimates = tf.einsum("wb...->bw...", estimates)
        shape = tf.shape(estimates)
        estimates = tf.reshape(estimates, tf.concat([[shape[0], -1], shape[3:]], axis=0))[:, :frames]
        return tf.ensure_shape(estimates, [None, None, *self._estimate_shape(mixture, magnitudes)])

    def compute_output_spec(self, mixture: Any, magnitudes: Any) -> keras.KerasTensor:
        """Return the shape and dtype of the estimates."""
        shape = (*mixture.shape[:2], *self._estimate_shape(mixture, magnitudes))
        return keras.KerasTensor(shape, dtype=mixture.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {
            **super().get_config(),
            "niter": self.niter,
            "window_frames": self.window_frames,
            "softmask": self.softmask,
            "residual": self.residual,
            "eps": self.eps,
        }

    def _estimate_shape(self, mixture: Any, magnitudes: Any) -> tuple[int | None, ...]:
        targets = magnitudes.shape[4]
        return (*mixture.shape[2:], targets + 1 if self.residual and targets is not None else targets)

    def _refine(self, mixture: tf.Tensor, magnitudes: tf.Tensor) -> tf.Tensor:
        """Run the iterations on one window."""
        x = tf.cast(mixture, tf.complex128)
        y = self._initial_estimates(x, tf.cast(magnitudes, tf.float64))
        peak = tf.reduce_max(tf.abs(x), axis=[1, 2, 3])[:, tf.newaxis, tf.newaxis, tf.newaxis]
        scale = tf.where((peak > 10) | ((peak > 0) & (peak < 1)), peak / 10, 1)
        scale = tf.cast(scale, tf.complex128)
        x, y = x / scale, y / scale[..., tf.newaxis]
        for _ in range(self.niter):
            v = power_spectral_density(y)
            y = wiener_filter(x, v, spatial_covariance(y, v, self.eps), self.eps)
        return tf.cast(y * scale[..., tf.newaxis], mixture.dtype)

    def _initial_estimates(self, x: tf.Tensor, magnitudes: tf.Tensor) -> tf.Tensor:
        """Give the magnitudes a phase, and the remainder a target of its own where asked."""
        if self.softmask:
            gains = magnitudes / (self.eps + tf.reduce_sum(magnitudes, axis=-1, keepdims=True))
            y = x[..., tf.newaxis] * tf.cast(gains, x.dtype)
        else:
            level = tf.abs(x)
            phase = tf.where(level > 0, x / tf.cast(tf.where(level > 0, level, 1), x.dtype), 1)
            y = tf.cast(magnitudes, x.dtype) * phase[..., tf.newaxis]
        if self.residual:
            y = tf.concat([y, x[..., tf.newaxis] - tf.reduce_sum(y, axis=-1, keepdims=True)], axis=-1)
        return y


def power_spectral_density(y: tf.Tensor) -> tf.Tensor:
    """Return v [batch, frames, bins, targets] of estimates y [batch, frames, bins, channels, targets]."""
    return tf.reduce_mean(_power(y), axis=3)


def spatial_covariance(y: tf.Tensor, v: tf.Tensor, eps: float) -> tf.Tensor:
    """Return R [batch, bins, channels, channels, targets], Hermitian over the channel axes."""
    weight = tf.cast(eps + tf.reduce_sum(v, axis=1), y.dtype)[:, :, tf.newaxis, tf.newaxis]
    channels = y.shape[3]
    # A row at a time: the outer product of all channels at once would be the largest tensor here.
    rows = [tf.reduce_sum(y[:, :, :, c : c + 1] * tf.math.conj(y), axis=1) for c in range(channels)]
    return tf.stack(rows, axis=2) / weight


def wiener_filter(x: tf.Tensor, v: tf.Tensor, r: tf.Tensor, eps: float) -> tf.Tensor:
    """Return the estimates y [batch, frames, bins, channels, targets] that the model v, R makes of x."""
    v = tf.cast(v, x.dtype)
    channels = x.shape[3]
    # Cxx [batch, frames, bins, channels, channels]; the product sums over targets.
    cxx = tf.einsum("bfkj,bkcdj->bfkcd", v, r) + eps**0.5 * tf.eye(channels, dtype=x.dtype)
    z = _solve(cxx, x, eps)
    filtered = tf.add_n([r[:, tf.newaxis, :, :, d] * z[:, :, :, d, tf.newaxis, tf.newaxis] for d in range(channels)])
    return v[:, :, :, tf.newaxis] * filtered


def _solve(a: tf.Tensor, b: tf.Tensor, eps: float) -> tf.Tensor:
    """Return a^-1 b for Hermitian a [..., n, n] and b [..., n]; in closed form up to two channels."""
    channels = b.shape[-1]
    if channels == 1:
        return b / (a[..., 0] + eps)  # norbert regularises this case once more
    if channels == 2:
        a00, a01, a11 = a[..., 0, 0], a[..., 0, 1], a[..., 1, 1]
        determinant = a00 * a11 - tf.cast(_power(a01), a.dtype)
        z = [a11 * b[..., 0] - a01 * b[..., 1], a00 * b[..., 1] - tf.math.conj(a01) * b[..., 0]]
        return tf.stack(z, axis=-1) / determinant[..., tf.newaxis]
    return tf.linalg.solve(a, b[..., tf.newaxis])[..., 0]


def _power(z: tf.Tensor) -> tf.Tensor:
    return tf.square(tf.math.real(z)) + tf.square(tf.math.imag(z))
