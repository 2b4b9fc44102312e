"""The work of Evaluator: score the model and what is served, then judge."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from pydantic import ValidationError
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as stock
from tfx.types import Artifact, artifact_utils

from components.evaluator.scoring import Scores, score_samples
from components.pusher.versions import current_version, number, served_weights
from data_schema.index import read_index
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import METRIC, columns
from umx_model.evaluation.gate import GateRule, Verdict, check_floors, judge
from umx_model.evaluation.report import write_report
from umx_model.evaluation.scores import Evaluation
from umx_model.model.export import EXTRA_ASSETS
from umx_model.profile import FILE_NAME, Profile, explain

SCORES_FILE = "scores.json"
REPORT_FILE = "report.html"
_MODEL = "model"
_BASELINE = "baseline"


@dataclass(frozen=True)
class _Baseline:
    """What the model is compared with.

    Attributes:
        folder: where it is.
        title: what it is called.
        weights: what tells its weights from others.
        obstacle: why it cannot be compared with the model; empty where it can.
        is_the_model: whether it is the model that is judged, with the same settings.
    """

    folder: str
    title: str
    weights: str
    obstacle: str
    is_the_model: bool


class Executor(stock.Executor):
    """Evaluates; see `components.evaluator.component.Evaluator`.

    It has nothing of TFX's own executor but its name: the resolver of the latest blessed model on
    Vertex AI recognises a blessing by it.
    """

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Score the model, write the scores, the report and the blessing.

        Raises:
            InputError: a model or a sample cannot be used; one line per problem.
            RuntimeError: samples could not be scored.
        """
        model = artifact_utils.get_single_instance(input_dict["model"])
        profile = Profile.read(model.uri)
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        # Early stopping has looked at valid: test is the fairer judge where there is one.
        split = "test" if "test" in artifact_utils.decode_split_names(examples.split_names) else "valid"
        samples = read_index(artifact_utils.get_split_uri([examples], split))
        rule = _rule(exec_properties, profile)
        served = current_version(exec_properties["push_destination"])
        baseline = _find_baseline(served, input_dict.get("baseline_model", []), profile, samples[0])

        folders = {_MODEL: model.uri}
        if baseline and not baseline.obstacle and not baseline.is_the_model:
            folders[_BASELINE] = baseline.folder
        scores, excerpts = score_samples(folders, _MODEL, samples, self._make_beam_pipeline, self._get_tmp_dir())
        if baseline and baseline.is_the_model:
            scores[_BASELINE] = scores[_MODEL]
        verdict = judge(scores[_MODEL], scores.get(_BASELINE), rule, baseline.title if baseline else None)
        evaluation = Evaluation(
            title=model.uri,
            tracks=scores[_MODEL],
            baseline=scores.get(_BASELINE),
            baseline_title=baseline.title if baseline else None,
            excerpts=excerpts,
            settings={
                "split": split,
                "niter": profile.model.niter,
                "softmask": profile.model.softmask,
                "window_frames": profile.model.window_frames,
                **rule.model_dump(),
            },
            data_fingerprint=profile.data_fingerprint,
            blessed=verdict.blessed,
            verdict=_sentences(verdict, split, len(samples), baseline, served is not None),
        )
        folder = artifact_utils.get_single_instance(output_dict["evaluation"]).uri
        document = _document(evaluation, verdict, split, scores)
        document["baseline_version"] = number(served) if served else None
        _write(os.path.join(folder, SCORES_FILE), json.dumps(document, indent=2, allow_nan=False) + "\n")
        _show(artifact_utils.get_single_instance(output_dict["report"]), evaluation)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        _bless(blessing, model, profile, baseline, served_weights(served), verdict)


def _rule(exec_properties: Mapping[str, Any], profile: Profile) -> GateRule:
    """Return what the model must reach."""
    rule = GateRule.model_validate_json(exec_properties["rule"])
    floor = exec_properties.get("floor_db")
    if floor is None:
        return rule
    try:
        rule = GateRule.model_validate(rule.model_dump() | {"floor_db": floor})
        check_floors(rule, profile.model.targets)
    except ValidationError as error:
        raise InputError(explain(error)) from None
    except ValueError as error:
        raise InputError(str(error)) from None
    return rule


