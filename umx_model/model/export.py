"""Models for programs that have nothing of ours: SavedModel for TensorFlow, TFLite for small devices.

    saved_model.pb, variables/       signatures `serving_default` and `spectral_filter`
    assets.extra/profile.json        what the model is
    spectral_filter.tflite           the signature `spectral_filter` alone, optional

`serving_default(mixture)` separates from waveform to waveforms, EM included:

    mixture  float32 [batch, samples, channels]  ->  {target: float32 [batch, samples, channels]}

`spectral_filter(magnitude)` is the network alone, for programs with an STFT of their own:

    magnitude  float32 [batch, frames, bins, channels]  ->  estimates  float32 [..., channels, targets]

Where the model has a refiner (`model.refiner_channels`) and two channels, the magnitude of half their difference is a
third one in `magnitude`.

In TFLite the batch is always 1; the number of frames is free (`resize_tensor_input`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.recurrent import forward_only
from umx_model.model.umx import UMX
from umx_model.profile import Profile

# TensorFlow Serving's place for files that travel with a SavedModel.
EXTRA_ASSETS = "assets.extra"
SPECTRAL_FILTER = "spectral_filter"
TFLITE = "spectral_filter.tflite"


class _Served(tf.Module):
    """What is stored: the variables and the signatures, without the Keras objects that made them."""

    def __init__(self, model: UMX) -> None:
        super().__init__()
        profile = model.profile
        self.weights = [variable.value for variable in model.spectral_filter.variables]

        def separate(mixture: tf.Tensor) -> dict[str, tf.Tensor]:
            estimates = tf.unstack(model(mixture, training=False), axis=-1)
            return dict(zip(profile.targets, estimates, strict=True))

        def estimate(magnitude: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"estimates": model.spectral_filter(magnitude, training=False)}

        mixture = tf.TensorSpec([None, None, profile.channels], tf.float32, name="mixture")
        magnitude = tf.TensorSpec([None, None, profile.bins, profile.network_channels], tf.float32, name="magnitude")
        self.separate = tf.function(separate, input_signature=[mixture])
        self.estimate = tf.function(estimate, input_signature=[magnitude])


def export_saved_model(model: UMX, profile: Profile, folder: str | os.PathLike[str]) -> None:
    """Write the SavedModel, with its profile under `assets.extra/`.

    Plain TensorFlow loads it, on CPU and GPU, whatever the machine that wrote it had.

    Args:
        model: what to export, with its EM settings.
        profile: the profile to send along; its `niter` and `softmask` become the model's.
        folder: where to write; created, local or remote.
    """
    path = os.fspath(folder)
    served = _Served(model)
    with forward_only():
        signatures = {"serving_default": served.separate, SPECTRAL_FILTER: served.estimate}
        tf.saved_model.save(served, path, signatures=signatures)
    extra = os.path.join(path, EXTRA_ASSETS)
    tf.io.gfile.makedirs(extra)
    em = model.expectation_maximization
    profile.updated({"model.niter": em.niter, "model.softmask": em.softmask}).write(extra)


def to_tflite(model: UMX) -> bytes:
    """Convert the spectral filter to a TFLite model of builtin operations, with the signature `spectral_filter`.

    Raises:
        InputError: an architecture with operations that TFLite does not have.
    """
    profile, spectral_filter = model.profile, model.spectral_filter
    # Constants, as TFLite reorders constant weights once, and variables' at every frame.
    weights = [tf.constant(variable.numpy()) for variable in spectral_filter.trainable_variables]
    statistics = [tf.constant(variable.numpy()) for variable in spectral_filter.non_trainable_variables]

    def estimate(magnitude: tf.Tensor) -> dict[str, tf.Tensor]:
        estimates, _ = spectral_filter.stateless_call(weights, statistics, magnitude, training=False)
        return {"estimates": estimates}

    served = tf.Module()
    magnitude = tf.TensorSpec([1, None, profile.bins, profile.network_channels], tf.float32, name="magnitude")
    served.estimate = tf.function(estimate, input_signature=[magnitude])
    with tempfile.TemporaryDirectory() as scratch:
        with forward_only(portable=True):
            tf.saved_model.save(served, scratch, signatures={SPECTRAL_FILTER: served.estimate})
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=[SPECTRAL_FILTER])
        try:
            with _quiet():
                converted: bytes = converter.convert()
        except Exception as error:  # the converter's own error class is not public
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise InputError(
                f"architecture {profile.architecture!r}: TFLite cannot run it ({reason}); export without it"
            ) from None
    return converted


def export(model: UMX, profile: Profile, folder: str | os.PathLike[str], tflite: bool = False) -> None:
    """Write a SavedModel and, if asked, the TFLite file in it: all of it or nothing.

    Args:
        model: what to export, with its EM settings.
        profile: its profile.
        folder: where to write, local or remote; must not exist, or be empty.
        tflite: also write `spectral_filter.tflite`.

    Raises:
        InputError: the folder holds something or cannot be written, or TFLite lacks operations.
    """
    path = os.fspath(folder).rstrip("/")
    partial = path + ".partial"
    try:
        if tf.io.gfile.exists(path):
            if not tf.io.gfile.isdir(path) or tf.io.gfile.listdir(path):
                raise InputError(f"{path}: exists already; remove it or choose another folder to export to")
            tf.io.gfile.rmtree(path)
        try:
            _remove(partial)
            export_saved_model(model, profile, partial)
            if tflite:
                with tf.io.gfile.GFile(os.path.join(partial, TFLITE), "wb") as file:
                    file.write(to_tflite(model))
            tf.io.gfile.rename(partial, path)
        except BaseException:
            _remove(partial)
            raise
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"{path}: cannot export here ({error}); choose a folder that can be written") from None


def _remove(folder: str) -> None:
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what C++ code writes to stderr: the converter's remarks mean nothing to users, its errors are exceptions."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
