"""Starting from the weights of a model that is there already."""

from __future__ import annotations

import keras

from umx_model.errors import InputError
from umx_model.model.folder import WEIGHTS_SUFFIX, checkpointable, locate_weights, read_model, read_profile
from umx_model.pretrained import shipped_name
from umx_model.profile import ModelProfile

# These change how weights are used or trained, not what they mean.
_FREE = ("niter", "softmask", "window_frames", "dropout")


def check_start(profile: ModelProfile, start_from: str) -> None:
    """Refuse to start from a model of another kind.

    Args:
        profile: of the model to be trained.
        start_from: path of the model to start from, as `read_model` takes it.

    Raises:
        InputError: there is no model, or no profile of it; or architecture, targets, sizes or what the bins stand
            for differ.
    """
    there = read_profile(start_from).model
    # A refiner starts as one that changes nothing, so a model can get one.
    free = _FREE if there.refiner_channels else (*_FREE, "refiner_channels")
    names = [name for name in ModelProfile.model_fields if name not in free]
    differing = [
        f"model.{name} is {getattr(there, name)!r} there, {getattr(profile, name)!r} here"
        for name in names
        if getattr(there, name) != getattr(profile, name)
    ]
    if differing:
        raise InputError(f"{start_from}: no model to start from: {'; '.join(differing)}; start afresh, or agree")


def take_weights(spectral_filter: keras.Model, profile: ModelProfile, start_from: str) -> str:
    """Give a model the weights of another, input statistics included.

    Args:
        spectral_filter: the joint model to change.
        profile: of it.
        start_from: path of the other, as `read_model` takes it.

    Returns:
        A word on where the weights are from, to be recorded.

    Raises:
        InputError: the other is missing, damaged or of another kind.
    """
    check_start(profile, start_from)
    model, _ = read_model(start_from)
    found = checkpointable(model.spectral_filter)
    for name, variable in checkpointable(spectral_filter).items():
        if name in found and not name.startswith("state_"):
            variable.assign(found[name])
    # Where the program is installed tells nobody what it started from.
    name = shipped_name(start_from) or start_from
    checksum = weights_checksum(start_from)
    return f"{name} (weights {checksum[:12]})" if checksum else name


def weights_checksum(start_from: str) -> str | None:
    """Return the SHA-256 that a profile has of a model's weights file; None of a checkpoint, of which it has none."""
    if locate_weights(start_from).endswith(WEIGHTS_SUFFIX):
        return read_profile(start_from).weights_sha256
    return None
