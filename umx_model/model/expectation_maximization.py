"""Multichannel Wiener filtering by expectation maximization, vectorised over frames, bins and targets.

The equations are those of norbert (`norbert/__init__.py`, v0.2.1; Nugraha, Liutkus & Vincent,
"Multichannel audio source separation with deep neural networks", 2016), one function each:

    v_j = mean_c |y_jc|^2                                power spectral density
    R_j = sum_t y_j y_j^H / (eps + sum_t v_j)            spatial covariance, per bin
    Cxx = sum_j v_j R_j + sqrt(eps) I                    model of the mixture
    z   = Cxx^-1 x                                       the mixture, whitened by it
    y_j = v_j R_j z                                      Wiener filter

Covariances and the inverse are float64: two equal channels make Cxx nearly singular, and its
determinant in float32 is then noise (Open-Unmix issue 127).

In the functions, bins are the last axis and the arithmetic is on real and imaginary parts: plain
vector operations on contiguous memory, which XLA fuses into one pass per equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

Parts = Sequence[tf.Tensor]


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
        x, scale = normalised(tf.einsum("bfkc->bcfk", x))
        y = tf.einsum("bfkcj->bjcfk", y) / tf.cast(scale[:, tf.newaxis], x.dtype)
        for _ in range(self.niter):
            r = spatial_covariance(y, self.eps)
            y = wiener_filter(y, r, whitened(x, y, r, self.eps))
        y *= tf.cast(scale[:, tf.newaxis], x.dtype)
        return tf.cast(tf.einsum("bjcfk->bfkcj", y), mixture.dtype)

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


def normalised(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale a window `[..., channels, frames, bins]` to a peak of at most 10, and of at least 1.

    The regularisation is absolute: in louder windows it would be lost, quieter ones would drown in it.

    Returns:
        The scaled window, and what it was divided by, `[..., 1, 1, 1]` float.
    """
    peak = tf.reduce_max(tf.abs(x), axis=[-3, -2, -1], keepdims=True)
    scale = tf.where((peak > 10) | ((peak > 0) & (peak < 1)), peak / 10, 1)
    return x / tf.cast(scale, x.dtype), scale


def power_spectral_density(y: tf.Tensor) -> tf.Tensor:
    """Return v `[..., targets, frames, bins]` of estimates `[..., targets, channels, frames, bins]`."""
    channels = tf.unstack(y, axis=-3)
    return tf.add_n([_power(channel) for channel in channels]) / len(channels)


def spatial_covariance(y: tf.Tensor, eps: float) -> tf.Tensor:
    """Return R `[..., targets, channels, channels, bins]` complex128, Hermitian over the channels."""
    return covariance_of(outer_products(y), eps)


def outer_products(y: tf.Tensor) -> tf.Tensor:
    """Return sum_t y_j y_j^H of estimates, `[..., targets, channels, channels, bins]` complex128."""
    channels = tf.unstack(tf.cast(y, tf.complex128), axis=-3)

    def entry(c: int, d: int) -> tf.Tensor:
        if c > d:
            return tf.math.conj(entry(d, c))
        if c == d:
            return tf.cast(tf.reduce_sum(_power(channels[c]), axis=-2), tf.complex128)
        real, imaginary = _times(_parts(channels[c]), _conj(_parts(channels[d])))
        return tf.complex(tf.reduce_sum(real, axis=-2), tf.reduce_sum(imaginary, axis=-2))

    count = range(len(channels))
    return tf.stack([tf.stack([entry(c, d) for d in count], axis=-2) for c in count], axis=-3)


def covariance_of(products: tf.Tensor, eps: float) -> tf.Tensor:
    """Return R, which is `outer_products` over eps + sum_t v_j: over their mean diagonal, that is."""
    channels = products.shape[-2]
    power = tf.add_n([tf.math.real(products[..., c, c, :]) for c in range(channels)]) / channels
    return products / tf.cast(eps + power, products.dtype)[..., tf.newaxis, tf.newaxis, :]


