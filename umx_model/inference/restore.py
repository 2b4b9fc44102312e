"""Restoring a separator from whatever a model was stored as."""

from __future__ import annotations

import os

import tensorflow as tf

from umx_model import profile as profiles
from umx_model.errors import InputError
from umx_model.inference.separator import Separator
from umx_model.model.folder import read_model
from umx_model.model.umx import EXTRA_ASSETS
from umx_model.profile import Profile


def load_separator(name_or_path: str | os.PathLike[str], niter: int | None = None) -> Separator:
    """Restore a separator.

    Args:
        name_or_path: a model folder, a weights file (`*.weights.h5`), a training run's checkpoint or
            `checkpoints/` folder, or a SavedModel such as the pipeline pushes; local or remote.
        niter: EM iterations; as in the model's profile by default. A SavedModel has them built in.

    Raises:
        InputError: there is no model, it is damaged, or it cannot run with this `niter`.
    """
    path = os.fspath(name_or_path).rstrip("/")
    if not tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
        return Separator.from_model(read_model(path, niter=niter)[0])
    profile = Profile.read(os.path.join(path, EXTRA_ASSETS, profiles.FILE_NAME)).model
    if niter is not None and niter != profile.niter:
        raise InputError(f"{path}: a SavedModel with niter {profile.niter} built in; use its model folder for {niter}")
    try:
        serve = tf.saved_model.load(path).signatures["serving_default"]
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: damaged, or not a SavedModel that separates ({reason})") from None

    def estimate(mixture: tf.Tensor) -> tf.Tensor:
        estimates = serve(mixture=mixture)
        return tf.stack([estimates[target] for target in profile.targets], axis=-1)

    return Separator(estimate, profile)
