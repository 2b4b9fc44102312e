"""The fused LSTM against Keras' own, values and gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.model.recurrent import LSTM, _cudnn_parameters, fastest, forward_only


def pair(reverse: bool) -> tuple[LSTM, keras.layers.LSTM, tf.Tensor]:
    """Our layer and Keras' with equal random weights, and an input [frames, batch, features]."""
    keras.utils.set_random_seed(3)
    ours, theirs = LSTM(6, reverse=reverse), keras.layers.LSTM(6, return_sequences=True, go_backwards=reverse)
    inputs = tf.random.normal([9, 4, 5])
    ours(inputs), theirs(tf.transpose(inputs, [1, 0, 2]))
    for weight in ours.trainable_variables:
        weight.assign(tf.random.normal(weight.shape))
    kernel, recurrent_kernel, bias, recurrent_bias = ours.get_weights()
    theirs.set_weights([kernel, recurrent_kernel, bias + recurrent_bias])
    return ours, theirs, inputs


def run_theirs(theirs: keras.layers.LSTM, inputs: tf.Tensor) -> tf.Tensor:
    outputs = tf.transpose(theirs(tf.transpose(inputs, [1, 0, 2])), [1, 0, 2])
    return tf.reverse(outputs, [0]) if theirs.go_backwards else outputs


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_keras(reverse):
    ours, theirs, inputs = pair(reverse)
    np.testing.assert_allclose(ours(inputs), run_theirs(theirs, inputs), atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_equals_keras(reverse, compiled):
    ours, theirs, inputs = pair(reverse)

    def gradients(run, variables):
        def compute():
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                loss = tf.reduce_sum(tf.sin(run(inputs)))
            return tape.gradient(loss, [inputs, *variables])

        return (tf.function(compute) if compiled else compute)()

    mine = gradients(ours, [v.value for v in ours.trainable_variables])
    reference = gradients(lambda x: run_theirs(theirs, x), [v.value for v in theirs.trainable_variables])
    for ours_gradient, their_gradient in zip(mine, [*reference, reference[-1]], strict=True):
        np.testing.assert_allclose(ours_gradient, their_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("products", "tolerance"), [("float64", 1e-5), ("bfloat16", 0.03)])
def test_products_of_another_precision(reverse, products, tolerance):
    """In float64 they show that the frame by frame path is exact; in bfloat16, how it is used."""
    plain, _, inputs = pair(reverse)
    mixed = LSTM(6, reverse=reverse, products=products)
    mixed(inputs)
    mixed.set_weights(plain.get_weights())
    results = []
    for layer in (plain, mixed):

        @tf.function
        def compute(layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = layer(inputs)
                loss = tf.reduce_sum(tf.sin(outputs))
            return outputs, *tape.gradient(loss, [inputs, *(v.value for v in layer.trainable_variables)])

        results.append([tensor.numpy() for tensor in compute()])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(one).max())
    if products == "bfloat16":
        assert any(np.abs(one - other).max() > 1e-4 for one, other in zip(*results, strict=True))


def test_forward_only_gives_equal_outputs_and_refuses_gradients():
    ours, _, inputs = pair(reverse=True)
    expected = ours(inputs)

    @tf.function
    def gradient():
        return tf.gradients(ours(inputs), inputs)

    with forward_only():
        np.testing.assert_array_equal(tf.function(ours)(inputs), expected)
        with pytest.raises(Exception, match="exported for inference"):
            gradient()


def test_config_round_trip():
    layer = LSTM.from_config(LSTM(3, reverse=True, name="x").get_config())
    assert (layer.units, layer.reverse, layer.name) == (3, True, "x")


def test_cudnn_parameters_are_laid_out_as_keras_does():
    from keras.src.backend.tensorflow.rnn import _standardize_cudnn_weights

    kernel, recurrent, bias = tf.random.normal([5, 24]), tf.random.normal([6, 24]), tf.random.normal([24])
    expected = _standardize_cudnn_weights(
        weights=[*tf.split(kernel, 4, axis=1), *tf.split(recurrent, 4, axis=1)],
        biases=tf.split(tf.concat([bias, tf.zeros([24])], axis=0), 8),
        shape=tf.constant([-1]),
        transpose_weights=True,
    )
    np.testing.assert_array_equal(_cudnn_parameters(kernel, recurrent, bias), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_fastest_on_this_machine_gives_the_same(reverse):
    ours, _, inputs = pair(reverse)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            outputs = ours(inputs)
            loss = tf.reduce_sum(outputs**2)
        return outputs, tape.gradient(loss, [variable.value for variable in ours.trainable_variables])

    plain = gradients()
    with fastest():
        fast = tf.function(gradients.python_function)()
    for a, b in zip(tf.nest.flatten(plain), tf.nest.flatten(fast), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="cuDNN needs a GPU")
def test_on_a_gpu_training_runs_on_cudnn():
    ours, _, inputs = pair(False)
    with fastest():
        graph = tf.function(lambda: ours(inputs)).get_concrete_function().graph
    assert "CudnnRNN" in {operation.type for operation in graph.get_operations()}