def whitened(x: tf.Tensor, y: tf.Tensor, r: tf.Tensor, eps: float) -> tf.Tensor:
    """Return z = Cxx^-1 x `[..., channels, frames, bins]`, complex128.

    Args:
        x: the mixture `[..., channels, frames, bins]`.
        y: estimates `[..., targets, channels, frames, bins]`, for v.
        r: their spatial covariance `[..., targets, channels, channels, bins]`.
        eps: regularisation.
    """
    v = tf.unstack(power_spectral_density(tf.cast(y, tf.complex128)), axis=-3)  # per target [..., frames, bins]

    def mixture_model(part: Callable[[tf.Tensor], tf.Tensor], c: int, d: int) -> tf.Tensor:
        covariances = tf.unstack(part(r[..., c, d, :]), axis=-2)  # per target [..., bins]
        return tf.add_n([v_j * r_j[..., tf.newaxis, :] for v_j, r_j in zip(v, covariances, strict=True)])

    x = tf.unstack(tf.cast(x, tf.complex128), axis=-3)
    diagonal = [mixture_model(tf.math.real, c, c) + eps**0.5 for c in range(len(x))]
    if len(x) == 1:
        z = [_complex(_scaled(1 / (diagonal[0] + eps), _parts(x[0])))]  # norbert regularises this case once more
    elif len(x) == 2:
        cross = mixture_model(tf.math.real, 0, 1), mixture_model(tf.math.imag, 0, 1)
        inverse = 1 / (diagonal[0] * diagonal[1] - tf.square(cross[0]) - tf.square(cross[1]))
        x0, x1 = _parts(x[0]), _parts(x[1])
        z0 = _minus(_scaled(diagonal[1], x0), _times(cross, x1))
        z1 = _minus(_scaled(diagonal[0], x1), _times(_conj(cross), x0))
        z = [_complex(_scaled(inverse, z0)), _complex(_scaled(inverse, z1))]
    else:
        rows = [
            [
                tf.cast(diagonal[c], tf.complex128)
                if c == d
                else tf.complex(mixture_model(tf.math.real, c, d), mixture_model(tf.math.imag, c, d))
                for d in range(len(x))
            ]
            for c in range(len(x))
        ]
        cxx = tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)  # [..., frames, bins, channels, channels]
        z = tf.unstack(tf.linalg.solve(cxx, tf.stack(x, axis=-1)[..., tf.newaxis])[..., 0], axis=-1)
    return tf.stack(z, axis=-3)


def wiener_filter(y: tf.Tensor, r: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Return the new estimates v_j R_j z, of the shape and dtype of the old ones, y."""
    v = power_spectral_density(y)
    r = tf.cast(r, y.dtype)
    z = [_parts(channel[..., tf.newaxis, :, :]) for channel in tf.unstack(tf.cast(z, y.dtype), axis=-3)]
    estimates = []
    for c in range(len(z)):
        products = [_times(_parts(r[..., c, d, tf.newaxis, :]), z[d]) for d in range(len(z))]
        total = [tf.add_n(list(parts)) for parts in zip(*products, strict=True)]
        estimates.append(_complex(_scaled(v, total)))
    return tf.stack(estimates, axis=-3)


# Complex arithmetic on real and imaginary parts, which are tensors of their own.


def _parts(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.math.real(z), tf.math.imag(z)


def _complex(z: Parts) -> tf.Tensor:
    return tf.complex(*z)


def _power(z: tf.Tensor) -> tf.Tensor:
    return tf.square(tf.math.real(z)) + tf.square(tf.math.imag(z))


def _times(a: Parts, b: Parts) -> Parts:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _minus(a: Parts, b: Parts) -> Parts:
    return a[0] - b[0], a[1] - b[1]


def _conj(a: Parts) -> Parts:
    return a[0], -a[1]


def _scaled(factor: tf.Tensor, a: Parts) -> Parts:
    return factor * a[0], factor * a[1]
