"""The work of Trainer: refuse anomalies, train where a crash can be resumed, hand over the model."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.components.example_validator.executor import DEFAULT_FILE_NAME as ANOMALIES_FILE
from tfx.dsl.components.base import base_executor
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils

from components.pusher.versions import current_version
from data_schema.index import read_index
from umx_model.data.remote import is_remote
from umx_model.errors import InputError
from umx_model.model.folder import SAVED_MODEL, WEIGHTS
from umx_model.pretrained import locate_model
from umx_model.profile import FILE_NAME, Profile
from umx_model.train.strategy import choose_strategy, is_chief
from umx_model.train.trainer import train
from umx_model.train.warm_start import check_start, weights_checksum

_log = logging.getLogger(__name__)

# Execution properties that take the place of settings of the profile, where they are given.
_CHANGES = {
    "targets": "model.targets",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "excerpt_seconds": "train.excerpt_seconds",
}
_LOGS = "logs"
_WORK = ("checkpoints", _LOGS)
_MODEL = (FILE_NAME, WEIGHTS, os.path.join(SAVED_MODEL, "saved_model.pb"))


class Executor(base_executor.BaseExecutor):
    """Trains; see `components.trainer.component.Trainer`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Train a model and write its folder.

        Raises:
            InputError: the index has anomalies, or its samples do not fit the profile.
            RuntimeError: the model folder is not whole.
        """
        strategy = choose_strategy()  # several machines must find each other before any other TensorFlow operation
        refuse_anomalies(artifact_utils.get_single_instance(input_dict["anomalies"]))
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        profile = chosen_profile(exec_properties)
        data_version = examples.get_string_custom_property("data_version")
        samples = {
            split: read_index(artifact_utils.get_split_uri([examples], split))
            for split in artifact_utils.decode_split_names(examples.split_names)
        }
        start = find_start(profile, exec_properties)
        folder = os.path.join(exec_properties["training_folder"], training_key(profile, data_version, start))
        with _working_folder(folder) as (work, backup):
            train(
                profile,
                samples,
                work,
                resume=True,
                data_fingerprint=data_version,
                backup=backup,
                start_from=start,
            )
            if not is_chief(strategy):  # one hands the model over
                return
            _hand_over(
                work,
                artifact_utils.get_single_uri(output_dict["model"]),
                artifact_utils.get_single_uri(output_dict["model_run"]),
            )
            tf.io.gfile.remove(os.path.join(work, WEIGHTS))  # first: what is left if we are stopped here can be resumed
        tf.io.gfile.rmtree(folder)


def chosen_profile(exec_properties: Mapping[str, Any]) -> Profile:
    """Return the profile, with what was chosen for this run.

    Raises:
        InputError: an impossible value.
    """
    changes = {name: exec_properties[key] for key, name in _CHANGES.items() if exec_properties.get(key) is not None}
    return Profile.parse(exec_properties["profile"]).updated(changes)


@contextlib.contextmanager
def _working_folder(folder: str) -> Iterator[tuple[str, str | None]]:
    """Yield where to train so that it can go on in a folder, and where to keep a copy.

    On this machine that is the folder itself. Checkpoints are not written to a remote one step by step: training
    would wait for them.
    """
    if not is_remote(folder):
        yield folder, None
        return
    with tempfile.TemporaryDirectory(prefix="umx-pro-") as scratch:
        yield os.path.join(scratch, "model"), folder


def _hand_over(work: str, model: str, model_run: str) -> None:
    """Copy a trained model, and what is left of its training to look at, to where they are recorded."""
    for name in tf.io.gfile.listdir(work):
        if name.rstrip("/") not in _WORK and not name.startswith("."):
            _copy(os.path.join(work, name), os.path.join(model, name))
    if tf.io.gfile.isdir(os.path.join(work, _LOGS)):
        _copy(os.path.join(work, _LOGS), model_run)
    _require_whole(model)


def find_start(profile: Profile, exec_properties: Mapping[str, Any]) -> str | None:
    """Return the model whose weights to start from.

    Args:
        profile: what will be trained.
        exec_properties: with `warm_start`, `push_destination` and `init_from`.

    Returns:
        With `warm_start` the served version's folder, unless nothing is served, or a model of another kind, of
        which a warning tells: whoever changes the profile wants its model, and a schedule should not stop over
        that. Else the path that `init_from` names; None for random weights.

    Raises:
        InputError: `init_from` names no model, or one of another kind.
    """
    served = current_version(exec_properties["push_destination"]) if exec_properties["warm_start"] else None
    if served is not None:
        try:
            check_start(profile.model, served)
            return served
        except InputError as error:
            _log.warning("training does not start from the served version: %s", error)
    if not exec_properties["init_from"]:
        return None
    named = locate_model(exec_properties["init_from"])
    check_start(profile.model, named)
    return named


def training_key(profile: Profile, data_version: str, start: str | None = None) -> str:
    """Name a training by what it trains, on which data and from where, so that it is resumed and never mixed up."""
    weights = f"\0{weights_checksum(start) or start}" if start else ""
    return hashlib.sha256(f"{profile.model_dump_json()}\0{data_version}{weights}".encode()).hexdigest()[:16]


def refuse_anomalies(anomalies: Artifact) -> None:
    """Raise if ExampleValidator found anything.

    Args:
        anomalies: artifact with one `SchemaDiff.pb` per split.

    Raises:
        InputError: one line per anomaly.
    """
    lines = []
    for split in artifact_utils.decode_split_names(anomalies.split_names):
        path = os.path.join(artifact_utils.get_split_uri([anomalies], split), ANOMALIES_FILE)
        with tf.io.gfile.GFile(path, "rb") as file:
            found = anomalies_pb2.Anomalies.FromString(file.read())
        lines += [f"{split}/: {line}" for line in _describe(found)]
    if lines:
        lines.append("training refuses data with anomalies; mend the files, or data_schema/schema.pbtxt if it is wrong")
        raise InputError("\n".join(lines))


def _require_whole(model_folder: str) -> None:
    """Raise if a model folder lacks a part: once it is recorded as made, it would be used for good."""
    lacking = [name for name in _MODEL if not tf.io.gfile.exists(os.path.join(model_folder, name))]
    if lacking:
        raise RuntimeError(f"{model_folder}: lacks {', '.join(lacking)} after training; run again")


def _describe(found: anomalies_pb2.Anomalies) -> Iterator[str]:
    infos = sorted(found.anomaly_info.items())
    if found.HasField("dataset_anomaly_info"):
        infos.append(("database", found.dataset_anomaly_info))
    for feature, info in infos:
        yield f"{feature}: {info.short_description.lower()}: {info.description}"


def _copy(source: str, destination: str) -> None:
    if tf.io.gfile.isdir(source):
        io_utils.copy_dir(source, destination)
    else:
        io_utils.copy_file(source, destination)
