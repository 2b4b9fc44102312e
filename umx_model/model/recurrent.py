"""An LSTM layer on TensorFlow's fused block kernel, with a fast and correct gradient.

Keras runs an LSTM on CPU as a graph loop over frames, which costs several times the arithmetic.
`tf.raw_ops.BlockLSTMV2` runs the whole sequence in one kernel, on CPU and on GPU alike, so nothing
in a SavedModel depends on the machine that wrote it. The gradient that TensorFlow registers for
that kernel assumes another gate order than the kernel's own (finite differences disagree with
it), so the layer brings its own: only the recurrence loops over frames, the weight gradients are one
matrix product each.

Processors that multiply bfloat16 many times faster than float32 (AMX) have little of it from the fused kernel.
So where training is to use such numbers, all that is not recurrent is one product over all frames.

Where training runs on a GPU, a loop over frames would launch thousands of small kernels, so there
`fastest` puts cuDNN's LSTM in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import keras
import tensorflow as tf

Recurrence = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
_recurrence: ContextVar[Recurrence | None] = ContextVar("recurrence", default=None)


@contextmanager
def forward_only(portable: bool = False) -> Iterator[None]:
    """Trace LSTMs without their gradient, for a SavedModel: smaller, and loads several times faster.

    Args:
        portable: instead of the fused kernel, use a loop of operations that TFLite has too. The batch
            size must be known, and the time grows with the square of the frames where those are many.
    """
    token = _recurrence.set(_loop if portable else _forward)
    try:
        yield
    finally:
        _recurrence.reset(token)


@contextmanager
def fastest() -> Iterator[None]:
    """Trace LSTMs for this machine alone, with their gradient: by cuDNN where it has a GPU."""
    token = _recurrence.set(_cudnn_lstm if tf.config.list_logical_devices("GPU") else _block_lstm)
    try:
        yield
    finally:
        _recurrence.reset(token)


@keras.saving.register_keras_serializable(package="umx_model")
class LSTM(keras.layers.Layer):
    """One LSTM layer in one direction, all frames out.

    Gates are in the order input, forget, cell, output, as in `keras.layers.LSTM`. The two biases
    are kept apart as in PyTorch and cuDNN, so that weights from there convert without loss and
    training moves in the same way.

    Args:
        units: width of the output.
        reverse: run from the last frame to the first; the output stays in the input's order.
        products: dtype of the matrix products that span all frames, where training runs on CPU. The recurrence
            itself is float32 always.

    Input shape:
        `[frames, batch, features]`, float32.

    Output shape:
        `[frames, batch, units]`.
    """

    def __init__(self, units: int, reverse: bool = False, products: str = "float32", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"units must be at least 1, got {units}")
        self.units = units
        self.reverse = reverse
        self.products = products

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        gates = 4 * self.units
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], gates), initializer="glorot_uniform")
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.units, gates), initializer="orthogonal"
        )
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer=_forget_gate_open)
        self.recurrent_bias = self.add_weight(name="recurrent_bias", shape=(gates,), initializer="zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Run over all frames from a zero state."""
        if self.reverse:
            inputs = tf.reverse(inputs, [0])
        weights = tf.concat([self.kernel, self.recurrent_kernel], axis=0)
        bias = self.bias + self.recurrent_bias
        recurrence = _recurrence.get() or _block_lstm
        if recurrence is _block_lstm and self.products != "float32":
            recurrence = functools.partial(_projected_lstm, products=self.products)
        outputs = recurrence(inputs, weights, bias)
        outputs.set_shape([inputs.shape[0], inputs.shape[1], self.units])
        return tf.reverse(outputs, [0]) if self.reverse else outputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return `[frames, batch, units]`."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), "units": self.units, "reverse": self.reverse, "products": self.products}


