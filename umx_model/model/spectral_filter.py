"""Spectral filters: magnitude spectrogram of the mixture in, of one target out; and the joint model.

One filter serves one target. `get_joint_spectral_filter` runs one per target of a profile side by
side, or joined by averaging bridges where the profile says so (`model.bridges`). Another architecture
is one class, registered by name and chosen by `architecture` in the profile:

    @register_spectral_filter("gain")
    class GainLayer(SpectralFilterLayer):
        ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.level import level
from umx_model.model.mask_refiner import MaskRefiner
from umx_model.model.recurrent import LSTM
from umx_model.profile import ModelProfile


class SpectralFilterLayer(keras.layers.Layer):
    """Base of the layers that estimate one target.

    Input shape:
        magnitudes `[batch, frames, bins, channels]`, float32.

    Output shape:
        the same.
    """

    @classmethod
    def from_profile(cls, profile: ModelProfile, **kwargs: Any) -> SpectralFilterLayer:
        """Make the layer that a profile describes; `kwargs` go to `keras.layers.Layer`."""
        raise NotImplementedError(f"{cls.__name__} does not say how it is made from a profile")

    def set_input_statistics(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Start from the statistics of training mixtures, each [bins]; ignored by default."""

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input's shape."""
        return input_shape


class BridgedSpectralFilterLayer(SpectralFilterLayer):
    """Base of those made of three parts, between which averaging bridges can join the targets' filters.

    The parts are `encode`, `recur` and `decode`; without bridges each takes what the one before it gave.
    """

    def encode(self, magnitude: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the encoding `[batch, frames, features]` of magnitudes."""
        raise NotImplementedError

    def recur(self, encoding: tf.Tensor, training: bool) -> tf.Tensor:
        """Return what the recurrent layers make of an encoding, of the same shape."""
        raise NotImplementedError

    def decode(self, magnitude: tf.Tensor, encoding: tf.Tensor, recurrent: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the target's magnitudes."""
        raise NotImplementedError

    def call(
        self,
        magnitude: tf.Tensor,
        encoding: tf.Tensor | None = None,
        recurrent: tf.Tensor | None = None,
        part: str | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Estimate the target's magnitudes, or run one part alone.

        Args:
            magnitude: `[batch, frames, bins, channels]`.
            encoding: for `recur` and `decode`.
            recurrent: for `decode`.
            part: `encode`, `recur` or `decode`.
            training: whether dropout and batch normalisation are in the state of training; frozen filters never are.
        """
        training = training and self.trainable
        if part == "encode":
            return self.encode(magnitude, training)
        if part == "recur":
            return self.recur(encoding, training)
        if part != "decode":
            encoding = self.encode(magnitude, training)
            recurrent = self.recur(encoding, training)
        return self.decode(magnitude, encoding, recurrent, training)

    def compute_output_spec(
        self,
        magnitude: Any,
        encoding: Any = None,
        recurrent: Any = None,
        part: str | None = None,
        training: bool = False,
    ) -> keras.KerasTensor:
        """Return shape and dtype of the estimate, or of a part's output."""
        shape = (*magnitude.shape[:2], self.features) if part in ("encode", "recur") else magnitude.shape
        return keras.KerasTensor(shape, dtype="float32")

    @property
    def features(self) -> int:
        """Width of the encoding and of the recurrent output."""
        raise NotImplementedError


_architectures: dict[str, type[SpectralFilterLayer]] = {}
_Filter = TypeVar("_Filter", bound=type[SpectralFilterLayer])


def register_spectral_filter(name: str) -> Callable[[_Filter], _Filter]:
    """Make a class of spectral filters available as `architecture` in a profile.

    Args:
        name: what profiles call it.

    Raises:
        ValueError: another class has this name.
    """

    def register(cls: _Filter) -> _Filter:
        if _architectures.setdefault(name, cls) is not cls:
            raise ValueError(f"spectral filter {name!r} is registered already, as {_architectures[name].__name__}")
        return cls

    return register


@register_spectral_filter("blstm")
@keras.saving.register_keras_serializable(package="umx_model")
class BLSTMSpectralFilterLayer(BridgedSpectralFilterLayer):
    """Open-Unmix's network for one target (`openunmix/model.py`, v1.3.0; Stöter et al., 2019).

    Crop to the bandwidth, standardise, encode (dense, batch normalisation, tanh), recur, join the
    encoding and the recurrent output, decode to a mask over all bins, and multiply the mixture by it.
    8,893,348 trainable parameters at the defaults.

    Args:
        channels: of the magnitudes.
        n_fft: transform length that made the magnitudes; they have `n_fft / 2 + 1` bins.
        sample_rate: Hz.
        hidden_size: width of the encoding and of the recurrent output (half per direction).
        layers: recurrent layers.
        bandwidth: Hz; bins above are not read, but the mask covers them.
        unidirectional: causal recurrent layers of `hidden_size` units.
        dropout: rate between recurrent layers while training, fresh for every frame and unit.
        normalize_level: except in training, bring each mixture to the level of the training music before it is
            standardised. Masks then do not depend on the level, while in training random gains do their work.
        dtype: policy of the dense layers, such as `mixed_float16`, which a saved model does not keep. What LSTMs
            multiply for all frames at once is as precise, on CPU. The input's scaling, batch normalisation, the
            recurrence and the mask's use are float32 always.

    Raises:
        ValueError: an impossible setting, or magnitudes of another shape.

    Input shape:
        magnitudes `[batch, frames, n_fft / 2 + 1, channels]`, float32.

    Output shape:
        the same.
    """

    def __init__(
        self,
        channels: int = 2,
        n_fft: int = 4096,
        sample_rate: int = 44100,
        hidden_size: int = 512,
        layers: int = 3,
        bandwidth: float = 16000.0,
        unidirectional: bool = False,
        dropout: float = 0.4,
        normalize_level: bool = False,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", **kwargs)
        if hidden_size % 2 and not unidirectional:
            raise ValueError(f"hidden_size must be even (half per direction), got {hidden_size}")
        if bandwidth <= 0:
            raise ValueError(f"bandwidth must be above 0 Hz, got {bandwidth}")
        if normalize_level and unidirectional:
            raise ValueError("normalize_level needs all frames at once, and unidirectional layers get them one by one")
        self._settings: dict[str, Any] = {
            "channels": channels,
            "n_fft": n_fft,
            "sample_rate": sample_rate,
            "hidden_size": hidden_size,
            "layers": layers,
            "bandwidth": bandwidth,
            "unidirectional": unidirectional,
            "dropout": dropout,
            "normalize_level": normalize_level,
        }
        self.bins = n_fft // 2 + 1
        self.channels = channels
        self.normalizes_level = normalize_level
        self.max_bin = bins_up_to(bandwidth, n_fft, sample_rate)

        self.encoder = keras.layers.Dense(hidden_size, use_bias=False, dtype=dtype, name="encoder")
        self.encoder_norm = _batch_norm("encoder_norm")
        units = hidden_size if unidirectional else hidden_size // 2
        products = self.encoder.compute_dtype
        self.forward_lstms = [
            LSTM(units, products=products, dtype="float32", name=f"lstm_{i}_forward") for i in range(layers)
        ]
        self.backward_lstms = [
            LSTM(units, reverse=True, products=products, dtype="float32", name=f"lstm_{i}_backward")
            for i in range(0 if unidirectional else layers)
        ]
        self.dropouts = [keras.layers.Dropout(dropout, dtype="float32", name=f"dropout_{i}") for i in range(layers - 1)]
        self.decoder = keras.layers.Dense(hidden_size, use_bias=False, dtype=dtype, name="decoder")
        self.decoder_norm = _batch_norm("decoder_norm")
        self.mask = keras.layers.Dense(self.bins * channels, use_bias=False, dtype=dtype, name="mask")
        self.mask_norm = _batch_norm("mask_norm")

    @classmethod
    def from_profile(cls, profile: ModelProfile, **kwargs: Any) -> BLSTMSpectralFilterLayer:
        """Make the layer that a profile describes."""
        return cls(
            channels=profile.channels,
            n_fft=profile.n_fft,
            sample_rate=profile.sample_rate,
            hidden_size=profile.hidden_size,
            layers=profile.layers,
            bandwidth=profile.bandwidth,
            unidirectional=profile.unidirectional,
            dropout=profile.dropout,
            normalize_level=profile.normalize_level,
            **kwargs,
        )

    def set_input_statistics(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Standardise the input with these statistics, each [bins]; small deviations are floored."""
        mean, std = mean[: self.max_bin], std[: self.max_bin]
        self.input_mean.assign(-mean)
        self.input_scale.assign(1.0 / np.maximum(std, max(1e-4 * float(np.max(std)), 1e-12)))
        if self.normalizes_level:
            self.input_level.assign(float(np.sum(np.square(mean) + np.square(std)) / max(float(np.sum(mean)), 1e-12)))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        if tuple(input_shape[2:]) != (self.bins, self.channels):
            raise ValueError(
                f"magnitudes must be [batch, frames, {self.bins} bins, {self.channels} channels], got {input_shape}"
            )
        hidden = self._settings["hidden_size"]
        self.input_mean = self.add_weight(name="input_mean", shape=(self.max_bin,), initializer="zeros")
        self.input_scale = self.add_weight(name="input_scale", shape=(self.max_bin,), initializer="ones")
        if self.normalizes_level:
            self.input_level = self.add_weight(name="input_level", shape=(), initializer="ones", trainable=False)
        self.output_mean = self.add_weight(name="output_mean", shape=(self.bins,), initializer="ones")
        self.output_scale = self.add_weight(name="output_scale", shape=(self.bins,), initializer="ones")
        self.encoder.build((None, self.max_bin * self.channels))
        for lstm in [*self.forward_lstms, *self.backward_lstms]:
            lstm.build((None, None, hidden))
        self.decoder.build((None, 2 * hidden))
        self.mask.build((None, hidden))
        for norm in (self.encoder_norm, self.decoder_norm):
            norm.build((None, hidden))
        self.mask_norm.build((None, self.bins * self.channels))

    @property
    def features(self) -> int:
        """Width of the encoding and of the recurrent output."""
        return self.encoder.units

    def encode(self, magnitude: tf.Tensor, training: bool) -> tf.Tensor:
        """Crop, standardise and encode."""
        batch, frames = tf.shape(magnitude)[0], tf.shape(magnitude)[1]
        x = magnitude[:, :, : self.max_bin]
        if self.normalizes_level and not training:
            x = x * (self.input_level / level(x))
        x = (x + self.input_mean[:, tf.newaxis]) * self.input_scale[:, tf.newaxis]
        # All frames in one matrix: of three axes, the gradient would be a product for each excerpt and their sum.
        x = tf.reshape(x, [batch * frames, self.max_bin * self.channels])
        x = tf.tanh(self.encoder_norm(self.encoder(x), training=training))
        return tf.reshape(x, [batch, frames, self.features])

    def recur(self, encoding: tf.Tensor, training: bool) -> tf.Tensor:
        """Run the recurrent layers."""
        x = tf.transpose(encoding, [1, 0, 2])  # [frames, batch, hidden]
        for index, forward in enumerate(self.forward_lstms):
            if index:
                x = self.dropouts[index - 1](x, training=training)
            # One backward layer, or none where unidirectional.
            x = tf.concat([lstm(x) for lstm in [forward, *self.backward_lstms[index : index + 1]]], axis=-1)
        return tf.transpose(x, [1, 0, 2])

    def decode(self, magnitude: tf.Tensor, encoding: tf.Tensor, recurrent: tf.Tensor, training: bool) -> tf.Tensor:
        """Decode to a mask, and multiply the mixture by it."""
        batch, frames = tf.shape(magnitude)[0], tf.shape(magnitude)[1]
        x = tf.reshape(tf.concat([encoding, recurrent], axis=-1), [batch * frames, 2 * self.features])
        x = tf.nn.relu(self.decoder_norm(self.decoder(x), training=training))
        x = self.mask_norm(self.mask(x), training=training)
        x = tf.reshape(x, [batch, frames, self.bins, self.channels])
        x = x * self.output_scale[:, tf.newaxis] + self.output_mean[:, tf.newaxis]
        return tf.nn.relu(x) * magnitude

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), **self._settings}


def bins_up_to(bandwidth: float, n_fft: int, sample_rate: int) -> int:
    """Return how many bins, the lowest ones, lie at or below a bandwidth in Hz."""
    frequencies = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    return int(np.max(np.where(frequencies <= bandwidth)[0])) + 1


def get_joint_spectral_filter(profile: ModelProfile, dtype: str | None = None) -> keras.Model:
    """Make the functional Keras model that estimates all targets of a profile.

    With `bridges` the filters meet twice, as in X-UMX (Sawata et al., 2021; `asteroid/models/x_umx.py`):
    the recurrent layers of each read the mean of all encodings, and each decodes the mean of all
    encodings beside the mean of all recurrent outputs. Weights are the same, by number, shape and name.
    With `refiner_channels` a `MaskRefiner` follows, and the model reads `profile.network_channels` magnitudes of a bin.

    Args:
        profile: what to build.
        dtype: Keras policy of the filters, such as `mixed_float16` while training.

    Returns:
        A model from magnitudes `[batch, frames, bins, channels]`, those of `network_input`, to estimates
        `[batch, frames, bins, channels, targets]`, float32, with the profile as its attribute
        `profile`, and `made_by_profile` true: nothing else is in it.

    Raises:
        InputError: the profile names an architecture that is not registered, or bridges for one that has no parts.
    """
    magnitude = keras.Input((None, profile.bins, profile.network_channels), name="_magnitude")  # no target's name
    estimates = keras.ops.stack(_run_filters(profile, _make_filters(profile, dtype), magnitude), axis=-1)
    if profile.refiner_channels:
        estimates = _make_refiner(profile, dtype)(magnitude, estimates)
    model = keras.Model(magnitude, estimates, name="joint_spectral_filter")
    model.profile = profile
    model.made_by_profile = True
    return model


@keras.saving.register_keras_serializable(package="umx_model")
class JointSpectralFilter(keras.Model):
    """The model of `get_joint_spectral_filter` as a class, to be extended by overriding `call`.

    Args:
        profile: what to build.

    Raises:
        InputError: the profile names an architecture that is not registered, or bridges for one that has no parts.

    Input shape:
        magnitudes `[batch, frames, bins, channels]`, float32.

    Output shape:
        `[batch, frames, bins, channels, targets]`.
    """

    def __init__(self, profile: ModelProfile, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.profile = profile
        self.filters = _make_filters(profile)
        self.refiner = _make_refiner(profile) if profile.refiner_channels else None
        self.build((None, None, profile.bins, profile.network_channels))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        for layer in self.filters:
            if not layer.built:
                layer.build((*input_shape[:-1], self.profile.channels))
        if self.refiner is not None and not self.refiner.built:
            self.refiner.build(input_shape, self.compute_output_shape(input_shape))
        self.built = True

    def call(self, magnitude: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Estimate every target's magnitudes."""
        estimates = tf.stack(_run_filters(self.profile, self.filters, magnitude, training=training), axis=-1)
        return estimates if self.refiner is None else self.refiner(magnitude, estimates)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the channels' magnitudes, and the target axis."""
        return (*input_shape[:-1], self.profile.channels, len(self.filters))

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the model."""
        return {"profile": self.profile.model_dump(mode="json"), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> JointSpectralFilter:
        """Rebuild the model, with new weights."""
        return cls(ModelProfile.model_validate(config.pop("profile")), **config)


def set_input_statistics(spectral_filter: keras.Model, mean: np.ndarray, std: np.ndarray) -> None:
    """Give every filter of a joint model the statistics of training mixtures.

    Args:
        spectral_filter: a joint model, functional or subclassed.
        mean: of the mixtures' magnitudes, [bins].
        std: their standard deviation, [bins].
    """
    for layer in spectral_filter.layers:
        if isinstance(layer, SpectralFilterLayer):
            layer.set_input_statistics(mean, std)


def freeze_filters(spectral_filter: keras.Model) -> None:
    """Leave what is trained further to the refiner: the filters stay as they are, and run as in separation."""
    for layer in spectral_filter.layers:
        if isinstance(layer, SpectralFilterLayer):
            layer.trainable = False


def check_architecture(profile: ModelProfile) -> None:
    """Refuse a profile whose spectral filter nobody has registered.

    Raises:
        InputError: the profile names an architecture that is not registered, or bridges for one that has no parts.
    """
    if profile.architecture not in _architectures:
        raise InputError(
            f"model.architecture: {profile.architecture!r} is not registered; known are {', '.join(_architectures)}"
        )
    if profile.bridges and not issubclass(_architectures[profile.architecture], BridgedSpectralFilterLayer):
        raise InputError(
            f"model.bridges: filters of the architecture {profile.architecture!r} have no parts between which "
            f"bridges could be; set it to false, or make its class a BridgedSpectralFilterLayer"
        )


def _make_filters(profile: ModelProfile, dtype: str | None = None) -> list[SpectralFilterLayer]:
    check_architecture(profile)
    cls = _architectures[profile.architecture]
    kwargs = {} if dtype is None else {"dtype": dtype}
    return [cls.from_profile(profile, name=target, **kwargs) for target in profile.targets]


def _make_refiner(profile: ModelProfile, dtype: str | None = None) -> MaskRefiner:
    # No target's name has a dot.
    return MaskRefiner(
        len(profile.targets),
        profile.channels,
        bins_up_to(profile.bandwidth, profile.n_fft, profile.sample_rate),
        profile.refiner_channels,
        dtype=dtype,
        name="mask.refiner",
    )


def _run_filters(profile: ModelProfile, filters: list[SpectralFilterLayer], magnitude: Any, **kwargs: Any) -> list[Any]:
    """Return the estimate of every filter, of tensors or symbolically."""
    if profile.network_channels > profile.channels:
        magnitude = magnitude[..., : profile.channels]
    if not profile.bridges:
        return [layer(magnitude, **kwargs) for layer in filters]
    encoding = _mean([layer(magnitude, part="encode", **kwargs) for layer in filters])
    recurrent = _mean([layer(magnitude, encoding, part="recur", **kwargs) for layer in filters])
    # The mean of all [encoding, recurrent output], the encodings' mean beside the outputs' mean, goes to all.
    return [layer(magnitude, encoding, recurrent, part="decode", **kwargs) for layer in filters]


def _mean(tensors: list[Any]) -> Any:
    return keras.ops.mean(keras.ops.stack(tensors), axis=0)


def _batch_norm(name: str) -> keras.layers.Layer:
    """PyTorch's batch normalisation; statistics over all devices, which would drift apart otherwise."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=True, dtype="float32", name=name)
