"""Restoring a separator from whatever a model was stored as."""

from __future__ import annotations

import os

import tensorflow as tf

from umx_model import profile as profiles
from umx_model.errors import InputError
from umx_model.inference.chunks import ChunkLayout, Chunks
from umx_model.inference.estimator import AnyNetwork, Estimator, Network
from umx_model.inference.separator import Separator
from umx_model.inference.xla import start_xla
from umx_model.model.export import EXTRA_ASSETS, SPECTRAL_FILTER
from umx_model.model.folded import FoldedBLSTM
from umx_model.model.folder import WEIGHTS, read_model
from umx_model.model.spectral_filter import check_architecture
from umx_model.model.umx import UMX
from umx_model.pretrained import locate_model, mention_licence
from umx_model.profile import ModelProfile, Profile

CHUNK_SECONDS = 28.0
MOST_CHUNK_SECONDS = 600.0


def load_separator(
    name_or_path: str | os.PathLike[str],
    niter: int | None = None,
    softmask: bool | None = None,
    chunk_seconds: float = CHUNK_SECONDS,
) -> Separator:
    """Restore a separator.

    Args:
        name_or_path: a name that `umx-pro models` lists, a model folder, a weights file (`*.weights.h5`),
            a training run's checkpoint or `checkpoints/` folder, or a SavedModel such as the pipeline
            pushes; local or remote.
        niter: EM iterations; as in the model's profile by default.
        softmask: start EM from a soft mask; as in the model's profile by default.
        chunk_seconds: audio that the network hears at once, up to 600; less takes less memory.

    Raises:
        InputError: there is no model, it is damaged, or it cannot run so.
    """
    path = locate_model(os.fspath(name_or_path).rstrip("/"))
    mention_licence(path)
    if not tf.io.gfile.exists(os.path.join(path, "saved_model.pb")) or _has_weights(path):
        return as_separator(read_model(path, niter, softmask)[0], chunk_seconds)
    profile = Profile.read(os.path.join(path, EXTRA_ASSETS, profiles.FILE_NAME)).model
    try:
        loaded = tf.saved_model.load(path)
        loaded.signatures[SPECTRAL_FILTER]  # is there
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: damaged, or not a SavedModel of this version of the program ({reason})") from None

    def estimate(magnitude: tf.Tensor) -> tf.Tensor:
        # By way of `loaded`, which has the variables: a signature alone does not keep them.
        return loaded.signatures[SPECTRAL_FILTER](magnitude=magnitude)["estimates"]

    niter = profile.niter if niter is None else niter
    softmask = profile.softmask if softmask is None else softmask
    return _separator(AnyNetwork(estimate, profile), profile, niter, softmask, _layout(profile, chunk_seconds))


def _has_weights(path: str) -> bool:
    """Whether a SavedModel is a model folder too, as pushed versions are, of an architecture that is known here.

    From its weights the network is built in the form that is fastest here; a SavedModel runs as it is.
    """
    if not tf.io.gfile.exists(os.path.join(path, WEIGHTS)):
        return False
    try:
        check_architecture(Profile.read(path).model)
    except InputError:
        return False
    return True


def as_separator(model: UMX, chunk_seconds: float = CHUNK_SECONDS) -> Separator:
    """Make a separator of a model in memory, of its weights at this moment.

    Args:
        model: the model, with its EM settings.
        chunk_seconds: audio that the network hears at once, up to 600; less takes less memory.

    Raises:
        InputError: `chunk_seconds` is out of range.
    """
    profile, em = model.profile, model.expectation_maximization
    layout = _layout(profile, chunk_seconds)
    network: Network
    if FoldedBLSTM.accepts(model.spectral_filter):
        network = FoldedBLSTM(model.spectral_filter, compiled_frames=layout.longest)
    else:
        network = AnyNetwork(model.spectral_filter, profile)
    return _separator(network, profile, em.niter, em.softmask, layout)


def _layout(profile: ModelProfile, chunk_seconds: float) -> ChunkLayout:
    if not 0 < chunk_seconds <= MOST_CHUNK_SECONDS:
        raise InputError(
            f"chunk seconds: expected more than 0 and at most {MOST_CHUNK_SECONDS:g}, got {chunk_seconds:g}; memory "
            f"grows with them, and quality hardly from {CHUNK_SECONDS:g} on"
        )
    return ChunkLayout(profile, chunk_seconds)


def _separator(network: Network, profile: ModelProfile, niter: int, softmask: bool, layout: ChunkLayout) -> Separator:
    start_xla()
    estimator = Estimator(network, profile, niter, softmask)
    return Separator(lambda channels: Chunks(estimator, layout, channels), profile)
