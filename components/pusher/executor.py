"""The work of Pusher: export under a temporary name, then rename to a new version."""

import logging
import os
import time
from typing import Any

import tensorflow as tf
from tfx.components.evaluator import constants
from tfx.components.pusher import executor as stock
from tfx.types import Artifact, artifact_utils

from umx_model.errors import InputError
from umx_model.model.export import export_saved_model
from umx_model.model.folder import read_model

_log = logging.getLogger(__name__)


class Executor(stock.Executor):
    """Pushes; see `components.pusher.component.Pusher`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Push the model if it is blessed.

        Raises:
            InputError: the destination cannot be written.
        """
        pushed_model = artifact_utils.get_single_instance(output_dict["pushed_model"])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed_model)
            blessing = artifact_utils.get_single_instance(input_dict["model_blessing"])
            reasons = blessing.get_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY)
            _log.info("Not pushed, because the model was not blessed: %s", reasons)
            return
        folder = push(artifact_utils.get_single_uri(input_dict["model"]), exec_properties["push_destination"])
        self._MarkPushed(pushed_model, pushed_destination=folder, pushed_version=os.path.basename(folder))


def push(model_folder: str, destination: str) -> str:
    """Export a model folder's SavedModel as the next version.

    Args:
        model_folder: what to export.
        destination: folder of numbered versions; made where it is missing.

    Returns:
        The new version's folder, `<destination>/<number>`.

    Raises:
        InputError: the destination cannot be written.
    """
    model, profile = read_model(model_folder)
    try:
        tf.io.gfile.makedirs(destination)
        version = next_version(tf.io.gfile.listdir(destination))
        folder = os.path.join(destination, version)
        # Not a number, so servers and later pushes do not take it for a version.
        partial = os.path.join(destination, f"partial-{version}")
        try:
            export_saved_model(model, profile, partial)
            tf.io.gfile.rename(partial, folder)
        except BaseException:
            if tf.io.gfile.isdir(partial):
                tf.io.gfile.rmtree(partial)
            raise
    except (OSError, tf.errors.OpError) as error:
        raise InputError(
            f"{destination}: cannot push here ({error}); make it writable, or choose another push destination"
        ) from None
    return folder


def next_version(names: list[str]) -> str:
    """Choose a version above all that are there: the time in seconds, as TensorFlow Serving's habit is."""
    return str(max([int(time.time()), *(version + 1 for version in _versions(names))]))


def is_served(folder: str) -> bool:
    """Say whether a pushed version is there and the newest of its destination, which is what servers load."""
    destination, version = os.path.split(folder)
    return tf.io.gfile.isdir(folder) and int(version) == max(_versions(tf.io.gfile.listdir(destination)))


def _versions(names: list[str]) -> list[int]:
    return [int(name.rstrip("/")) for name in names if name.rstrip("/").isdecimal()]
