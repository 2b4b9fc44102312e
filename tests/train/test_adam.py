"""The fused Adam against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.train.adam import Adam


def run(cls: type[keras.optimizers.Adam], compiled: bool) -> tuple[list[np.ndarray], keras.optimizers.Optimizer]:
    generator = np.random.default_rng(0)
    variables = [
        keras.Variable(generator.normal(size=shape).astype(np.float32), name=name)
        for name, shape in (("kernel", (5, 3)), ("bias", (4,)))
    ]
    optimizer = cls(1e-2, epsilon=1e-8)
    optimizer.build(variables)
    step = tf.function(lambda gradients: optimizer.apply(gradients)) if compiled else optimizer.apply
    for number in range(10):
        if number == 5:
            optimizer.learning_rate = 3e-3
        step([tf.constant(generator.normal(size=variable.shape), tf.float32) for variable in variables])
    return [variable.numpy() for variable in (*variables, *optimizer.variables)], optimizer


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_and_moments_equal_keras(compiled: bool) -> None:
    ours, optimizer = run(Adam, compiled)
    theirs, reference = run(keras.optimizers.Adam, compiled)
    assert [variable.path.split("/")[-1] for variable in optimizer.variables] == [
        variable.path.split("/")[-1] for variable in reference.variables
    ]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
