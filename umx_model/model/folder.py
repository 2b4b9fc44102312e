"""Model folders: the unit that moves between training, evaluation, pushing and use.

profile.json         what the model is and how it came about
model.weights.h5     its weights
saved_model/         the end-to-end SavedModel, optional
checkpoints/ logs/   while training
"""

from __future__ import annotations

import os
import tempfile

import keras
import tensorflow as tf

from umx_model import profile as profiles
from umx_model.errors import InputError
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX, export_saved_model
from umx_model.profile import Profile

WEIGHTS = "model.weights.h5"
SAVED_MODEL = "saved_model"
CHECKPOINTS = "checkpoints"


def write_model_folder(
    folder: str | os.PathLike[str], spectral_filter: keras.Model, profile: Profile, saved_model: bool = True
) -> None:
    """Write a model folder, each part whole or not at all.

    Args:
        folder: where; created, local or remote.
        spectral_filter: the joint model of `get_joint_spectral_filter`.
        profile: its profile.
        saved_model: also export the end-to-end SavedModel.
    """
    path = os.fspath(folder)
    tf.io.gfile.makedirs(path)
    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, WEIGHTS)  # HDF5 writes to local files only
        spectral_filter.save_weights(local)
        partial = os.path.join(path, WEIGHTS + ".partial")
        tf.io.gfile.copy(local, partial, overwrite=True)
        tf.io.gfile.rename(partial, os.path.join(path, WEIGHTS), overwrite=True)
    profile.write(path)
    if saved_model:
        final, partial = os.path.join(path, SAVED_MODEL), os.path.join(path, SAVED_MODEL + ".partial")
        for old in (partial, final):
            if tf.io.gfile.exists(old):
                tf.io.gfile.rmtree(old)
        export_saved_model(UMX(spectral_filter), profile, partial)
        tf.io.gfile.rename(partial, final)


def checkpointable(model: keras.Model) -> dict[str, tf.Variable]:
    """Return all variables of a model by stable names, for `tf.train.Checkpoint(model=...)`.

    Given a Keras 3 model itself, `tf.train.Checkpoint` silently leaves out layers that are held in lists.
    """
    weights = {weight.path: weight.value for weight in model.weights}
    known = {id(weight) for weight in model.weights}
    others = [variable.value for variable in model.variables if id(variable) not in known]  # states of dropout
    return weights | {f"state_{index}": variable for index, variable in enumerate(others)}


def read_model(
    path: str | os.PathLike[str], niter: int | None = None, softmask: bool | None = None
) -> tuple[UMX, Profile]:
    """Build a model from its profile and read its weights.

    Args:
        path: a model folder, a weights file (`*.weights.h5`), a folder of checkpoints or one
            checkpoint in it; the latter three with `profile.json` beside or in the folder above.
        niter: EM iterations; as in the profile by default.
        softmask: how EM starts; as in the profile by default.

    Returns:
        The model and the profile that it was made from.

    Raises:
        InputError: nothing there, no profile, or weights that do not fit the profile.
    """
    name = os.fspath(path).rstrip("/")
    weights, home = _locate(name)
    profile = Profile.read(os.path.join(home, profiles.FILE_NAME))
    spectral_filter = get_joint_spectral_filter(profile.model)
    try:
        if weights.endswith(".weights.h5"):
            with tempfile.TemporaryDirectory() as scratch:
                local = os.path.join(scratch, WEIGHTS)
                tf.io.gfile.copy(weights, local)
                spectral_filter.load_weights(local)
        else:
            checkpoint = tf.train.Checkpoint(model=checkpointable(spectral_filter))
            checkpoint.read(weights).expect_partial().assert_existing_objects_matched()
    except (ValueError, OSError, LookupError, AssertionError, tf.errors.OpError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{weights}: damaged, or not of the model in {home}/{profiles.FILE_NAME} ({reason})") from None
    return UMX(spectral_filter, niter=niter, softmask=softmask), profile


def _locate(name: str) -> tuple[str, str]:
    """Return the weights file or checkpoint that `name` means, and the folder of its profile."""
    if tf.io.gfile.isdir(name):
        weights = os.path.join(name, WEIGHTS)
        if tf.io.gfile.exists(weights):
            return weights, name
        for folder, home in ((os.path.join(name, CHECKPOINTS), name), (name, os.path.dirname(name))):
            latest = tf.train.latest_checkpoint(folder)
            if latest:
                return latest, home
        raise InputError(f"{name}: not a model folder; expected {profiles.FILE_NAME} and {WEIGHTS} in it")
    if tf.io.gfile.exists(name + ".index"):
        return name, os.path.dirname(os.path.dirname(name))
    if not tf.io.gfile.exists(name):
        raise InputError(f"{name}: no such model; expected a model folder, a weights file or a checkpoint")
    if not name.endswith(".weights.h5"):
        raise InputError(f"{name}: not a model; expected a model folder, a *.weights.h5 file or a checkpoint")
    return name, os.path.dirname(name) or "."
