"""Refining the masks of all targets together: a small U-Net beside the recurrent filters.

A recurrent filter sees a frame through some hundred numbers, which say what sounds but not where each partial
lies. The refiner looks at the same magnitudes, at the masks, and at few frames and bins at a time, and corrects
the masks there. Of stereo it also sees how much of a bin is in the middle. It is a U-Net (Ronneberger et al., 2015;
in music separation Jansson et al., 2017) that halves the bins and leaves the frames. What it adds is zero before
training: a model that was trained without it is the start of one with it.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from umx_model.model.level import level

# Each halves the bins; how much wider than the first it is, and the frames and bins that it sees at once.
_DOWN = ((1.0, (1, 5)), (1.5, (3, 5)), (2.0, (3, 5)), (3.0, (3, 5)))
_BOTTOM = (5, 5)
_UP = (3, 3)
_LEAST_MAGNITUDE = 1e-8
_LEAST_LEVEL = 1e-3  # -60 dB


@keras.saving.register_keras_serializable(package="umx_model")
class MaskRefiner(keras.layers.Layer):
    """Corrects the masks of all targets by what is near in time and frequency, in all channels and targets.

    Masks do not change with the level of the mixture by it. Bins from `bins` on keep theirs.

    Args:
        targets: that are estimated.
        channels: of the mixture.
        bins: that are read and corrected, the lowest ones.
        width: channels of the first convolution; those below it have up to three times as many.
        dtype: policy of the convolutions, such as `mixed_bfloat16`; what they add up to is float32 always.

    Input shape:
        magnitudes `[batch, frames, bins, channels]`, of two channels and half their difference if there are two (see
        `network_input`), and estimates `[batch, frames, bins, channels, targets]`, float32.

    Output shape:
        that of the estimates.
    """

    def __init__(self, targets: int, channels: int, bins: int, width: int, dtype: Any = None, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self._settings = {"targets": targets, "channels": channels, "bins": bins, "width": width}
        self._channels, self._bins = channels, bins
        self._masks = channels * targets  # per bin

        def convolution(name: str, factor: float, size: tuple[int, int], stride: int = 1) -> keras.layers.Layer:
            return keras.layers.Conv2D(
                int(factor * width), size, (1, stride), "same", activation="relu", dtype=dtype, name=name
            )

        self.down = [convolution(f"down_{i}", factor, size, 2) for i, (factor, size) in enumerate(_DOWN)]
        self.bottom = convolution("bottom", _DOWN[-1][0], _BOTTOM)
        self.up = [convolution(f"up_{i}", factor, _UP) for i, (factor, _) in enumerate(_DOWN[:-1])]
        self.full = convolution("full", *_DOWN[0])
        self.correction = keras.layers.Conv2D(
            self._masks, _UP, padding="same", kernel_initializer="zeros", dtype="float32", name="correction"
        )

    def build(self, magnitude_shape: tuple[int | None, ...], estimates_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        seen = self._channels + 2 * (self._channels == 2) + self._masks + 1
        widths = [seen, *(layer.filters for layer in self.down)]
        for layer, width in zip([*self.down, self.bottom], widths, strict=True):
            layer.build((None, None, None, width))
        for layer, beside, below in zip(self.up, widths[1:], widths[2:], strict=False):
            layer.build((None, None, None, below + beside))
        self.full.build((None, None, None, widths[1] + seen))
        self.correction.build((None, None, None, self.full.filters))

    def call(self, magnitude: tf.Tensor, estimates: tf.Tensor) -> tf.Tensor:
        """Return the estimates with corrected masks."""
        of_channels = magnitude[..., : self._channels, tf.newaxis]
        masks = estimates / tf.maximum(of_channels, _LEAST_MAGNITUDE)
        return self.refine(magnitude, masks) * of_channels

    def refine(self, magnitude: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
        """Return corrected masks, at least 0, of those `[batch, frames, bins, channels, targets]`."""
        shape = tf.shape(masks)
        read = magnitude[:, :, : self._bins] / level(magnitude[:, :, : self._bins, : self._channels])
        if self._channels == 2:
            left, right, difference = tf.unstack(tf.square(read), axis=-1)
            middle = tf.sqrt(tf.nn.relu((left + right) / 2 - difference))  # |l + r|^2 + |l - r|^2 = 2 (|l|^2 + |r|^2)
            read = tf.concat([read, middle[..., tf.newaxis]], axis=-1)
        # Most numbers are of the size of 1: decibels, in units of 26 dB, and masks in units of 3.
        loudness = tf.math.log(read + _LEAST_LEVEL) / 3
        flat = tf.reshape(masks[:, :, : self._bins] / 3, [shape[0], shape[1], self._bins, self._masks])
        height = tf.ones_like(read[..., :1]) * tf.linspace(-1.0, 1.0, self._bins)[:, tf.newaxis]
        correction = self._correct(tf.concat([loudness, flat, height], axis=-1))
        correction = tf.pad(correction, [[0, 0], [0, 0], [0, masks.shape[2] - self._bins], [0, 0]])
        return tf.nn.relu(masks + tf.reshape(correction, shape))

    def _correct(self, x: tf.Tensor) -> tf.Tensor:
        """Run the U-Net: `[batch, frames, bins, numbers]` -> `[batch, frames, bins, channels * targets]`."""
        missing = -self._bins % 2 ** len(self.down)
        x = tf.pad(x, [[0, 0], [0, 0], [0, missing], [0, 0]])
        seen = [x]
        for layer in self.down:
            seen.append(layer(seen[-1]))
        y = self.bottom(seen.pop())
        for layer in [*reversed(self.up), self.full]:
            y = layer(tf.concat([_twice_the_bins(y), tf.cast(seen.pop(), y.dtype)], axis=-1))
        return self.correction(y)[:, :, : self._bins]

    def compute_output_shape(
        self, magnitude_shape: tuple[int | None, ...], estimates_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Return the estimates' shape."""
        return estimates_shape

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), **self._settings}


def _twice_the_bins(x: tf.Tensor) -> tf.Tensor:
    """Repeat each bin: `[batch, frames, bins, width]` -> `[batch, frames, 2 * bins, width]`."""
    shape = tf.shape(x)
    return tf.reshape(tf.stack([x, x], axis=3), [shape[0], shape[1], 2 * shape[2], x.shape[3]])
