"""The work of Trainer: refuse anomalies, train where a crash can be resumed, hand over the model."""

import hashlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.components.example_validator.executor import DEFAULT_FILE_NAME as ANOMALIES_FILE
from tfx.dsl.components.base import base_executor
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils

from components.pusher.versions import current_version
from data_schema.index import read_index
from umx_model.errors import InputError
from umx_model.model.folder import SAVED_MODEL, WEIGHTS
from umx_model.profile import FILE_NAME, Profile
from umx_model.train.strategy import choose_strategy, is_chief
from umx_model.train.trainer import train
from umx_model.train.warm_start import check_start

_log = logging.getLogger(__name__)

_WORK = ("checkpoints", "logs")
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
        refuse_anomalies(artifact_utils.get_single_instance(input_dict["anomalies"]))
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        profile = Profile.parse(exec_properties["profile"])
        data_version = examples.get_string_custom_property("data_version")
        samples = {
            split: read_index(artifact_utils.get_split_uri([examples], split))
            for split in artifact_utils.decode_split_names(examples.split_names)
        }

        start = find_start(profile, exec_properties["warm_start_from"])
        work = os.path.join(exec_properties["training_folder"], training_key(profile, data_version, start))
        train(profile, samples, work, resume=True, data_fingerprint=data_version, start_from=start)
        if not is_chief(choose_strategy()):  # several machines run this; one hands the model over
            return

        model = artifact_utils.get_single_instance(output_dict["model"])
        for name in tf.io.gfile.listdir(work):
            if name.rstrip("/") not in _WORK:
                _copy(os.path.join(work, name), os.path.join(model.uri, name))
        model_run = artifact_utils.get_single_instance(output_dict["model_run"])
        if tf.io.gfile.isdir(os.path.join(work, "logs")):
            _copy(os.path.join(work, "logs"), model_run.uri)
        _require_whole(model.uri)
        tf.io.gfile.remove(os.path.join(work, WEIGHTS))  # first: what is left if we are stopped here can be resumed
        tf.io.gfile.rmtree(work)


def find_start(profile: Profile, destination: str) -> str | None:
    """Return the served version whose weights to start from.

    Args:
        profile: what will be trained.
        destination: folder of versions; empty for a fresh start.

    Returns:
        The version's folder; None for a fresh start: nothing is served, or a model of another kind, of which
        a warning tells. Whoever changes the profile wants its model, and a schedule should not stop over that.
    """
    start = current_version(destination) if destination else None
    if start is not None:
        try:
            check_start(profile.model, start)
        except InputError as error:
            _log.warning("training starts from random weights: %s", error)
            return None
    return start


def training_key(profile: Profile, data_version: str, start: str | None = None) -> str:
    """Name a training by what it trains, on which data and from where, so that it is resumed and never mixed up."""
    weights = f"\0{Profile.read(start).weights_sha256}" if start else ""
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
