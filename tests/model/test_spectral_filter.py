"""The BLSTM filter against its equations in NumPy and Keras' LSTM; joint models against each other."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.level import level
from umx_model.model.spectral_filter import (
    BLSTMSpectralFilterLayer,
    JointSpectralFilter,
    SpectralFilterLayer,
    bins_up_to,
    get_joint_spectral_filter,
    register_spectral_filter,
    set_input_statistics,
)
from umx_model.profile import ModelProfile

SMALL = {"n_fft": 64, "hop_length": 16, "sample_rate": 8000, "bandwidth": 3000.0, "hidden_size": 6, "layers": 2}


def magnitudes(channels: int = 2, bins: int = 33, frames: int = 7) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 3, (2, frames, bins, channels)).astype(np.float32)


def randomize(layer: keras.layers.Layer) -> None:
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.dtype == "float32":
            weight.assign(
                rng.uniform(0.1, 0.9, weight.shape) * (1 if "variance" in weight.path else rng.choice([-1, 1]))
            )


def in_numpy(layer: BLSTMSpectralFilterLayer, magnitude: np.ndarray, channels: int) -> np.ndarray:
    """Section by section as Open-Unmix writes it down; recurrence by Keras' own LSTM."""
    weights = {weight.path.split("/", 1)[1]: weight.numpy() for weight in layer.weights}

    def norm(x, name):
        mean, variance = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
        return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def lstm(x, name, backwards):
        kernel, recurrent, bias, recurrent_bias = (
            weights[f"{name}/{part}"] for part in ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
        )
        layer = keras.layers.LSTM(recurrent.shape[0], return_sequences=True, go_backwards=backwards)
        layer.build(x.shape)
        layer.set_weights([kernel, recurrent, bias + recurrent_bias])
        y = layer(x).numpy()
        return y[:, ::-1] if backwards else y

    batch, frames, bins, _ = magnitude.shape
    crop = int(np.sum(np.linspace(0, 4000, bins) <= 3000))
    x = (magnitude[:, :, :crop] + weights["input_mean"][:, None]) * weights["input_scale"][:, None]
    encoding = np.tanh(norm(x.reshape(batch, frames, -1) @ weights["encoder/kernel"], "encoder_norm"))
    x = encoding
    for i in range(2):
        parts = [lstm(x, f"lstm_{i}_forward", False)]
        if f"lstm_{i}_backward/kernel" in weights:
            parts.append(lstm(x, f"lstm_{i}_backward", True))
        x = np.concatenate(parts, axis=-1)
    x = np.concatenate([encoding, x], axis=-1)
    x = np.maximum(norm(x @ weights["decoder/kernel"], "decoder_norm"), 0)
    x = norm(x @ weights["mask/kernel"], "mask_norm").reshape(batch, frames, bins, channels)
    x = x * weights["output_scale"][:, None] + weights["output_mean"][:, None]
    return np.maximum(x, 0) * magnitude


@pytest.mark.parametrize(("bandwidth", "bins"), [(16000.0, 1487), (22050.0, 2049), (1e6, 2049), (1.0, 1)])
def test_bins_up_to_the_bandwidth(bandwidth, bins):
    assert bins_up_to(bandwidth, 4096, 44100) == bins


def small_layer(**changes) -> BLSTMSpectralFilterLayer:
    settings = {**{k: v for k, v in SMALL.items() if k != "hop_length"}, **changes}
    return BLSTMSpectralFilterLayer(**settings)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("unidirectional", [False, True])
def test_equals_the_equations(channels, unidirectional):
    layer = small_layer(channels=channels, unidirectional=unidirectional)
    magnitude = magnitudes(channels)
    layer(magnitude)
    randomize(layer)
    np.testing.assert_allclose(layer(magnitude), in_numpy(layer, magnitude, channels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    # PyTorch's count for openunmix.model.OpenUnmix with the same settings.
    [({}, 8_893_348), ({"hidden_size": 1024}, 28_257_188)],
)
def test_parameters_of_open_unmix(settings, parameters):
    layer = BLSTMSpectralFilterLayer(**settings)
    layer.build((None, None, 2049, 2))
    assert layer.max_bin == 1487
    assert sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables) == parameters


