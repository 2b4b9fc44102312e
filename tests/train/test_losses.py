import itertools

import keras
import norbert
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from umx_model.model.stft import STFTLayer
from umx_model.train.losses import (
    add_weight_decay,
    combination_error,
    decibel_error,
    magnitudes,
    source_combinations,
    squared_error,
    weighted_sdr,
    wiener_filtered,
)


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


def combinations_of(targets: int) -> list[tuple[int, ...]]:
    return [which for size in range(1, targets) for which in itertools.combinations(range(targets), size)]


def test_combinations_are_those_of_1_to_all_but_one() -> None:
    assert len(source_combinations(4)) == 14
    chosen = [tuple(np.flatnonzero(row)) for row in source_combinations(4)]
    assert sorted(chosen) == sorted(combinations_of(4))
    np.testing.assert_array_equal(source_combinations(2), np.eye(2))
    np.testing.assert_array_equal(source_combinations(1), [[1]])


def test_combination_error_is_that_of_x_umx() -> None:
    rng = np.random.default_rng(3)
    estimates, references = rng.uniform(0, 3, size=(2, 3, 5, 7, 2, 4)).astype(np.float32)
    # Asteroid's freq_domain_loss, literally.
    losses = [
        np.mean((sum(estimates[..., i] for i in which) - sum(references[..., i] for i in which)) ** 2)
        for which in combinations_of(4)
    ]
    result = combination_error(tf.constant(estimates), tf.constant(references), source_combinations(4)) / (3 * 5)
    np.testing.assert_allclose(result, sum(losses) / 14, rtol=1e-5)


def x_umx_weighted_sdr(estimates: np.ndarray, references: np.ndarray, mixture: np.ndarray) -> float:
    """Asteroid's time_domain_loss with the combination scheme, literally, in float64."""
    eps, losses = 1e-10, []
    for which in combinations_of(references.shape[-1]):
        gt, est = (sum(x[..., i] for i in which) for x in (references, estimates))
        ns, ns_hat = mixture - gt, mixture - est
        energy = [np.sum(x * x, axis=1) for x in (gt, ns, est, ns_hat)]
        alpha = energy[0] / (energy[0] + energy[1] + eps)
        clean = np.sum(est * gt, axis=1) / (np.sqrt(eps + energy[2]) * np.sqrt(eps + energy[0]) + eps)
        noise = np.sum(ns * ns_hat, axis=1) / (np.sqrt(eps + energy[3]) * np.sqrt(eps + energy[1]) + eps)
        losses.append(np.mean(-alpha * clean - (1 - alpha) * noise))
    return 1.0 + float(np.mean(losses))


@pytest.mark.parametrize("targets", [2, 4])
def test_weighted_sdr_is_that_of_x_umx(targets: int) -> None:
    rng = np.random.default_rng(4)
    references = rng.normal(0, 0.1, (3, 500, 2, targets))
    estimates = references + rng.normal(0, 0.05, references.shape)
    mixture = references.sum(axis=-1) + rng.normal(0, 0.02, references.shape[:-1])  # a model of some targets only
    arguments = [tf.constant(x.astype(np.float32)) for x in (estimates, references, mixture)]
    loss = weighted_sdr(*arguments, source_combinations(targets))
    assert loss.shape == (3,)
    np.testing.assert_allclose(np.mean(loss), x_umx_weighted_sdr(estimates, references, mixture), rtol=1e-5)
    perfect = weighted_sdr(arguments[1], arguments[1], arguments[2], source_combinations(targets))
    np.testing.assert_allclose(perfect, 0, atol=1e-5)


