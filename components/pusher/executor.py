"""The work of Pusher: decide whether a model becomes a version, and write it."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tfx.components.evaluator import constants
from tfx.components.pusher import executor as stock
from tfx.types import Artifact, artifact_utils

from components.pusher.registry import register
from components.pusher.versions import (
    CARD,
    LINEAGE,
    add_version,
    current_version,
    find_withdrawal,
    is_withdrawn,
    number,
    read_lineage,
    served_weights,
    still_withdrawn,
    timestamp,
    write_text,
)
from umx_model.model.card import model_card
from umx_model.model.export import export_saved_model
from umx_model.model.folder import WEIGHTS, read_model
from umx_model.profile import Profile

_log = logging.getLogger(__name__)

# Where the Evaluator keeps its findings. Not imported: how models are scored is not what a push depends on.
SCORES_FILE = "scores.json"
# Custom properties of the pushed model, besides TFX's.
REASON = "reason"
WEIGHTS_SHA256 = "weights_sha256"
WITHDRAWN = "withdrawn"
OVERTAKEN = "overtaken"


class Executor(stock.Executor):
    """Pushes; see `components.pusher.component.Pusher`."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Push the model if it is blessed, not served already, not withdrawn, and still judged against what is served.

        Raises:
            InputError: the destination cannot be written, or the registry refuses.
        """
        pushed_model = artifact_utils.get_single_instance(output_dict["pushed_model"])
        model = artifact_utils.get_single_instance(input_dict["model"])
        destination = exec_properties["push_destination"]
        current = current_version(destination)
        profile = Profile.read(model.uri)
        pushed_model.set_string_custom_property(WEIGHTS_SHA256, profile.weights_sha256 or "")
        lineage = read_lineage(current) if current else {}
        overtaken = served_weights(current) not in (_judged_against(input_dict), profile.weights_sha256)
        reason = self._objection(input_dict, lineage, profile, overtaken)
        if reason:
            self._MarkNotPushed(pushed_model)
            pushed_model.set_int_custom_property(WITHDRAWN, int(is_withdrawn(lineage, profile.weights_sha256)))
            pushed_model.set_int_custom_property(OVERTAKEN, int(overtaken))
            pushed_model.set_string_custom_property(REASON, reason)
            _log.info("Not pushed: %s", reason)
            return
        if current is not None and _serves(current, profile, exec_properties["code_version"]):
            folder = current
            _log.info("Version %s serves this model already", number(current))
        else:
            findings = _findings(input_dict)
            origin = _origin(input_dict, findings, profile, lineage) | {"exported_by": exec_properties["code_version"]}
            folder = push(model.uri, destination, exec_properties["keep_versions"], origin, findings)
        if exec_properties["vertex_registry"]:
            register(folder, exec_properties["vertex_registry"])
        self._MarkPushed(pushed_model, pushed_destination=folder, pushed_version=number(folder))

    def _objection(
        self, input_dict: Mapping[str, list[Artifact]], lineage: Mapping[str, Any], profile: Profile, overtaken: bool
    ) -> str | None:
        """Say why not to push, if so."""
        if not self.CheckBlessing(input_dict):
            blessing = artifact_utils.get_single_instance(input_dict["model_blessing"])
            said = blessing.get_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY)
            return f"the model was not blessed: {said}"
        withdrawal = find_withdrawal(lineage, profile.weights_sha256)
        if withdrawal is not None:
            return (
                f"version {withdrawal['version']} with this model was withdrawn by a rollback on {withdrawal['time']}; "
                f"`rollback {withdrawal['version']}` brings it back"
            )
        if overtaken:
            return "something else is served now than the model was compared with; run again to compare it with that"
        return None


def push(
    model_folder: str,
    destination: str,
    keep: int,
    lineage: Mapping[str, Any],
    findings: Mapping[str, Any],
) -> str:
    """Write a model as the next version.

    Args:
        model_folder: the model.
        destination: folder of numbered versions; made where it is missing.
        keep: how many versions to leave, this one included.
        lineage: where the model comes from, for `lineage.json`.
        findings: of the Evaluator: `figures`, `metric` and `verdict`.

    Returns:
        The new version's folder, `<destination>/<number>`.

    Raises:
        InputError: the model is damaged, or the destination cannot be written.
    """
    model, profile = read_model(model_folder)
    figures = findings.get("figures", {})
    scores = {target: score for target, score in figures.get("SDR", {}).items() if score is not None}
    profile = profile.model_copy(update={"scores": scores})
    verdict = findings.get("verdict", [])
    shown = {
        name.replace("_", " "): value for name, value in lineage.items() if name in ("model", "evaluation", "time")
    }
    shown["baseline version"] = lineage.get("baseline_version")

    def fill(folder: str) -> None:
        export_saved_model(model, profile, folder)
        tf.io.gfile.copy(os.path.join(model_folder, WEIGHTS), os.path.join(folder, WEIGHTS))
        profile.write(folder)
        title = f"Music separator: {', '.join(profile.model.targets)}"
        card = model_card(title, profile, figures, findings.get("metric", "dB"), verdict, shown)
        write_text(os.path.join(folder, CARD), card)
        write_text(os.path.join(folder, LINEAGE), json.dumps(lineage, indent=2) + "\n")

    return add_version(destination, fill, keep)


def _serves(version: str, profile: Profile, code_version: str) -> bool:
    """Say whether a version is what pushing a model would make."""
    lineage = read_lineage(version)
    return (
        lineage.get("weights_sha256") == profile.weights_sha256
        and lineage.get("exported_by") == code_version
        and Profile.read(version).model == profile.model
    )


def _judged_against(input_dict: Mapping[str, list[Artifact]]) -> str:
    """Return the `served_weights` of what was served when the model was judged."""
    blessing = artifact_utils.get_single_instance(input_dict["model_blessing"])
    return str(blessing.get_string_custom_property("baseline_weights_sha256"))


def _findings(input_dict: Mapping[str, list[Artifact]]) -> dict[str, Any]:
    path = os.path.join(artifact_utils.get_single_uri(input_dict["evaluation"]), SCORES_FILE)
    with tf.io.gfile.GFile(path) as file:
        return dict(json.loads(file.read()))


def _origin(
    input_dict: Mapping[str, list[Artifact]],
    findings: Mapping[str, Any],
    profile: Profile,
    replaced: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what `versions.read_lineage` describes, for a model that takes the place of one with another lineage."""
    return {
        "weights_sha256": profile.weights_sha256,
        "model": artifact_utils.get_single_uri(input_dict["model"]),
        "data_fingerprint": profile.data_fingerprint,
        "started_from": profile.made_with.get("started_from"),
        "evaluation": artifact_utils.get_single_uri(input_dict["evaluation"]),
        "scores": findings.get("figures", {}).get("SDR", {}),
        "verdict": findings.get("verdict", []),
        "baseline_version": findings.get("baseline_version"),
        "baseline_weights_sha256": _judged_against(input_dict) or None,
        "niter": profile.model.niter,
        "softmask": profile.model.softmask,
        "time": timestamp(),
        "rolled_back_from": None,
        "pushed_as": None,
        "withdrawn": still_withdrawn(replaced, profile.weights_sha256),
    }
