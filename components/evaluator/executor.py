"""The work of Evaluator: separate and score every sample with Beam, then judge."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.pvalue import TaggedOutput
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as stock
from tfx.types import Artifact, artifact_utils

from components import progress
from components.beam_text import failure, raise_failures, read_lines, write_lines
from data_schema.index import read_index
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import SampleScore, TargetScore, evaluate_sample, summarize, to_json
from umx_model.inference.restore import load_separator
from umx_model.inference.separator import Separator

SCORES_FILE = "scores.json"
_PROBLEMS = "problems"
_FAILURES = "failures"
_MODELS = ("model", "baseline_model")


class _Score(beam.DoFn):
    """Sample -> JSON of {name of a model: its SampleScore}, or a line about what is wrong or has failed."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = folders
        self._separators: dict[str, Separator] = {}

    def process(self, sample: Sample) -> Iterator[Any]:
        """Score one sample."""
        try:
            scores = {name: evaluate_sample(self._separator(name), sample) for name in self._folders}
            yield json.dumps({name: asdict(score) for name, score in scores.items()})
        except InputError as error:
            # Raised here it would reach the user wrapped in Beam's own words.
            yield TaggedOutput(_PROBLEMS, str(error))
        except Exception as error:
            yield TaggedOutput(_FAILURES, failure(sample.id, error))
        progress.advance(sample.id)

    def _separator(self, name: str) -> Separator:
        """Restore a model, once per worker."""
        if name not in self._separators:
            self._separators[name] = load_separator(self._folders[name])
        return self._separators[name]


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
        """Score the model, write the scores and the blessing.

        Raises:
            InputError: a model or a sample cannot be used; one line per problem.
            RuntimeError: samples could not be scored.
        """
        models = {
            name: artifact_utils.get_single_instance(input_dict[name]) for name in _MODELS if input_dict.get(name)
        }
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        splits = artifact_utils.decode_split_names(examples.split_names)
        # Early stopping has looked at valid: test is the fairer judge where there is one.
        split = "test" if "test" in splits else "valid"
        samples = read_index(artifact_utils.get_split_uri([examples], split))

        scores = self._score({name: model.uri for name, model in models.items()}, samples)
        reasons = objections(
            summarize(scores["model"]),
            exec_properties["floor_db"],
            summarize(scores["baseline_model"]) if "baseline_model" in models else None,
            split,
        )
        report = {
            "split": split,
            "floor_db": exec_properties["floor_db"],
            "blessed": not reasons,
            "objections": reasons,
            **to_json(scores["model"]),
        }
        if "baseline_model" in models:
            report["baseline"] = to_json(scores["baseline_model"])["targets"]
        evaluation = artifact_utils.get_single_instance(output_dict["evaluation"])
        _write(os.path.join(evaluation.uri, SCORES_FILE), json.dumps(report, indent=2) + "\n")
        _bless(artifact_utils.get_single_instance(output_dict["blessing"]), models, reasons)

    def _score(self, folders: Mapping[str, str], samples: Sequence[Sample]) -> dict[str, list[SampleScore]]:
        scratch = self._get_tmp_dir()
        scores, problems, failures = (os.path.join(scratch, name) for name in ("scores", _PROBLEMS, _FAILURES))
        with progress.shown("separating samples", len(samples), "samples"), self._make_beam_pipeline() as pipeline:
            scored = (
                pipeline
                | "Samples" >> beam.Create(samples)
                | "Spread" >> beam.Reshuffle()
                | "Score" >> beam.ParDo(_Score(folders)).with_outputs(_PROBLEMS, _FAILURES, main="scores")
            )
            scored["scores"] | "WriteScores" >> write_lines(scores)
            scored[_PROBLEMS] | "WriteProblems" >> write_lines(problems)
            scored[_FAILURES] | "WriteFailures" >> write_lines(failures)
        lines = read_lines(problems)
        if lines:
            raise InputError("\n".join(dict.fromkeys(lines)))
        raise_failures(read_lines(failures))
        records = [json.loads(line) for line in read_lines(scores)]
        by_model = {name: [SampleScore(**record[name]) for record in records] for name in folders}
        return {name: sorted(found, key=lambda score: score.id) for name, found in by_model.items()}


def objections(
    scores: Mapping[str, TargetScore],
    floor_db: float,
    baseline: Mapping[str, TargetScore] | None = None,
    split: str = "valid",
) -> list[str]:
    """Say what speaks against blessing a model.

    Args:
        scores: of the model, per target.
        floor_db: dB that a target must be above the mixture, at least.
        baseline: scores of a model not to fall behind, on the same samples; None if there is none.
        split: where the samples are.

    Returns:
        One line per target that is not good enough, or one where nothing could be scored; nothing
        where all are.
    """
    if all(math.isnan(score.mixture) for score in scores.values()):
        return [f"no 1 s window of {split} has sound in every target; add samples"]
    lines = []
    for target, score in scores.items():
        # "Not above" rather than "below": a target without a score (NaN) is not good enough either.
        if not score.gain > floor_db:
            lines.append(
                f"{target}: SDR {score.estimates:.2f} dB is {score.gain:+.2f} dB from the mixture's "
                f"{score.mixture:.2f} dB, needed is more than {floor_db:+.2f} dB"
            )
        if baseline is not None and target in baseline and not score.estimates >= baseline[target].estimates:
            lines.append(
                f"{target}: SDR {score.estimates:.2f} dB is below the baseline's {baseline[target].estimates:.2f} dB"
            )
    return lines


def _bless(blessing: Artifact, models: Mapping[str, Artifact], reasons: Sequence[str]) -> None:
    """Record the judgement with the properties and file that TFX's resolvers and pushers look for."""
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, models["model"].uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, models["model"].id)
    if "baseline_model" in models:
        baseline = models["baseline_model"]
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.uri)
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, baseline.id)
    blessing.set_int_custom_property(
        constants.ARTIFACT_PROPERTY_BLESSED_KEY, constants.NOT_BLESSED_VALUE if reasons else constants.BLESSED_VALUE
    )
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY, "; ".join(reasons))
    name = constants.NOT_BLESSED_FILE_NAME if reasons else constants.BLESSED_FILE_NAME
    _write(os.path.join(blessing.uri, name), "")


def _write(path: str, text: str) -> None:
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)
