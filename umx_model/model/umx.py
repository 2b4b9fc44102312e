"""UMX: waveform in, waveforms out."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.expectation_maximization import ExpectationMaximization
from umx_model.model.network_input import network_input
from umx_model.model.spectral_filter import JointSpectralFilter, get_joint_spectral_filter
from umx_model.model.stft import ISTFTLayer, STFTLayer
from umx_model.profile import ModelProfile


def check_softmask(profile: ModelProfile, softmask: bool) -> None:
    """Refuse a soft mask for one target, which would give it the whole mixture.

    Raises:
        InputError: that is asked for.
    """
    if softmask and len(profile.targets) == 1:
        raise InputError(
            f"softmask: shares the mixture out among targets, and the model has only {profile.targets[0]}; leave it out"
        )


@keras.saving.register_keras_serializable(package="umx_model")
class UMX(keras.Model):
    """Separates a mixture: STFT, joint spectral filter, EM, inverse STFT.

    Args:
        spectral_filter: a joint model of `get_joint_spectral_filter` or a `JointSpectralFilter`.
        niter: EM iterations; as in the profile by default. 0 gives the magnitudes the mixture's phase. Where
            there is only one target, the rest of the mixture is another one to EM.
        softmask: how EM starts; as in the profile by default.

    Input shape:
        mixture `[batch, samples, channels]`, float32 in [-1, 1], from 1 sample up.

    Output shape:
        estimates `[batch, samples, channels, targets]`, float32, targets in the profile's order.

    Raises:
        InputError: a soft mask for one target.
        ValueError: the spectral filter has no profile.
    """

    def __init__(
        self, spectral_filter: keras.Model, niter: int | None = None, softmask: bool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(getattr(spectral_filter, "profile", None), ModelProfile):
            raise ValueError(
                "spectral_filter has no `profile`; use one of get_joint_spectral_filter or a JointSpectralFilter, "
                "or set its attribute `profile` to its ModelProfile"
            )
        profile: ModelProfile = spectral_filter.profile
        self.profile = profile
        self.spectral_filter = spectral_filter
        self.stft = STFTLayer(profile.n_fft, profile.hop_length)
        niter = profile.niter if niter is None else niter
        softmask = profile.softmask if softmask is None else softmask
        check_softmask(profile, softmask)
        self.expectation_maximization = ExpectationMaximization(
            niter=niter,
            window_frames=profile.window_frames,
            softmask=softmask,
            # EM makes the targets sum to the mixture: alone, a target would become all of it.
            residual=niter > 0 and len(profile.targets) == 1,
        )
        self.istft = ISTFTLayer(profile.n_fft, profile.hop_length)
        self.built = True  # the spectral filter has all the weights, already

    def call(self, mixture: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Separate a batch of mixtures."""
        channels, targets = self.profile.channels, len(self.profile.targets)
        stft = self.stft(mixture)
        magnitudes = self.spectral_filter(network_input(stft, self.profile), training=training)
        estimates = self.expectation_maximization(stft, magnitudes)  # [batch, frames, bins, channels, targets (+ 1)]
        estimates = estimates[..., :targets]
        batch, frames, samples = tf.shape(stft)[0], tf.shape(stft)[1], tf.shape(mixture)[1]
        estimates = tf.reshape(estimates, [batch, frames, self.profile.bins, channels * targets])
        waveforms = self.istft(estimates, length=samples)
        return tf.reshape(waveforms, [batch, samples, channels, targets])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input's shape and the target axis."""
        return (*input_shape, len(self.profile.targets))

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the model."""
        subclassed = isinstance(self.spectral_filter, JointSpectralFilter)
        return {
            "name": self.name,
            "profile": self.profile.model_dump(mode="json"),
            # A functional model is rebuilt from the profile; a class of one's own may be more than that.
            "spectral_filter": keras.saving.serialize_keras_object(self.spectral_filter) if subclassed else None,
            "niter": self.expectation_maximization.niter,
            "softmask": self.expectation_maximization.softmask,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> UMX:
        """Rebuild the model, with new weights."""
        profile, subclassed = ModelProfile.model_validate(config.pop("profile")), config.pop("spectral_filter")
        if subclassed is None:
            return cls(get_joint_spectral_filter(profile), **config)
        return cls(keras.saving.deserialize_keras_object(subclassed, custom_objects), **config)