def test_unidirectional_is_causal():
    layer, magnitude = small_layer(unidirectional=True), magnitudes()
    whole = layer(magnitude).numpy()
    np.testing.assert_allclose(layer(magnitude[:, :4]), whole[:, :4], atol=1e-6)
    both = small_layer()
    assert np.abs(both(magnitude[:, :4]) - both(magnitude)[:, :4]).max() > 1e-4


def test_dropout_is_fresh_per_frame():
    layer = small_layer(dropout=0.5)
    ones = tf.ones([40, 2, 6])
    dropped = layer.dropouts[0](ones, training=True).numpy()
    assert 0.35 < (dropped == 0).mean() < 0.65
    assert not (dropped == dropped[:1]).all()  # one mask for all frames would be
    magnitude = magnitudes()
    np.testing.assert_array_equal(layer(magnitude), layer(magnitude))


def test_input_statistics_standardise():
    profile = ModelProfile(targets=("a", "b"), **SMALL)
    model = get_joint_spectral_filter(profile)
    mean, std = np.linspace(1, 2, 33), np.linspace(0, 1, 33)
    set_input_statistics(model, mean, std)
    for layer in model.layers:
        if isinstance(layer, SpectralFilterLayer):
            crop = layer.max_bin
            np.testing.assert_allclose(layer.input_mean, -mean[:crop], rtol=1e-6)
            floor = np.maximum(std[:crop], 1e-4 * std[:crop].max())
            np.testing.assert_allclose(layer.input_scale, 1 / floor, rtol=1e-6)


def test_functional_and_subclassed_are_equal():
    profile = ModelProfile(targets=("a", "b", "c"), **SMALL)
    functional, subclassed = get_joint_spectral_filter(profile), JointSpectralFilter(profile)
    randomize(functional)
    subclassed.set_weights(functional.get_weights())
    magnitude = magnitudes()
    estimates = functional(magnitude)
    assert estimates.shape == (*magnitude.shape, 3)
    np.testing.assert_array_equal(subclassed(magnitude), estimates)
    single = functional.get_layer("b")(magnitude)
    np.testing.assert_allclose(estimates[..., 1], single, atol=1e-6)
    rebuilt = JointSpectralFilter.from_config(subclassed.get_config())
    rebuilt.set_weights(functional.get_weights())
    np.testing.assert_array_equal(rebuilt(magnitude), estimates)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_bridges_are_those_of_x_umx(unidirectional):
    settings = {"targets": ("a", "b", "c"), "unidirectional": unidirectional, **SMALL}
    plain = get_joint_spectral_filter(ModelProfile(**settings))
    bridged = get_joint_spectral_filter(ModelProfile(**settings, bridges=True))
    subclassed = JointSpectralFilter(ModelProfile(**settings, bridges=True))
    assert [weight.path for weight in bridged.weights] == [weight.path for weight in plain.weights]
    randomize(plain)
    for model in (bridged, subclassed):
        model.set_weights(plain.get_weights())
    magnitude = magnitudes()
    # The forward pass of asteroid's XUMX: `inputs`, `cross_1` and `cross_2` are its names.
    filters = [plain.get_layer(target) for target in "abc"]
    inputs = [layer.encode(magnitude, training=False) for layer in filters]
    cross_1 = sum(inputs) / 3
    cross_2 = 0.0
    for layer, encoding in zip(filters, inputs, strict=True):
        cross_2 += tf.concat([encoding, layer.recur(cross_1, training=False)], -1)
    encoding, recurrent = tf.split(cross_2 / 3, 2, axis=-1)
    expected = tf.stack([layer.decode(magnitude, encoding, recurrent, training=False) for layer in filters], -1)
    np.testing.assert_allclose(bridged(magnitude), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(subclassed(magnitude), bridged(magnitude))
    assert np.abs(plain(magnitude) - expected).max() > 0.01


def test_bridges_train_all_filters_on_one_target():
    model = get_joint_spectral_filter(ModelProfile(targets=("a", "b"), bridges=True, **SMALL))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(magnitudes(), training=True)[..., 0])
    gradients = tape.gradient(loss, model.get_layer("b").trainable_weights)
    assert any(gradient is not None and np.any(gradient) for gradient in gradients)


