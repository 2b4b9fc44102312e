"""The training step: what it makes smaller, in which precision, and what it says of itself."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.stft import STFTLayer
from umx_model.profile import Profile
from umx_model.train.adam import make_optimizer
from umx_model.train.checkpoints import Checkpoints, LoopState
from umx_model.train.losses import source_combinations, weighted_sdr
from umx_model.train.steps import StepResult, Steps

SAMPLES = 1500


def excerpts() -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).normal(0, 0.1, (2, SAMPLES, 2, 2)).astype(np.float32))


class Trained:
    """A small model and its compiled step."""

    def __init__(self, bridges: bool = False, **settings: Any) -> None:
        model = {"n_fft": 256, "hop_length": 64, "hidden_size": 8, "layers": 1}
        self.profile = Profile.model_validate(
            {
                "model": {"targets": ["a", "b"], "bridges": bridges, **model},
                "train": {"batch_size": 2, "learning_rate": 0.01, **settings},
            }
        )
        precision = self.profile.train.precision
        keras.utils.set_random_seed(1)
        self.filter = get_joint_spectral_filter(
            self.profile.model, None if precision == "float32" else f"mixed_{precision}"
        )
        self.optimizer = make_optimizer(self.profile.train.learning_rate, precision)
        self.optimizer.build(self.filter.trainable_variables)
        strategy = tf.distribute.get_strategy()
        steps = Steps(strategy, self.filter, self.optimizer, self.profile)
        self._step = steps.compile_train(tf.TensorSpec([2, SAMPLES, 2, 2]))
        self.validate = steps.compile_valid(tf.TensorSpec([None, SAMPLES, 2, 2]))

    def step(self) -> StepResult:
        return StepResult(*[value.numpy() for value in self._step(excerpts())])

    def weights(self) -> list[np.ndarray]:
        return [weight.numpy() for weight in self.filter.weights]


@pytest.fixture(scope="module")
def plain() -> tuple[Trained, list[StepResult]]:
    trained = Trained()
    return trained, [trained.step() for _ in range(4)]


def test_says_losses_objective_and_the_gradients_norm() -> None:
    trained = Trained(weight_decay=0)
    stft = STFTLayer(256, 64, center=False)
    references = np.stack([np.abs(stft(excerpts()[..., target])) for target in (0, 1)], -1)
    mixture = np.abs(stft(tf.reduce_sum(excerpts(), -1)))
    with tf.GradientTape() as tape:
        errors = tf.reduce_mean((trained.filter(mixture, training=True) - references) ** 2, axis=[0, 1, 2, 3])
        loss = tf.reduce_sum(errors)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in tape.gradient(loss, trained.filter.trainable_variables)))
    result = trained.step()
    np.testing.assert_allclose(result.losses, errors, rtol=1e-5)
    assert result.objective == pytest.approx(float(loss), rel=1e-5)
    assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert (result.losses.dtype, result.gradient_norm.dtype) == (np.float64, np.float32)


def test_the_objective_in_decibels() -> None:
    trained = Trained(floor_db=-30.0)
    stft = STFTLayer(256, 64, center=False)
    references = np.stack([stft(excerpts()[..., target]) for target in (0, 1)], -1)
    mixture = stft(tf.reduce_sum(excerpts(), -1)).numpy()

    def decibels(training: bool) -> np.ndarray:
        estimates = trained.filter(np.abs(mixture), training=training).numpy()
        energy = np.mean(np.abs(mixture) ** 2, axis=(1, 2, 3))[:, None]
        filtered = estimates**2 / (np.sum(estimates**2, axis=-1, keepdims=True) + 1e-10) * np.abs(mixture)[..., None]
        found = []
        for magnitudes in (estimates, filtered):
            errors = np.abs(magnitudes * np.exp(1j * np.angle(mixture))[..., None] - references) ** 2
            found.append(np.mean(10 * np.log10(np.mean(errors, axis=(1, 2, 3)) / energy + 1e-3), axis=0))
        return np.mean(found, axis=0)

    expected = decibels(training=True)
    results = [trained.step() for _ in range(20)]
    np.testing.assert_allclose(results[0].losses, expected, rtol=1e-4)
    assert results[0].objective == pytest.approx(float(np.sum(expected)), rel=1e-4)
    assert results[-1].objective < results[0].objective - 1
    # Validation is by the same, and weights a piece by its length.
    errors, frames = trained.validate(excerpts())
    assert frames == 2 * mixture.shape[1]
    np.testing.assert_allclose(errors / frames, decibels(training=False), rtol=1e-4)


def test_the_objective_of_x_umx() -> None:
    trained = Trained(combination_loss=True, sdr_weight=10.0, bridges=True)
    # The estimates' waveforms by SciPy's inverse, which covers what TensorFlow's does.
    stft = STFTLayer(256, 64, center=False)
    mixture = stft(tf.reduce_sum(excerpts(), -1)).numpy()
    estimates = trained.filter(np.abs(mixture), training=True).numpy()
    spectra = estimates * np.exp(1j * np.angle(mixture))[..., np.newaxis]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    end = (spectra.shape[1] - 1) * 64 + 256
    waveforms, norm = np.zeros([2, end, 2, 2]), np.zeros([1, end, 1, 1])
    for index, frame in enumerate(np.moveaxis(np.fft.irfft(spectra, axis=2), 1, 0)):
        here = slice(index * 64, index * 64 + 256)
        waveforms[:, here] += frame * window[:, np.newaxis, np.newaxis]
        norm[:, here] += (window**2)[:, np.newaxis, np.newaxis]
    inner = slice(64, end - 64)
    heard = excerpts()[:, inner]
    estimated = tf.constant(waveforms[:, inner] / norm[:, inner], tf.float32)
    sdr = weighted_sdr(estimated, heard, tf.reduce_sum(heard, -1), source_combinations(2))
    result = trained.step()
    # Of two targets, the combinations are the targets; a mean, where the recipe has a sum.
    assert result.objective == pytest.approx(np.mean(result.losses) + 10 * np.mean(sdr), rel=1e-4)
    assert 10 * np.mean(sdr) > 1
    later = [trained.step().objective for _ in range(3)]
    assert later[-1] < result.objective


@pytest.mark.parametrize("settings", [{"sdr_weight": 10.0}, {"combination_loss": True, "sdr_weight": 10.0}])
def test_silence_has_a_finite_objective_and_gradient(settings: dict[str, Any]) -> None:
    trained = Trained(**settings)
    losses, objective, norm = trained._step(tf.zeros([2, SAMPLES, 2, 2]))
    assert np.all(np.isfinite([*losses, objective, norm]))
    assert all(np.all(np.isfinite(weight)) for weight in trained.weights())


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_lower_precision_stays_near_float32(
    plain: tuple[Trained, list[StepResult]], precision: str, tolerance: float
) -> None:
    trained = Trained(precision=precision)
    results = [trained.step() for _ in range(4)]
    assert results[-1].objective < 0.98 * results[0].objective
    for result, expected in zip(results, plain[1], strict=True):
        np.testing.assert_allclose(result.losses, expected.losses, rtol=tolerance)
        np.testing.assert_allclose(result.gradient_norm, expected.gradient_norm, rtol=5 * tolerance)
    assert results[0].objective != plain[1][0].objective
    assert {weight.dtype for weight in trained.weights() if weight.dtype.kind == "f"} == {np.dtype(np.float32)}
    # What is saved is read into a model that knows nothing of it.
    restored = get_joint_spectral_filter(trained.profile.model)
    restored.set_weights(trained.filter.get_weights())
    magnitude = np.random.default_rng(0).uniform(0, 3, (1, 9, 129, 2)).astype(np.float32)
    np.testing.assert_allclose(trained.filter(magnitude), restored(magnitude), atol=10 * tolerance)


def test_overflow_changes_nothing_but_the_scale() -> None:
    trained = Trained(precision="float16")
    trained.optimizer.dynamic_scale.assign(2.0**120)
    before = [variable.numpy() for variable in trained.filter.trainable_variables]
    result = trained.step()
    assert np.isfinite(result.objective)
    assert not np.isfinite(result.gradient_norm)
    assert float(trained.optimizer.dynamic_scale.numpy()) == 2.0**119
    assert int(trained.optimizer.iterations.numpy()) == 0
    for old, new in zip(before, trained.filter.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_the_loss_scale_changes_neither_decay_nor_step() -> None:
    weights = []
    for scale in (2.0**10, 2.0**13):  # below, small gradients become zero
        trained = Trained(precision="float16", weight_decay=0.5)
        trained.optimizer.dynamic_scale.assign(scale)
        for _ in range(3):
            trained.step()
        weights.append(trained.weights())
    for one, other in zip(*weights, strict=True):
        # The median: Adam turns the rounding of a gradient that is almost zero into a step.
        assert np.median(np.abs(one.astype(np.float64) - other)) < 5e-4


def test_a_float16_run_goes_on_as_if_never_interrupted(tmp_path: Path) -> None:
    def checkpoints(trained: Trained) -> Checkpoints:
        return Checkpoints(str(tmp_path), trained.filter, trained.optimizer, trained.profile, None)

    first = Trained(precision="float16")
    first.optimizer.dynamic_scale.assign(2.0**12)
    first.step()
    first.step()
    state = LoopState.start(first.profile)
    checkpoints(first).save(state)
    second = Trained(precision="float16")
    checkpoints(second).restore(state)
    for variable, other in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), other.numpy(), err_msg=variable.path)
    assert float(second.optimizer.dynamic_scale.numpy()) == 2.0**12
    np.testing.assert_array_equal(first.step().losses, second.step().losses)
    for one, other in zip(first.weights(), second.weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="train.precision is float16 there and float32 in the profile"):
        checkpoints(Trained()).restore(state)


def test_xla_computes_the_same(plain: tuple[Trained, list[StepResult]]) -> None:
    trained = Trained(xla=True)
    for expected in plain[1]:
        result = trained.step()
        np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-4)
        np.testing.assert_allclose(result.gradient_norm, expected.gradient_norm, rtol=1e-3)
