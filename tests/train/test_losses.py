import keras
import numpy as np
import scipy.signal
import tensorflow as tf

from umx_model.model.stft import STFTLayer
from umx_model.train.losses import add_weight_decay, magnitudes, squared_error


def test_magnitudes_are_those_of_uncentred_transforms() -> None:
    excerpts = np.random.default_rng(0).normal(size=(2, 1000, 2, 3)).astype(np.float32)
    mixture, targets = magnitudes(tf.constant(excerpts), STFTLayer(256, 64, center=False))

    def oracle(x: np.ndarray) -> np.ndarray:
        _, _, z = scipy.signal.stft(x, window="hann", nperseg=256, noverlap=192, boundary=None, padded=False, axis=1)
        return np.abs(np.moveaxis(z, -1, 1)) * scipy.signal.get_window("hann", 256).sum()

    np.testing.assert_allclose(targets, oracle(excerpts), atol=1e-4)
    np.testing.assert_allclose(mixture, oracle(excerpts.sum(axis=-1)), atol=1e-4)


def test_error_per_frame_is_the_mean_squared_error_of_each_target() -> None:
    rng = np.random.default_rng(1)
    estimates, references = rng.normal(size=(2, 3, 5, 7, 2, 4)).astype(np.float32)
    losses = squared_error(tf.constant(estimates), tf.constant(references)) / (3 * 5)
    np.testing.assert_allclose(losses, ((estimates - references) ** 2).mean(axis=(0, 1, 2, 3)), rtol=1e-5)


def test_error_is_exact_over_millions_of_numbers() -> None:
    # Summed up in float32 this would be off by 1e-3.
    estimates = np.random.default_rng(1).uniform(size=(8, 255, 513, 2, 2)).astype(np.float32)
    expected = (estimates.astype(np.float64) ** 2).sum(axis=(0, 1, 2, 3)) / (513 * 2)
    np.testing.assert_allclose(squared_error(tf.constant(estimates), tf.zeros_like(estimates)), expected, rtol=1e-6)


def test_weight_decay_is_that_of_torch_optim_adam() -> None:
    # The algorithm in the documentation of torch.optim.Adam, with weight_decay, on gradients that change.
    lr, decay, beta_1, beta_2, eps = 0.01, 0.1, 0.9, 0.999, 1e-8
    gradients = np.random.default_rng(2).normal(size=(20, 6))
    expected = start = np.linspace(-2, 2, 6)
    m, v = np.zeros(6), np.zeros(6)
    for t, g in enumerate(gradients, start=1):
        g = g + decay * expected
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        expected = expected - lr * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + eps)

    variable = keras.Variable(start.astype(np.float32))
    optimizer = keras.optimizers.Adam(lr, epsilon=eps)
    for g in gradients:
        coupled = add_weight_decay([tf.constant(g, tf.float32)], [variable], decay)
        optimizer.apply_gradients(zip(coupled, [variable], strict=True))
    np.testing.assert_allclose(variable.numpy(), expected, atol=1e-5)

    # The decoupled one of Keras is another: the check above would see the difference.
    decoupled = keras.Variable(start.astype(np.float32))
    optimizer = keras.optimizers.Adam(lr, epsilon=eps, weight_decay=decay)
    for g in gradients:
        optimizer.apply_gradients([(tf.constant(g, tf.float32), decoupled)])
    assert np.abs(decoupled.numpy() - expected).max() > 1e-3
