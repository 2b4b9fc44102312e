"""The work of Evaluator: score the model and what is served, then judge."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as stock
from tfx.types import Artifact, artifact_utils

from components.evaluator.scoring import Scores, score_samples
from components.pusher.versions import current_version, number, served_weights
from data_schema.index import read_index
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import METRIC, columns
from umx_model.evaluation.gate import GateRule, Verdict, judge
from umx_model.evaluation.report import write_report
from umx_model.evaluation.scores import Evaluation
from umx_model.model.export import EXTRA_ASSETS
from umx_model.profile import FILE_NAME, Profile

SCORES_FILE = "scores.json"
REPORT_FILE = "report.html"
_MODEL = "model"
_BASELINE = "baseline"


@dataclass(frozen=True)
class _Baseline:
    """The version that is served.

    Attributes:
        folder: where it is.
        weights: what tells its weights from others.
        obstacle: why it cannot be compared with the model; empty where it can.
        is_the_model: whether it is the model that is judged, with the same settings.
    """

    folder: str
    weights: str
    obstacle: str
    is_the_model: bool

    @property
    def title(self) -> str:
        return f"version {number(self.folder)}"


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
        rule = GateRule.model_validate_json(exec_properties["rule"])
        baseline = _served(exec_properties["push_destination"], profile, samples[0])

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
            verdict=_sentences(verdict, split, len(samples), baseline),
        )
        folder = artifact_utils.get_single_instance(output_dict["evaluation"]).uri
        document = _document(evaluation, verdict, split, scores)
        document["baseline_version"] = number(baseline.folder) if baseline else None
        _write(os.path.join(folder, SCORES_FILE), json.dumps(document, indent=2, allow_nan=False) + "\n")
        _show(artifact_utils.get_single_instance(output_dict["report"]), evaluation)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        _bless(blessing, model, profile, baseline, verdict)


def _served(push_destination: str, profile: Profile, sample: Sample) -> _Baseline | None:
    """Find the version that is served, and whether it can be compared with a model on samples like this."""
    folder = current_version(push_destination)
    if folder is None:
        return None
    weights = served_weights(folder)
    inside = os.path.join(folder, EXTRA_ASSETS)  # of a version without weights beside the SavedModel
    try:
        served = Profile.read(folder if tf.io.gfile.exists(os.path.join(folder, FILE_NAME)) else inside)
    except InputError:
        return _Baseline(folder, weights, "has no profile that says what it separates", False)
    obstacle = ""
    lacking = [target for target in served.model.targets if target not in sample.files]
    if served.model.channels != profile.model.channels:
        obstacle = f"takes {served.model.channels} channels, this model {profile.model.channels}"
    elif lacking:
        obstacle = f"separates {', '.join(lacking)}, which samples lack"
    elif not set(served.model.targets) & set(profile.model.targets):
        obstacle = f"separates {', '.join(served.model.targets)}, and nothing that this model does"
    is_the_model = weights == profile.weights_sha256 and served.model == profile.model
    return _Baseline(folder, weights, obstacle, is_the_model)


def _sentences(verdict: Verdict, split: str, samples: int, baseline: _Baseline | None) -> tuple[str, ...]:
    """Add to a verdict what it was made on."""
    opening, *rest = verdict.sentences
    on = f"Judged on {samples} sample{'s' if samples > 1 else ''} of {split}"
    if baseline is None:
        against = "against the mixture, because nothing is served yet."
    elif baseline.obstacle:
        against = f"against the mixture, because {baseline.title}, which is served, {baseline.obstacle}."
    else:
        against = f"against {baseline.title}, which is served{' and is this model' if baseline.is_the_model else ''}."
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


def _bless(blessing: Artifact, model: Artifact, profile: Profile, baseline: _Baseline | None, verdict: Verdict) -> None:
    """Record the judgement with the properties and file that TFX's resolvers and pushers look for, and our own."""
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
    if baseline:
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.folder)
    blessing.set_string_custom_property("model_weights_sha256", profile.weights_sha256 or "")
    blessing.set_string_custom_property("baseline_weights_sha256", baseline.weights if baseline else "")
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
