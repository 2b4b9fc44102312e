"""The joint BLSTM filter in the form that inference runs: fewer, larger operations, equal results.

Standardisation and batch normalisation are affine, so they are folded into the dense layers beside
them; targets share one encoder product; both directions of a recurrent layer run in one loop; axes
are in the order that the Fourier transform leaves, bins last. On a CPU the loop is compiled by XLA:
per frame it is a matrix-vector product per direction, where op by op the overhead of a step is
several times its arithmetic. What refines masks (`MaskRefiner`) runs as it is, from the masks of all frames.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from umx_model.model.level import level
from umx_model.model.mask_refiner import MaskRefiner
from umx_model.model.spectral_filter import BLSTMSpectralFilterLayer, JointSpectralFilter


class _Target(tf.Module):
    """Folded weights of one target's filter."""

    def __init__(self, layer: BLSTMSpectralFilterLayer) -> None:
        super().__init__(name=layer.name)
        channels, bins, hidden = layer.channels, layer.bins, layer.encoder.units

        # Per recurrent layer, directions side by side: kernel [features, directions * 4 * units],
        # recurrent kernel [directions, units, 4 * units].
        self.kernels, self.biases, self.recurrent_kernels = [], [], []
        for index, forward in enumerate(layer.forward_lstms):
            directions = [forward, *layer.backward_lstms[index : index + 1]]
            # sigmoid(z) = (1 + tanh(z / 2)) / 2 makes all gates one tanh; the cell's is one already.
            half = np.repeat([0.5, 0.5, 1.0, 0.5], forward.units)
            kernels = [_array(lstm.kernel) * half for lstm in directions]
            self.kernels.append(_constant(np.concatenate(kernels, axis=1)))
            biases = [(_array(lstm.bias) + _array(lstm.recurrent_bias)) * half for lstm in directions]
            self.biases.append(_constant(np.concatenate(biases)))
            self.recurrent_kernels.append(
                _constant(np.stack([_array(lstm.recurrent_kernel) * half for lstm in directions]))
            )

        weights, bias = _fold(layer.decoder, layer.decoder_norm)
        self.decoder, self.decoder_bias = _constant(weights), _constant(bias)

        # dense -> batch norm -> * output_scale + output_mean; outputs [channels, bins].
        weights, bias = _fold(layer.mask, layer.mask_norm)
        mean, scale = _array(layer.output_mean)[:, None], _array(layer.output_scale)[:, None]
        weights = weights.reshape(hidden, bins, channels) * scale
        bias = bias.reshape(bins, channels) * scale + mean
        self.mask = _constant(weights.transpose(0, 2, 1).reshape(hidden, channels * bins))
        self.mask_bias = _constant(bias.T.reshape(-1))


