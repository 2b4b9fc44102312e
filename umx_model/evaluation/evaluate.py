"""Scoring a model on the samples of a database: BSSEval v4 SDR of its estimates and of the mixture itself.

scores = [evaluate_sample(separator, sample) for sample in samples]
summary = summarize(scores)              # {"vocals": TargetScore(mixture=-4.5, estimates=3.8), ...}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from umx_model.data import audio
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.evaluation.bss_eval import database_score, track_score, windowed_sdr
from umx_model.inference.separator import Separator

# To be quoted with every figure: other aggregations of the same estimates differ by decibels.
METRIC = "BSSEval v4 SDR in dB: median over samples of the median over 1 s windows"


@dataclass(frozen=True)
class SampleScore:
    """Scores of one sample, the median over its 1 s windows in dB; NaN where every window has a silent target.

    Attributes:
        id: the sample's folder name.
        mixture: per target, the score of the mixture taken for the target: what doing nothing gets.
        estimates: per target, the score of the model's estimate.
    """

    id: str
    mixture: Mapping[str, float]
    estimates: Mapping[str, float]


@dataclass(frozen=True)
class TargetScore:
    """Scores of one target over a database, in dB; see `METRIC`."""

    mixture: float
    estimates: float

    @property
    def gain(self) -> float:
        """How far the estimates are above the mixture."""
        return self.estimates - self.mixture


def evaluate_sample(
    separator: Separator, sample: Sample, progress: Callable[[float, float], None] | None = None
) -> SampleScore:
    """Separate the sum of a sample's targets and score the estimates.

    Args:
        separator: the model to score.
        sample: a sample with every target of the model; targets that the model does not have are
            part of the mixture only.
        progress: called now and then with the seconds of audio done and their total.

    Raises:
        InputError: a target is missing or a file cannot be read, or the model does not take the sample.
    """
    missing = [target for target in separator.targets if target not in sample.files]
    if missing:
        raise InputError(f"{sample.id}: lacks {', '.join(missing)}, which the model estimates")
    stems = {target: audio.read(info.path) for target, info in sample.files.items()}
    mixture = np.sum(list(stems.values()), axis=0)
    estimates = separator.separate(mixture, sample.sample_rate, progress)
    references = np.stack([stems[target] for target in separator.targets], axis=-1)

    def score(estimated: list[np.ndarray]) -> dict[str, float]:
        windows = windowed_sdr(references, np.stack(estimated, axis=-1), sample.sample_rate, sample.sample_rate)
        return dict(zip(separator.targets, track_score(windows).tolist(), strict=True))

    return SampleScore(
        id=sample.id,
        mixture=score([mixture] * len(separator.targets)),
        estimates=score([estimates[target] for target in separator.targets]),
    )


def summarize(scores: Iterable[SampleScore]) -> dict[str, TargetScore]:
    """Return the median over samples for each target.

    Raises:
        ValueError: there are no scores.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("no scores to summarize")
    targets = list(scores[0].estimates)
    mixture = database_score([np.array([score.mixture[target] for target in targets]) for score in scores])
    estimates = database_score([np.array([score.estimates[target] for target in targets]) for score in scores])
    return {target: TargetScore(float(mixture[index]), float(estimates[index])) for index, target in enumerate(targets)}


def table(summary: Mapping[str, TargetScore]) -> str:
    """Return a summary as lines of text, one per target."""
    width = max(len(target) for target in [*summary, "target"])
    lines = [f"{'target':<{width}}  mixture  estimate     gain"]
    for target, score in summary.items():
        figures = (score.mixture, score.estimates)
        lines.append(f"{target:<{width}}" + "".join(f"  {value:7.2f}" for value in figures) + f"  {score.gain:+7.2f}")
    return "\n".join(lines)


def to_json(scores: Iterable[SampleScore]) -> dict[str, object]:
    """Return scores as a JSON document: the metric, the summary per target and the scores per sample (NaN as null)."""
    scores = list(scores)
    per_sample = [
        {"id": score.id, "mixture": _nulls(score.mixture), "estimates": _nulls(score.estimates)} for score in scores
    ]
    targets = {
        target: _nulls({"mixture": score.mixture, "estimates": score.estimates, "gain": score.gain})
        for target, score in summarize(scores).items()
    }
    return {"metric": METRIC, "targets": targets, "samples": per_sample}


def _nulls(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