def test_gradient_of_weighted_sdr_is_the_difference_quotient() -> None:
    rng = np.random.default_rng(5)
    references, estimates, direction = rng.normal(size=(3, 2, 50, 1, 3))
    mixture = references.sum(axis=-1)
    variable = tf.Variable(estimates.astype(np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
            weighted_sdr(
                variable,
                tf.constant(references, tf.float32),
                tf.constant(mixture, tf.float32),
                source_combinations(3),
            )
        )
    slope = np.sum(tape.gradient(loss, variable).numpy() * direction)
    ahead, behind = (x_umx_weighted_sdr(estimates + sign * 1e-4 * direction, references, mixture) for sign in (1, -1))
    assert slope == pytest.approx((ahead - behind) / 2e-4, rel=1e-3)


@pytest.mark.parametrize("silent", ["a target", "all targets", "estimates", "everything"])
def test_weighted_sdr_of_silence_is_finite(silent: str) -> None:
    references, estimates = np.random.default_rng(6).normal(size=(2, 2, 50, 2, 2)).astype(np.float32)
    if silent == "a target":
        references[..., 0] = 0
    if silent in ("all targets", "everything"):
        references[:] = 0
    if silent in ("estimates", "everything"):
        estimates[:] = 0
    variable = tf.Variable(estimates)
    with tf.GradientTape() as tape:
        loss = weighted_sdr(
            variable, tf.constant(references), tf.constant(references.sum(axis=-1)), source_combinations(2)
        )
    assert np.all(np.isfinite(loss))
    assert np.all(np.isfinite(tape.gradient(loss, variable)))


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


def test_decibels_of_each_excerpt_and_target() -> None:
    rng = np.random.default_rng(5)
    parts = rng.normal(size=(2, 3, 4, 5, 2, 2))
    references = (parts[0] + 1j * parts[1]).astype(np.complex64)
    mixture = references.sum(axis=-1)
    estimates = np.abs(references) + rng.normal(0, 0.1, references.shape).astype(np.float32)
    heard = estimates * np.exp(1j * np.angle(mixture))[..., None]
    error = np.mean(np.abs(references - heard) ** 2, axis=(1, 2, 3))
    energy = np.mean(np.abs(mixture) ** 2, axis=(1, 2, 3))[:, None]
    found = decibel_error(*map(tf.constant, (estimates, references, mixture)), -30.0).numpy()
    np.testing.assert_allclose(found, 10 * np.log10(error / energy + 1e-3), rtol=1e-4)
    # A quiet excerpt counts as a loud one does.
    quiet = decibel_error(*(tf.constant(0.1 * x) for x in (estimates, references, mixture)), -30.0)
    np.testing.assert_allclose(quiet, found, atol=1e-3)


def test_the_wiener_filter_is_norberts() -> None:
    rng = np.random.default_rng(7)
    estimates = rng.uniform(0, 1, (2, 3, 4, 2, 3)).astype(np.float32)
    mixture = rng.normal(size=(2, 3, 4, 2)) + 1j * rng.normal(size=(2, 3, 4, 2))
    found = wiener_filtered(tf.constant(estimates), tf.constant(np.abs(mixture), tf.float32))
    for each, (magnitudes_, spectrum) in zip(found, zip(estimates, mixture, strict=True), strict=True):
        expected = norbert.softmask(magnitudes_.astype(np.float64) ** 2, spectrum)
        np.testing.assert_allclose(each, np.abs(expected), rtol=1e-4)
    silence = tf.zeros([1, 3, 4, 2, 3])
    np.testing.assert_array_equal(wiener_filtered(silence, tf.ones([1, 3, 4, 2])), silence)


def test_decibels_below_the_floor_count_no_more() -> None:
    rng = np.random.default_rng(6)
    # One target is the mixture, the other one silent: 40 dB of error is almost as good as none.
    mixture = rng.normal(size=(3, 4, 5, 2)).astype(np.complex64)
    references = np.stack([mixture, 0 * mixture], axis=-1)
    estimates = np.abs(references) + 0.01 * np.abs(mixture)[..., None]
    found = decibel_error(*map(tf.constant, (estimates, references, mixture)), -30.0)
    np.testing.assert_allclose(found, np.full((3, 2), 10 * np.log10(1e-3 + 1e-4)), atol=1e-3)


def test_silence_in_decibels() -> None:
    silence, spectrum = tf.zeros([3, 4, 5, 2, 2]), tf.zeros([3, 4, 5, 2], tf.complex64)
    with tf.GradientTape() as tape:
        tape.watch(silence)
        found = decibel_error(silence, tf.cast(silence, tf.complex64), spectrum, -30.0)
    np.testing.assert_allclose(found, -30, atol=1e-4)
    np.testing.assert_array_equal(tape.gradient(found, silence), silence)