def _forget_gate_open(shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
    """Initial bias: one at the forget gate, zero elsewhere (Jozefowicz et al., 2015)."""
    units = shape[0] // 4
    return tf.concat([tf.zeros([units]), tf.ones([units]), tf.zeros([2 * units])], axis=0)


def _run_kernel(inputs: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> Any:
    """Run all frames from a zero state; return the kernel's outputs i, cs, f, o, ci, co, h."""
    units = weights.shape[1] // 4
    initial = tf.zeros([tf.shape(inputs)[1], units], inputs.dtype)
    no_peephole = tf.zeros([units], inputs.dtype)
    return tf.raw_ops.BlockLSTMV2(
        seq_len_max=tf.shape(inputs, tf.int64)[0],
        x=inputs,
        cs_prev=initial,
        h_prev=initial,
        w=weights,
        wci=no_peephole,
        wcf=no_peephole,
        wco=no_peephole,
        b=bias,
        cell_clip=0.0,
        use_peephole=False,
    )


def _cudnn_lstm(inputs: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`_block_lstm` in one kernel of cuDNN, which only GPUs have."""
    features, units = inputs.shape[2], weights.shape[1] // 4
    initial = tf.zeros([1, tf.shape(inputs)[1], units], inputs.dtype)
    return tf.raw_ops.CudnnRNN(
        input=inputs,
        input_h=initial,
        input_c=initial,
        params=_cudnn_parameters(weights[:features], weights[features:], bias),
        rnn_mode="lstm",
        is_training=True,
    ).output


def _cudnn_parameters(kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Lay weights out as cuDNN wants them: each gate's transposed, input before recurrent, and two biases per gate."""
    matrices = [*tf.split(kernel, 4, axis=1), *tf.split(recurrent_kernel, 4, axis=1)]
    transposed = [tf.reshape(tf.transpose(matrix), [-1]) for matrix in matrices]
    return tf.concat([*transposed, bias, tf.zeros_like(bias)], axis=0)


def _forward(inputs: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`_block_lstm` without its gradient."""
    message = "this model was exported for inference"
    return tf.raw_ops.PreventGradient(input=_run_kernel(inputs, weights, bias).h, message=message)


def _loop(inputs: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`_block_lstm` frame by frame; TFLite's converter wants all shapes but the number of frames known."""
    frames, (batch, features), units = tf.shape(inputs)[0], inputs.shape[1:], weights.shape[1] // 4
    gates = tf.matmul(tf.reshape(inputs, [-1, features]), weights[:features]) + bias
    gates = tf.reshape(gates, [frames, batch, 4 * units])
    recurrent = weights[features:]

    def step(t: tf.Tensor, h: tf.Tensor, cs: tf.Tensor, all_h: tf.TensorArray) -> tuple[Any, ...]:
        i, f, ci, o = tf.split(gates[t] + tf.matmul(h, recurrent), 4, axis=-1)
        cs = tf.sigmoid(f) * cs + tf.sigmoid(i) * tf.tanh(ci)
        h = tf.sigmoid(o) * tf.tanh(cs)
        return t + 1, h, cs, all_h.write(t, h)

    initial = tf.zeros([batch, units], inputs.dtype)
    outputs = tf.TensorArray(inputs.dtype, size=frames, element_shape=[batch, units])
    *_, outputs = tf.while_loop(lambda t, *_: t < frames, step, (0, initial, initial, outputs), parallel_iterations=1)
    return outputs.stack()


class _States(NamedTuple):
    """What a recurrence went through, each `[frames, batch, units]`; named as the kernel's documentation does."""

    i: tf.Tensor
    f: tf.Tensor
    ci: tf.Tensor
    o: tf.Tensor
    cs: tf.Tensor
    co: tf.Tensor
    h: tf.Tensor


@tf.custom_gradient
def _block_lstm(inputs: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
    """LSTM over `inputs` [frames, batch, features] with `weights` [features + units, 4 * units].

    In the gradient, dX is that of the loss by X.
    """
    features, units = inputs.shape[2], weights.shape[1] // 4
    i, cs, f, o, ci, co, h = _run_kernel(inputs, weights, bias)
    states = _States(i, f, ci, o, cs, co, h)

    def gradient(dh_above: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        dgates = tf.reshape(_gate_gradients(states, weights[features:], dh_above), [-1, 4 * units])
        dinputs = tf.reshape(tf.matmul(dgates, weights[:features], transpose_b=True), tf.shape(inputs))
        dkernel = tf.matmul(tf.reshape(inputs, [-1, features]), dgates, transpose_a=True)
        drecurrent = tf.matmul(tf.reshape(_before(h), [-1, units]), dgates, transpose_a=True)
        return dinputs, tf.concat([dkernel, drecurrent], axis=0), tf.reduce_sum(dgates, axis=0)

    return h, gradient


def _projected_lstm(inputs: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor, products: str) -> tf.Tensor:
    """`_block_lstm` with the matrix products that span all frames, and their gradients, in another dtype."""
    features, gates = inputs.shape[2], weights.shape[1]
    projected = tf.matmul(tf.cast(tf.reshape(inputs, [-1, features]), products), tf.cast(weights[:features], products))
    projected = tf.reshape(tf.cast(projected, inputs.dtype) + bias, [*tf.unstack(tf.shape(inputs)[:2]), gates])
    return _recur(projected, weights[features:], products)


def _recur(projected: tf.Tensor, recurrent: tf.Tensor, products: str) -> tf.Tensor:
    """Run all frames from a zero state, given what they add to the gates, `[frames, batch, 4 * units]`."""
    units = recurrent.shape[0]

    @tf.custom_gradient
    def run(projected: tf.Tensor, recurrent: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        states = _run_frames(projected, recurrent)

        def gradient(dh_above: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dgates = _gate_gradients(states, recurrent, dh_above)
            h_prev = tf.cast(tf.reshape(_before(states.h), [-1, units]), products)
            flat = tf.cast(tf.reshape(dgates, [-1, 4 * units]), products)
            return dgates, tf.cast(tf.matmul(h_prev, flat, transpose_a=True), recurrent.dtype)

        return states.h, gradient

    return run(projected, recurrent)


def _run_frames(projected: tf.Tensor, recurrent: tf.Tensor) -> _States:
    """Run frame by frame; see `_recur`."""
    frames, batch, units = tf.shape(projected)[0], tf.shape(projected)[1], recurrent.shape[0]

    def array(width: int) -> tf.TensorArray:
        return tf.TensorArray(projected.dtype, size=frames, element_shape=[None, width])

    def step(
        t: tf.Tensor, h: tf.Tensor, cs: tf.Tensor, gates: tf.TensorArray, cells: tf.TensorArray
    ) -> tuple[Any, ...]:
        i, f, ci, o = tf.split(projected[t] + tf.matmul(h, recurrent), 4, axis=-1)
        i, f, ci, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(ci), tf.sigmoid(o)
        cs = f * cs + i * ci
        return t + 1, o * tf.tanh(cs), cs, gates.write(t, tf.concat([i, f, ci, o], axis=-1)), cells.write(t, cs)

    initial = tf.zeros([batch, units], projected.dtype)
    *_, gates, cells = tf.while_loop(
        lambda t, *_: t < frames,
        step,
        (0, initial, initial, array(4 * units), array(units)),
        parallel_iterations=1,
    )
    i, f, ci, o = tf.split(gates.stack(), 4, axis=-1)
    cs = cells.stack()
    co = tf.tanh(cs)
    return _States(i, f, ci, o, cs, co, o * co)


def _gate_gradients(states: _States, recurrent: tf.Tensor, dh_above: tf.Tensor) -> tf.Tensor:
    """Return the gradient of the loss by the gates before their activation, `[frames, batch, 4 * units]`.

    Args:
        states: of the forward pass.
        recurrent: `[units, 4 * units]`.
        dh_above: gradient by the outputs, but for what passes through later frames.
    """
    i, f, ci, o, cs, co, _ = states
    frames, units = tf.shape(cs)[0], recurrent.shape[0]
    # What the frames do not share is computed for all at once: the derivative of each gate
    # before its activation, by the cell state (i, f, ci) or by the output (o).
    slopes = tf.concat([ci * i * (1 - i), _before(cs) * f * (1 - f), i * (1 - ci * ci), co * o * (1 - o)], axis=-1)
    dcs_by_dh = o * (1 - co * co)
    transposed = tf.transpose(recurrent)

    def step(t: tf.Tensor, dgates: tf.Tensor, dcs: tf.Tensor, all_dgates: tf.TensorArray) -> tuple[Any, ...]:
        dh = dh_above[t] + tf.matmul(dgates, transposed)
        dcs = dcs + dh * dcs_by_dh[t]
        dgates = tf.concat([dcs, dcs, dcs, dh], axis=-1) * slopes[t]
        return t - 1, dgates, dcs * f[t], all_dgates.write(t, dgates)

    *_, all_dgates = tf.while_loop(
        lambda t, *_: t >= 0,
        step,
        (
            frames - 1,
            tf.zeros_like(slopes[0]),
            tf.zeros_like(cs[0]),
            tf.TensorArray(cs.dtype, size=frames, element_shape=[None, 4 * units]),
        ),
        parallel_iterations=1,
    )
    return all_dgates.stack()


def _before(states: tf.Tensor) -> tf.Tensor:
    """Return the state before each frame, zero before the first."""
    return tf.concat([tf.zeros_like(states[:1]), states[:-1]], axis=0)