def _find_baseline(
    served: str | None, proposed: Sequence[Artifact], profile: Profile, sample: Sample
) -> _Baseline | None:
    """Find what to compare a model with, and whether that can be done on samples like this.

    Args:
        served: folder of the version that is served; None where there is none.
        proposed: the model to take then; there may be none.
        profile: of the model.
        sample: one of those that it is judged on.
    """
    if served is None and not proposed:
        return None
    folder = served or proposed[0].uri
    title = f"version {number(served)}" if served else "the latest blessed model"
    inside = os.path.join(folder, EXTRA_ASSETS)  # of a version without weights beside the SavedModel
    try:
        its = Profile.read(folder if tf.io.gfile.exists(os.path.join(folder, FILE_NAME)) else inside)
    except InputError:
        weights = served_weights(served)
        return _Baseline(folder, title, weights, "has no profile that says what it separates", False)
    weights = served_weights(served) if served else its.weights_sha256 or ""
    obstacle = ""
    lacking = [target for target in its.model.targets if target not in sample.files]
    if its.model.channels != profile.model.channels:
        obstacle = f"takes {its.model.channels} channels, this model {profile.model.channels}"
    elif lacking:
        obstacle = f"separates {', '.join(lacking)}, which samples lack"
    elif not set(its.model.targets) & set(profile.model.targets):
        obstacle = f"separates {', '.join(its.model.targets)}, and nothing that this model does"
    is_the_model = weights == profile.weights_sha256 and its.model == profile.model
    return _Baseline(folder, title, weights, obstacle, is_the_model)


def _sentences(verdict: Verdict, split: str, samples: int, baseline: _Baseline | None, served: bool) -> tuple[str, ...]:
    """Add to a verdict what it was made on."""
    opening, *rest = verdict.sentences
    on = f"Judged on {samples} sample{'s' if samples > 1 else ''} of {split}"
    unserved = "because nothing is served yet"
    if baseline is None:
        against = f"against the mixture, {unserved}."
    elif baseline.obstacle:
        which = f"{baseline.title}, which is served," if served else f"nothing is served yet, and {baseline.title}"
        against = f"against the mixture, because {which} {baseline.obstacle}."
    else:
        role = "which is served" if served else unserved
        against = f"against {baseline.title}, {role}{' and is this model' if baseline.is_the_model else ''}."
    return (opening, f"{on}, {against}", *rest)


def _document(evaluation: Evaluation, verdict: Verdict, split: str, scores: Scores) -> dict[str, Any]:
    """Return what `scores.json` holds: everything but the excerpts; null where there is no score."""
    by_model = {name: [track.to_json() for track in tracks] for name, tracks in scores.items()}
    return {
        "metric": METRIC,
        "title": evaluation.title,
        "split": split,
        "settings": evaluation.settings,
        "data_fingerprint": evaluation.data_fingerprint,
        "blessed": verdict.blessed,
        "verdict": evaluation.verdict,
        "objections": verdict.objections,
        "comparisons": verdict.comparisons,
        "figures": {
            name: {target: None if math.isnan(value) else value for target, value in by_target.items()}
            for name, by_target in columns(evaluation.tracks, evaluation.baseline).items()
        },
        "tracks": by_model[_MODEL],
        "baseline": by_model.get(_BASELINE),
    }


def _show(report: Artifact, evaluation: Evaluation) -> None:
    """Write the report where it is looked for: at the URI itself, or in the folder that a local run makes of it."""
    folder = tf.io.gfile.isdir(report.uri)
    write_report(os.path.join(report.uri, REPORT_FILE) if folder else report.uri, evaluation)
    report.set_string_custom_property("display_name", "report")  # the Pipelines UI of Kubeflow shows no other pages


def _bless(
    blessing: Artifact, model: Artifact, profile: Profile, baseline: _Baseline | None, served: str, verdict: Verdict
) -> None:
    """Record the judgement with the properties and file that TFX's resolvers and pushers look for, and our own."""
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
    if baseline:
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.folder)
    blessing.set_string_custom_property("model_weights_sha256", profile.weights_sha256 or "")
    blessing.set_string_custom_property("baseline_weights_sha256", served)
    blessing.set_int_custom_property(
        constants.ARTIFACT_PROPERTY_BLESSED_KEY,
        constants.BLESSED_VALUE if verdict.blessed else constants.NOT_BLESSED_VALUE,
    )
    objections = " ".join(verdict.objections)
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY, objections)
    name = constants.BLESSED_FILE_NAME if verdict.blessed else constants.NOT_BLESSED_FILE_NAME
    _write(os.path.join(blessing.uri, name), "")


def _write(path: str, text: str) -> None:
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)