class FoldedBLSTM(tf.Module):
    """All targets' masks from the mixture's magnitudes.

    Args:
        spectral_filter: a joint model whose filters are `BLSTMSpectralFilterLayer`s. Its weights are
            copied: training it further changes nothing here.
        compiled_frames: compile the recurrence with XLA, for up to this many frames at a time; None
            runs it op by op, for any number (and for conversion to TFLite).

    Raises:
        ValueError: the model does more, or something else; see `accepts`.
    """

    def __init__(self, spectral_filter: keras.Model, compiled_frames: int | None = None) -> None:
        super().__init__(name="folded_blstm")
        if not self.accepts(spectral_filter):
            raise ValueError(f"{spectral_filter.name}: only joint models of plain 'blstm' filters can be folded")
        layers = [layer for layer in spectral_filter.layers if isinstance(layer, BLSTMSpectralFilterLayer)]
        self.profile = spectral_filter.profile
        self._targets = [_Target(layer) for layer in layers]
        encoders, biases = zip(*map(_fold_encoder, layers), strict=True)
        self._encoders = _constant(np.concatenate(encoders, axis=1))
        self._encoder_biases = _constant(np.concatenate(biases))
        self._max_bin = layers[0].max_bin
        refiners = [layer for layer in spectral_filter.layers if isinstance(layer, MaskRefiner)]
        self._refiner = refiners[0] if refiners else None
        self._compiled_frames = compiled_frames
        self._recur: Any = _recur if compiled_frames is None else tf.function(_recur, jit_compile=True, autograph=False)

    @staticmethod
    def accepts(spectral_filter: keras.Model) -> bool:
        """Return whether a joint model is one of `blstm` filters, as its profile makes it, and nothing else."""
        made_by_profile = getattr(spectral_filter, "made_by_profile", type(spectral_filter) is JointSpectralFilter)
        filters = [layer for layer in spectral_filter.layers if type(layer) is BLSTMSpectralFilterLayer]
        return made_by_profile and len(filters) == len(spectral_filter.profile.targets)

    def __call__(self, magnitude: tf.Tensor, state: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the masks and the state after the last frame.

        Args:
            magnitude: of the mixture, `[batch, frames, channels, bins]` float32; see `network_input`.
            state: what an earlier call returned, to go on from there (unidirectional models only).

        Returns:
            Masks `[targets, batch, frames, channels, bins]` float32, at least 0, and the state.
        """
        features, state = self.features(magnitude, state)
        return self.masks(features), state

    def initial_state(self, batch: int | tf.Tensor) -> tf.Tensor:
        """Return the state before the first frame, `[targets, layers, 2, directions, batch, units]`."""
        first = self._targets[0]
        directions, units = first.recurrent_kernels[0].shape[:2]
        return tf.zeros([len(self._targets), len(first.kernels), 2, directions, batch, units])

    def features(self, magnitude: tf.Tensor, state: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what the masks are made of, `[targets, batch, frames, width]`, and the state.

        They are an affine map of it; refined masks are it themselves.
        """
        batch, frames = tf.shape(magnitude)[0], tf.shape(magnitude)[1]
        if state is None:
            state = self.initial_state(batch)
        x = magnitude[:, :, : self.profile.channels, : self._max_bin]
        if self.profile.normalize_level:
            x = x / level(x)
        x = tf.transpose(x, [1, 0, 2, 3])  # frames first from here on
        x = tf.reshape(x, [frames * batch, self.profile.channels * self._max_bin])
        encodings = tf.tanh(tf.nn.bias_add(tf.matmul(x, self._encoders), self._encoder_biases))
        encodings = tf.split(encodings, len(self._targets), axis=1)
        encodings = self._bridge(encodings)
        recurrents, states = [], []
        for index, (target, encoding) in enumerate(zip(self._targets, encodings, strict=True)):
            recurrent, last = self._run_layers(target, encoding, state[index], frames, batch)
            recurrents.append(recurrent)
            states.append(last)
        outputs = []
        for target, encoding, recurrent in zip(self._targets, encodings, self._bridge(recurrents), strict=True):
            joined = tf.concat([encoding, recurrent], axis=1)
            outputs.append(tf.nn.relu(tf.nn.bias_add(tf.matmul(joined, target.decoder), target.decoder_bias)))
        hidden = self.profile.hidden_size
        features = tf.reshape(tf.stack(outputs), [len(self._targets), frames, batch, hidden])
        features = tf.transpose(features, [0, 2, 1, 3])
        if self._refiner is not None:
            features = self._refine(self._refiner, magnitude, self._first_masks(features))
        return features, tf.stack(states)

    def masks(self, features: tf.Tensor) -> tf.Tensor:
        """Return masks `[targets, ..., channels, bins]` of features `[targets, ..., width]`."""
        if self._refiner is None:
            return self._first_masks(features)
        split = [self.profile.channels, self.profile.bins]
        return tf.reshape(features, tf.concat([tf.shape(features)[:-1], split], axis=0))

    def _refine(self, refiner: MaskRefiner, magnitude: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
        """Return refined masks `[targets, batch, frames, channels * bins]`."""
        refined = refiner.refine(tf.transpose(magnitude, [0, 1, 3, 2]), tf.transpose(masks, [1, 2, 4, 3, 0]))
        refined = tf.transpose(refined, [4, 0, 1, 3, 2])
        width = self.profile.channels * self.profile.bins
        return tf.reshape(refined, tf.concat([tf.shape(refined)[:3], [width]], axis=0))

    def _first_masks(self, features: tf.Tensor) -> tf.Tensor:
        """Return the recurrent filters' masks `[targets, ..., channels, bins]` of `[targets, ..., hidden]`."""
        shape = tf.shape(features)
        masks = []
        for target, x in zip(self._targets, tf.unstack(features, len(self._targets)), strict=True):
            x = tf.reshape(x, [-1, self.profile.hidden_size])
            masks.append(tf.nn.relu(tf.nn.bias_add(tf.matmul(x, target.mask), target.mask_bias)))
        split = [self.profile.channels, self.profile.bins]
        return tf.reshape(tf.stack(masks), tf.concat([shape[:-1], split], axis=0))

    def _bridge(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Give each target the mean of all, where the model has bridges."""
        return [tf.reduce_mean(tf.stack(tensors), axis=0)] * len(tensors) if self.profile.bridges else tensors

    def _run_layers(
        self, target: _Target, x: tf.Tensor, state: tf.Tensor, frames: tf.Tensor, batch: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Run the recurrent layers on `[frames * batch, hidden]`; state `[layers, 2, directions, batch, units]`."""
        states = []
        weights = zip(target.kernels, target.biases, target.recurrent_kernels, strict=True)
        for index, (kernel, bias, recurrent_kernel) in enumerate(weights):
            directions, units = recurrent_kernel.shape[:2]
            gates = tf.nn.bias_add(tf.matmul(x, kernel), bias)
            gates = tf.reshape(gates, [frames, batch, directions, 4 * units])
            if self._compiled_frames is not None:  # XLA compiles for one shape
                gates = tf.pad(gates, [[0, self._compiled_frames - frames], [0, 0], [0, 0], [0, 0]])
                gates = tf.ensure_shape(gates, [self._compiled_frames, None, directions, 4 * units])
            x, last = self._recur(gates, recurrent_kernel, state[index], frames)
            x = tf.reshape(x[:frames], [frames * batch, directions * units])
            states.append(last)
        return x, tf.stack(states)


def _recur(
    gates: tf.Tensor, recurrent_kernel: tf.Tensor, state: tf.Tensor, frames: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Run one layer over the first `frames` frames, its second direction (if any) backwards.

    Args:
        gates: the inputs' part of all gates, in the order i, f, c, o, `[>= frames, batch, directions, 4 * units]`;
            all but c halved.
        recurrent_kernel: `[directions, units, 4 * units]`, halved in the same way.
        state: outputs and cells before the first frame, `[2, directions, batch, units]`.
        frames: how many, a scalar.

    Returns:
        Outputs `[>= frames, batch, directions * units]`, and the state after the last frame.
    """
    directions, units = recurrent_kernel.shape[:2]
    arrays = [
        tf.TensorArray(tf.float32, size=tf.shape(gates)[0], element_shape=[gates.shape[1], units])
        for _ in range(directions)
    ]

    def step(i: tf.Tensor, h: tf.Tensor, c: tf.Tensor, arrays: list[tf.TensorArray]) -> tuple[Any, ...]:
        frame = [i, frames - 1 - i][:directions]
        z = tf.stack([gates[frame[d], :, d] for d in range(directions)]) + tf.matmul(h, recurrent_kernel)
        i_gate, f_gate, candidate, o_gate = tf.split(tf.tanh(z), 4, axis=-1)
        c = 0.5 * ((f_gate + 1) * c + (i_gate + 1) * candidate)
        h = 0.5 * (o_gate + 1) * tf.tanh(c)
        return i + 1, h, c, [array.write(frame[d], h[d]) for d, array in enumerate(arrays)]

    _, h, c, arrays = tf.while_loop(
        lambda i, *_: i < frames, step, (0, state[0], state[1], arrays), parallel_iterations=1
    )
    return tf.concat([array.stack() for array in arrays], axis=-1), tf.stack([h, c])


def _fold_encoder(layer: BLSTMSpectralFilterLayer) -> tuple[np.ndarray, np.ndarray]:
    """Return x -> (x + mean) * scale -> dense -> batch norm as one affine map of x, inputs `[channels, max_bin]`.

    Where the layer normalises the level, x is the input of level 1.
    """
    weights, bias = _fold(layer.encoder, layer.encoder_norm)
    mean, scale = _array(layer.input_mean)[:, None, None], _array(layer.input_scale)[:, None, None]
    weights = scale * weights.reshape(layer.max_bin, layer.channels, -1)
    bias = bias + np.sum(mean * weights, axis=(0, 1))
    if layer.normalizes_level:
        weights = weights * _array(layer.input_level)
    return weights.transpose(1, 0, 2).reshape(layer.channels * layer.max_bin, -1), bias


def _fold(dense: keras.layers.Dense, norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and the bias of a dense layer without bias followed by batch normalisation."""
    scale = _array(norm.gamma) / np.sqrt(_array(norm.moving_variance) + norm.epsilon)
    return _array(dense.kernel) * scale, _array(norm.beta) - _array(norm.moving_mean) * scale


def _array(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _constant(array: np.ndarray) -> tf.Variable:
    return tf.Variable(array.astype(np.float32), trainable=False)