def test_another_architecture_is_one_class():
    @register_spectral_filter("gain per bin")
    @keras.saving.register_keras_serializable(package="tests")
    class GainPerBin(SpectralFilterLayer):
        @classmethod
        def from_profile(cls, profile, **kwargs):
            return cls(**kwargs)

        def build(self, input_shape):
            self.gain = self.add_weight(name="gain", shape=(input_shape[2], 1), initializer="ones")

        def call(self, magnitude):
            return self.gain * magnitude

    profile = ModelProfile(targets=("a", "b"), architecture="gain per bin", **SMALL)
    magnitude = magnitudes()
    for make in (get_joint_spectral_filter, JointSpectralFilter):
        model = make(profile)
        model.set_weights([np.full((33, 1), 0.25), np.full((33, 1), 0.75)])
        np.testing.assert_allclose(model(magnitude), np.stack([0.25 * magnitude, 0.75 * magnitude], -1), rtol=1e-6)
        with pytest.raises(InputError, match="model.bridges: .*'gain per bin' have no parts"):
            make(profile.model_copy(update={"bridges": True}))


def test_unknown_architecture_names_the_known_ones():
    with pytest.raises(InputError, match=r"'transformer' is not registered; known are blstm"):
        get_joint_spectral_filter(ModelProfile(targets=("a",), architecture="transformer"))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register_spectral_filter("blstm")(type("Other", (SpectralFilterLayer,), {}))


def test_magnitudes_of_another_shape():
    with pytest.raises(ValueError, match="33 bins, 2 channels"):
        small_layer()(magnitudes(channels=1))


def test_level_changes_nothing_where_it_is_normalized():
    profile = ModelProfile(targets=("a", "b"), n_fft=64, hop_length=32, hidden_size=8, layers=1, normalize_level=True)
    model = get_joint_spectral_filter(profile)
    rng = np.random.default_rng(3)
    magnitude = np.abs(rng.normal(size=[2, 7, 33, 2])).astype(np.float32)
    moments = magnitude.mean(axis=(0, 1, 3)), magnitude.std(axis=(0, 1, 3))
    set_input_statistics(model, *moments)
    estimates = model(magnitude).numpy()
    np.testing.assert_allclose(model(0.1 * magnitude).numpy(), 0.1 * estimates, rtol=1e-4, atol=1e-6)
    padded = np.pad(magnitude, [(0, 0), (0, 9), (0, 0), (0, 0)])
    np.testing.assert_allclose(level(padded), level(magnitude), rtol=1e-6)  # silence around it has no part in it
    # Each mixture has a level of its own.
    louder = np.stack([magnitude[0], 5 * magnitude[1]])
    np.testing.assert_allclose(model(louder).numpy()[0], estimates[0], rtol=1e-5, atol=1e-6)
    assert np.isfinite(model(0 * magnitude).numpy()).all()
    # In training random gains do their work.
    trained = [model(mixtures, training=True).numpy()[0] for mixtures in (magnitude, louder)]
    assert np.abs(trained[0] - trained[1]).max() > 1e-3


def test_music_of_the_training_level_stays_as_it_is():
    settings = {"targets": ("a",), "n_fft": 64, "hop_length": 32, "hidden_size": 8, "layers": 1}
    plain = get_joint_spectral_filter(ModelProfile(**settings))
    normalizing = get_joint_spectral_filter(ModelProfile(**settings, normalize_level=True))
    magnitude = np.abs(np.random.default_rng(4).normal(size=[1, 50, 33, 2])).astype(np.float32)
    magnitude[..., 24:, :] = 0  # not read: above the bandwidth
    moments = magnitude.mean(axis=(0, 1, 3)), magnitude.std(axis=(0, 1, 3))
    for model in (plain, normalizing):
        set_input_statistics(model, *moments)
    weights = {weight.path: weight for weight in plain.weights}
    for weight in normalizing.weights:
        if weight.path in weights:
            weight.assign(weights[weight.path])
    np.testing.assert_allclose(normalizing(magnitude).numpy(), plain(magnitude).numpy(), rtol=1e-4, atol=1e-6)
