"""Model folders: the unit that moves between training, evaluation, pushing and use.

profile.json         what the model is and how it came about
model.weights.h5     its weights
saved_model/         the end-to-end SavedModel, optional
checkpoints/ logs/   while training
"""

from __future__ import annotations

import hashlib
import os
import tempfile

import h5py
import keras
import numpy as np
import tensorflow as tf

from umx_model import profile as profiles
from umx_model.data.remote import is_remote
from umx_model.errors import InputError
from umx_model.model.checkpoint_files import list_checkpoints
from umx_model.model.export import export_saved_model
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.model.umx import UMX
from umx_model.profile import Profile

WEIGHTS = "model.weights.h5"
WEIGHTS_SUFFIX = ".weights.h5"  # which Keras asks for
SAVED_MODEL = "saved_model"
CHECKPOINTS = "checkpoints"
BEST = "best"


def write_model_folder(
    folder: str | os.PathLike[str],
    spectral_filter: keras.Model,
    profile: Profile,
    saved_model: bool = True,
    half: bool = False,
) -> Profile:
    """Write a model folder, each part whole or not at all.

    Args:
        folder: where; created, local or remote.
        spectral_filter: the joint model of `get_joint_spectral_filter`.
        profile: its profile.
        saved_model: also export the end-to-end SavedModel.
        half: store matrices as float16 and packed, which takes less than half the space; they are float32 again when
            they are read.

    Returns:
        The profile as it was written, with the checksum of the weights.
    """
    path = os.fspath(folder)
    if not is_remote(path):  # buckets have no folders, and TensorFlow looks for ever for those of a missing one
        tf.io.gfile.makedirs(path)
    exported, exporting = os.path.join(path, SAVED_MODEL), os.path.join(path, SAVED_MODEL + ".partial")
    if saved_model:  # first, as it takes longest and is likeliest to fail
        _remove(exporting)
        export_saved_model(UMX(spectral_filter), profile, exporting)
    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, WEIGHTS)  # HDF5 writes to local files only
        spectral_filter.save_weights(local)
        if half:
            _halve(local)
        profile = profile.model_copy(update={"weights_sha256": _sha256(local)})
        partial = os.path.join(path, WEIGHTS + ".partial")
        tf.io.gfile.copy(local, partial, overwrite=True)
        tf.io.gfile.rename(partial, os.path.join(path, WEIGHTS), overwrite=True)
    profile.write(path)
    if saved_model:
        _remove(exported)
        tf.io.gfile.rename(exporting, exported)
    return profile


def _halve(weights: str) -> None:
    """Make packed float16 of the matrices in a file of weights; vectors, some of them statistics, stay as they are."""
    with h5py.File(weights) as full, h5py.File(weights + ".half", "w") as half:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                values = item[()]
                matrix = item.ndim > 1 and item.dtype == np.float32
                # Packed whole: an eighth smaller, and read again in a fraction of a second.
                packed = {"chunks": values.shape, "compression": "gzip", "shuffle": True} if matrix else {}
                copied = half.create_dataset(name, data=values.astype(np.float16) if matrix else values, **packed)
            else:
                copied = half.require_group(name)
            copied.attrs.update(item.attrs)

        half.attrs.update(full.attrs)
        full.visititems(copy)
    os.replace(weights + ".half", weights)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check(local: str, weights: str, profile: Profile) -> None:
    """Raise InputError where weights are not those that the profile was written with."""
    expected = profile.weights_sha256
    if expected is not None and (found := _sha256(local)) != expected:
        raise InputError(
            f"{weights}: damaged: its SHA-256 is {found[:12]}..., the profile says {expected[:12]}...; "
            "copy the model folder again"
        )


def _remove(folder: str) -> None:
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


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
        path: a model folder, a weights file (`*.weights.h5`), a folder of checkpoints, whose newest
            is taken, or one checkpoint; `profile.json` lies beside the weights or in one of the two
            folders above. Of a model folder still in training the best checkpoint is taken, or,
            before there is one, the newest.
        niter: EM iterations; as in the profile by default.
        softmask: how EM starts; as in the profile by default.

    Returns:
        The model and the profile that it was made from.

    Raises:
        InputError: nothing there, no profile, or weights that do not fit the profile.
    """
    weights = locate_weights(path)
    profile_file = _profile_of(weights)
    profile = Profile.read(profile_file)
    spectral_filter = get_joint_spectral_filter(profile.model)
    try:
        if weights.endswith(WEIGHTS_SUFFIX):
            with tempfile.TemporaryDirectory() as scratch:
                local = os.path.join(scratch, WEIGHTS)
                tf.io.gfile.copy(weights, local)
                _check(local, weights, profile)
                spectral_filter.load_weights(local)
        else:
            checkpoint = tf.train.Checkpoint(model=checkpointable(spectral_filter))
            checkpoint.read(weights).expect_partial().assert_existing_objects_matched()
    except InputError:
        raise
    except (ValueError, OSError, LookupError, AssertionError, tf.errors.OpError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{weights}: damaged, or not of the model in {profile_file} ({reason})") from None
    return UMX(spectral_filter, niter=niter, softmask=softmask), profile


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read the profile of a model that is named as for `read_model`, and nothing of its weights.

    Raises:
        InputError: no model there, or no profile.
    """
    return Profile.read(locate_profile(path))


def locate_profile(path: str | os.PathLike[str]) -> str:
    """Return the file that `read_profile` reads.

    Raises:
        InputError: no model there, or no profile.
    """
    profile_file = os.path.join(path, profiles.FILE_NAME)
    return profile_file if tf.io.gfile.exists(profile_file) else _profile_of(locate_weights(path))


def locate_weights(path: str | os.PathLike[str]) -> str:
    """Return the weights file or the checkpoint that a path means to `read_model`.

    Raises:
        InputError: there is neither.
    """
    name = os.fspath(path).rstrip("/")
    if tf.io.gfile.isdir(name):
        weights = os.path.join(name, WEIGHTS)
        if tf.io.gfile.exists(weights):
            return weights
        for folder in (os.path.join(name, CHECKPOINTS, BEST), os.path.join(name, CHECKPOINTS), name):
            # Those of another program may have other names.
            latest = next(iter(list_checkpoints(folder)), None) or tf.train.latest_checkpoint(folder)
            if latest:
                return latest
        raise InputError(f"{name}: not a model folder; expected {profiles.FILE_NAME} and {WEIGHTS} in it")
    if tf.io.gfile.exists(name + ".index"):
        return name
    if not tf.io.gfile.exists(name):
        raise InputError(f"{name}: no such model; expected a model folder, a weights file or a checkpoint")
    if not name.endswith(WEIGHTS_SUFFIX):
        raise InputError(f"{name}: not a model; expected a model folder, a *.weights.h5 file or a checkpoint")
    return name


def _profile_of(weights: str) -> str:
    """Return the profile that lies beside weights or in one of the two folders above."""
    folder = os.path.dirname(weights if "://" in weights else os.path.abspath(weights))
    for _ in range(3):
        path = os.path.join(folder, profiles.FILE_NAME)
        if tf.io.gfile.exists(path):
            return path
        folder = os.path.dirname(folder)
    raise InputError(f"{weights}: no {profiles.FILE_NAME} beside it or in the two folders above; put the model's there")
