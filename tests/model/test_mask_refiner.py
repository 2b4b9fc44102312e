"""The refiner of masks: changes nothing at first, looks near, does not mind the level, and learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.model.folder import read_model, write_model_folder
from umx_model.model.mask_refiner import MaskRefiner
from umx_model.model.network_input import network_input
from umx_model.model.spectral_filter import JointSpectralFilter, freeze_filters, get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile

BINS, READ, CHANNELS, TARGETS = 70, 61, 2, 3
PROFILE = ModelProfile(targets=("a", "b", "c"), n_fft=138, hop_length=64, refiner_channels=8)
# What all convolutions together see of the frames around one, to each side.
REACH = 10


def make_refiner(seed: int | None = None, **settings: object) -> MaskRefiner:
    """A refiner, with random weights where there is a seed."""
    refiner = MaskRefiner(TARGETS, CHANNELS, READ, 8, **settings)
    refiner.build((None, None, BINS, 3), (None, None, BINS, CHANNELS, TARGETS))
    if seed is not None:
        generator = np.random.default_rng(seed)
        for weight in refiner.weights:
            weight.assign(generator.normal(0, 0.15, weight.shape))
    return refiner


def make_spectrum(frames: int = 30, batch: int = 2) -> np.ndarray:
    parts = np.random.default_rng(frames).normal(size=(2, batch, frames, BINS, CHANNELS))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def make_input(frames: int = 30, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes of two channels and half their difference, and masks."""
    magnitude = network_input(make_spectrum(frames, batch), PROFILE).numpy()
    masks = np.random.default_rng(frames).uniform(0.3, 1, (batch, frames, BINS, CHANNELS, TARGETS))
    return magnitude, masks.astype(np.float32)


def test_changes_nothing_before_training() -> None:
    magnitude, masks = make_input()
    estimates = magnitude[..., :CHANNELS, np.newaxis] * masks
    np.testing.assert_allclose(make_refiner()(magnitude, estimates), estimates, rtol=1e-6)


def test_is_unet_of_keras_layers() -> None:
    """The same convolutions, put together with Keras' own layers."""
    refiner, (magnitude, masks) = make_refiner(seed=1), make_input()
    spectrum = make_spectrum()[:, :, :READ]
    left, right = np.moveaxis(spectrum, -1, 0)
    low = np.abs(spectrum)
    level = np.sum(low**2, axis=(1, 2, 3), keepdims=True) / np.sum(low, axis=(1, 2, 3), keepdims=True)
    seen = np.abs(np.stack([left, right, (left - right) / 2, (left + right) / 2], axis=-1))
    height = np.broadcast_to(np.linspace(-1, 1, READ)[:, np.newaxis], (*low.shape[:3], 1))
    flat = masks[:, :, :READ].reshape(*low.shape[:3], -1)
    x = np.concatenate([np.log(seen / level + 1e-3) / 3, flat / 3, height], axis=-1).astype(np.float32)
    x = np.pad(x, [(0, 0), (0, 0), (0, 3), (0, 0)])

    twice, joined = keras.layers.UpSampling2D((1, 2), interpolation="nearest"), keras.layers.Concatenate()
    d0 = refiner.down[0](x)
    d1 = refiner.down[1](d0)
    d2 = refiner.down[2](d1)
    y = refiner.bottom(refiner.down[3](d2))
    y = refiner.up[2](joined([twice(y), d2]))
    y = refiner.up[1](joined([twice(y), d1]))
    y = refiner.up[0](joined([twice(y), d0]))
    y = refiner.full(joined([twice(y), x]))
    correction = refiner.correction(y).numpy()[:, :, :READ].reshape(*low.shape, TARGETS)
    assert np.abs(correction).max() > 0.1
    expected = masks.copy()
    expected[:, :, :READ] = np.maximum(masks[:, :, :READ] + correction, 0)
    np.testing.assert_allclose(refiner.refine(magnitude, masks), expected, rtol=1e-3, atol=1e-4)


def test_level_makes_no_difference() -> None:
    refiner, (magnitude, masks) = make_refiner(seed=2), make_input()
    loud, quiet = (refiner.refine(gain * magnitude, masks) for gain in (1, 0.01))
    np.testing.assert_allclose(loud, quiet, rtol=1e-4, atol=1e-4)


def test_silence_is_silence() -> None:
    refiner = make_refiner(seed=3)
    magnitude = np.zeros((1, 20, BINS, 3), np.float32)
    assert not np.any(refiner(magnitude, np.zeros((1, 20, BINS, CHANNELS, TARGETS), np.float32)))


def test_mono_has_no_difference() -> None:
    refiner = MaskRefiner(TARGETS, 1, READ, 8)
    magnitude, masks = np.abs(make_spectrum()[..., :1]), make_input()[1][..., :1, :]
    profile = PROFILE.model_copy(update={"channels": 1})
    np.testing.assert_allclose(network_input(make_spectrum()[..., :1], profile), magnitude, rtol=1e-6)
    estimates = magnitude[..., np.newaxis] * masks
    np.testing.assert_allclose(refiner(magnitude, estimates), estimates, rtol=1e-6)


