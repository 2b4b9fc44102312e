"""The folded network against the Keras layers that it was made of."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.model.folded import FoldedBLSTM
from umx_model.model.spectral_filter import JointSpectralFilter, get_joint_spectral_filter
from umx_model.profile import ModelProfile


def random_filter(subclassed: bool = False, **settings: object) -> keras.Model:
    defaults = {"targets": ("a", "b"), "n_fft": 256, "hop_length": 64, "hidden_size": 16, "layers": 2}
    profile = ModelProfile.model_validate({**defaults, **settings})
    model = JointSpectralFilter(profile) if subclassed else get_joint_spectral_filter(profile)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        positive = any(name in weight.path for name in ("variance", "scale", "gamma"))
        spread = 0.1 if "refiner" in weight.path else 0.3  # so that sums of hundreds of products stay near 1
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, spread, weight.shape))
    return model


def magnitudes(batch: int, frames: int, channels: int = 2) -> np.ndarray:
    return np.abs(np.random.default_rng(1).normal(size=[batch, frames, channels, 129])).astype(np.float32)


def magnitudes_for(model: keras.Model, batch: int, frames: int) -> np.ndarray:
    return magnitudes(batch, frames, model.profile.network_channels)


def expected(model: keras.Model, magnitude: np.ndarray) -> np.ndarray:
    """Masks in the folded network's order of axes."""
    estimates = model(magnitude.transpose(0, 1, 3, 2), training=False).numpy()
    return estimates.transpose(4, 0, 1, 3, 2) / magnitude[:, :, : model.profile.channels]


@pytest.mark.parametrize("compiled_frames", [None, 40])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unidirectional": True},
        {"bandwidth": 5000.0},
        {"subclassed": True},
        {"bridges": True},
        {"normalize_level": True},
        {"refiner_channels": 6, "bandwidth": 5000.0},
        {"refiner_channels": 6, "subclassed": True},
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_keras(compiled_frames: int | None, settings: dict[str, object], batch: int) -> None:
    model = random_filter(**settings)
    folded, magnitude = FoldedBLSTM(model, compiled_frames), magnitudes_for(model, batch, 33)
    masks, _ = tf.function(lambda x: folded(x))(magnitude)
    np.testing.assert_allclose(masks, expected(model, magnitude), rtol=1e-4, atol=1e-5)


def test_mono() -> None:
    model = random_filter(channels=1)
    magnitude = magnitudes(2, 20, channels=1)
    np.testing.assert_allclose(FoldedBLSTM(model)(magnitude)[0], expected(model, magnitude), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bridges", [False, True])
def test_state_carries_a_unidirectional_model_on(bridges: bool) -> None:
    model = random_filter(unidirectional=True, bridges=bridges)
    folded, magnitude = FoldedBLSTM(model), magnitudes(1, 30)
    first, state = folded(magnitude[:, :11])
    second, _ = folded(magnitude[:, 11:], state)
    masks = expected(model, magnitude)
    np.testing.assert_allclose(np.concatenate([first, second], axis=2), masks, rtol=1e-4, atol=1e-5)
    assert not np.allclose(folded(magnitude[:, 11:])[0], masks[:, :, 11:], rtol=1e-3)


@pytest.mark.parametrize("refiner_channels", [0, 6])
def test_masks_of_a_piece_of_features(refiner_channels: int) -> None:
    model = random_filter(refiner_channels=refiner_channels)
    folded, magnitude = FoldedBLSTM(model), magnitudes_for(model, 1, 30)
    features, _ = folded.features(magnitude)
    whole = folded.masks(features)
    np.testing.assert_allclose(folded.masks(features[:, :, 7:9]), whole[:, :, 7:9], rtol=1e-5, atol=1e-6)


def test_other_models_are_refused() -> None:
    model = random_filter()
    stranger = keras.Model(model.input, keras.ops.stack([model.input, model.input], axis=-1))
    stranger.profile = model.profile
    with pytest.raises(ValueError, match="only joint models of plain 'blstm' filters"):
        FoldedBLSTM(stranger)


def test_what_was_extended_is_not_folded() -> None:
    class Halved(JointSpectralFilter):
        def call(self, magnitude: tf.Tensor, training: bool = False) -> tf.Tensor:
            return 0.5 * super().call(magnitude, training=training)

    plain = random_filter()
    doubled = keras.Model(plain.input, 2 * plain.output)
    doubled.profile = plain.profile
    assert FoldedBLSTM.accepts(plain)
    assert FoldedBLSTM.accepts(random_filter(subclassed=True))
    assert not FoldedBLSTM.accepts(Halved(plain.profile))
    assert not FoldedBLSTM.accepts(doubled)