def test_hears_what_is_near_in_time() -> None:
    refiner, (magnitude, masks) = make_refiner(seed=4), make_input(frames=60, batch=1)
    changed = masks.copy()
    changed[:, 30] *= 0.5
    moved = np.abs(refiner.refine(magnitude, changed) - refiner.refine(magnitude, masks)).max(axis=(0, 2, 3, 4))
    moved[30] = 0
    assert np.all(moved[30 - REACH : 30] + moved[31 : 31 + REACH] > 0)
    assert not np.any(np.delete(moved, range(30 - REACH, 31 + REACH)))


def test_bins_above_the_bandwidth_keep_their_masks() -> None:
    refiner, (magnitude, masks) = make_refiner(seed=5), make_input()
    refined = refiner.refine(magnitude, masks).numpy()
    np.testing.assert_array_equal(refined[:, :, READ:], masks[:, :, READ:])
    assert not np.allclose(refined[:, :, :READ], masks[:, :, :READ])


@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_learns_to_tell_peaks_from_the_rest(dtype: str | None) -> None:
    """One target has the loudest of 10 bins, another has the others; the masks tell it nothing."""
    keras.utils.set_random_seed(0)
    refiner, generator = make_refiner(dtype=dtype), np.random.default_rng(6)
    magnitude = generator.uniform(0.1, 0.3, (4, 16, BINS, CHANNELS)).astype(np.float32)
    peak = np.zeros((*magnitude.shape, 1), np.float32)
    peak[:, np.arange(16), generator.integers(0, 10, 16)] = 1
    peak[:, np.arange(16), generator.integers(30, 60, 16)] = 1
    magnitude += 2 * peak[..., 0]
    seen = np.concatenate([magnitude, np.zeros_like(magnitude[..., :1])], axis=-1)
    targets = magnitude[..., np.newaxis] * np.concatenate([peak, 1 - peak, 0 * peak], axis=-1)
    estimates = magnitude[..., np.newaxis] / TARGETS * np.ones(TARGETS, np.float32)
    optimizer, losses = keras.optimizers.Adam(3e-3), []
    for _ in range(60):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(refiner(seen, estimates) - targets))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, refiner.trainable_variables), refiner.trainable_variables, strict=True)
        )
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("half", [False, True])
def test_a_model_with_one_is_stored(half: bool, tmp_path) -> None:
    settings = {"n_fft": 64, "hop_length": 16, "hidden_size": 6, "layers": 1, "refiner_channels": 4}
    profile = Profile.model_validate({"model": {"targets": ["a", "b"], **settings}})
    model, generator = get_joint_spectral_filter(profile.model), np.random.default_rng(7)
    for weight in model.weights:
        weight.assign(generator.uniform(0.1, 0.3, weight.shape).astype(np.float16))
    write_model_folder(tmp_path / "model", model, profile, saved_model=False, half=half)
    stored = read_model(tmp_path / "model")[0].spectral_filter
    for ours, theirs in zip(model.weights, stored.weights, strict=True):
        assert ours.path == theirs.path
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_functional_and_subclassed_are_equal() -> None:
    profile = ModelProfile(targets=("a", "b"), n_fft=64, hop_length=16, hidden_size=6, layers=1, refiner_channels=4)
    functional, subclassed = get_joint_spectral_filter(profile), JointSpectralFilter(profile)
    generator = np.random.default_rng(8)
    for ours, theirs in zip(functional.weights, subclassed.weights, strict=True):
        ours.assign(generator.uniform(0.1, 0.3, ours.shape))
        theirs.assign(ours)
    magnitude = generator.uniform(0, 2, (2, 9, 33, 3)).astype(np.float32)
    estimates = functional(magnitude)
    np.testing.assert_allclose(subclassed(magnitude), estimates, rtol=1e-5, atol=1e-6)
    plain = get_joint_spectral_filter(profile.model_copy(update={"refiner_channels": 0}))
    for ours, theirs in zip(plain.weights, functional.weights, strict=False):
        ours.assign(theirs)
    assert not np.allclose(plain(magnitude[..., :2]), estimates, rtol=1e-2)


def test_frozen_filters_run_as_in_separation() -> None:
    settings = {"n_fft": 64, "hop_length": 16, "hidden_size": 6, "layers": 2, "refiner_channels": 4, "dropout": 0.9}
    model = get_joint_spectral_filter(ModelProfile(targets=("a", "b"), normalize_level=True, **settings))
    magnitude = np.random.default_rng(9).uniform(0, 2, (2, 9, 33, 3)).astype(np.float32)
    assert not np.allclose(model(magnitude, training=True), model(magnitude), rtol=1e-2)
    freeze_filters(model)
    np.testing.assert_allclose(model(magnitude, training=True), model(magnitude), rtol=1e-5)
    assert {weight.path.split("/")[0] for weight in model.trainable_weights} == {"mask.refiner"}


def test_hears_what_is_in_the_middle() -> None:
    """Two mixtures of the same magnitudes in both channels, in phase and against it."""
    refiner, spectrum = make_refiner(seed=10), make_spectrum()[..., :1]
    masks = make_input()[1]
    middle, side = (network_input(np.concatenate([spectrum, sign * spectrum], -1), PROFILE) for sign in (1, -1))
    np.testing.assert_array_equal(middle[..., :2], side[..., :2])
    assert not np.allclose(refiner.refine(middle, masks), refiner.refine(side, masks), rtol=0.1)
