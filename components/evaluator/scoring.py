"""Scores of models on samples, as a Beam job.

Every sample is separated by every model, wherever a worker is free. Scores and the few excerpts that are
worth listening to come back as lines of text.
"""

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from components import progress
from components.beam_text import failure, raise_failures, read_lines, write_lines
from umx_model.data.track_folder import Sample
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import evaluate_sample
from umx_model.evaluation.excerpts import choose_excerpts
from umx_model.evaluation.scores import Excerpt, TrackScores
from umx_model.inference.restore import load_separator
from umx_model.inference.separator import Separator

_EXCERPTS = "excerpts"
_PROBLEMS = "problems"
_FAILURES = "failures"
_SOUNDS = ("mixture", "reference", "estimate")

Scores = dict[str, list[TrackScores]]


def score_samples(
    folders: Mapping[str, str],
    listen_to: str,
    samples: Sequence[Sample],
    make_pipeline: Callable[[], beam.Pipeline],
    scratch: str,
) -> tuple[Scores, list[Excerpt]]:
    """Separate and score samples.

    Args:
        folders: name of a model to its folder.
        listen_to: the model to take excerpts from.
        samples: what to separate.
        make_pipeline: makes the Beam pipeline that does it.
        scratch: a folder that all workers can write to.

    Returns:
        Name of a model to its scores, sorted by track; and its best and worst excerpts.

    Raises:
        InputError: a model or a sample cannot be used; one line per problem.
        RuntimeError: samples could not be scored.
    """
    scores, excerpts, problems, failures = (
        os.path.join(scratch, name) for name in ("scores", _EXCERPTS, _PROBLEMS, _FAILURES)
    )
    with progress.shown("separating samples", len(samples), "samples"), make_pipeline() as pipeline:
        scored = (
            pipeline
            | "Samples" >> beam.Create(samples)
            | "Spread" >> beam.Reshuffle()
            | "Score"
            >> beam.ParDo(_Score(folders, listen_to)).with_outputs(_EXCERPTS, _PROBLEMS, _FAILURES, main="scores")
        )
        scored["scores"] | "WriteScores" >> write_lines(scores)
        (
            scored[_EXCERPTS]
            | "Choose" >> beam.CombinePerKey(_choose)
            | "OfAllTargets" >> beam.FlatMap(lambda of_target: map(_to_line, of_target[1]))
            | "WriteExcerpts" >> write_lines(excerpts)
        )
        scored[_PROBLEMS] | "WriteProblems" >> write_lines(problems)
        scored[_FAILURES] | "WriteFailures" >> write_lines(failures)
    lines = read_lines(problems)
    if lines:
        raise InputError("\n".join(dict.fromkeys(lines)))
    raise_failures(read_lines(failures))
    records = [json.loads(line) for line in read_lines(scores)]
    by_model = {name: [TrackScores.from_json(record[name]) for record in records] for name in folders}
    chosen = choose_excerpts([_from_line(line) for line in read_lines(excerpts)])
    return {name: sorted(found, key=lambda track: track.name) for name, found in by_model.items()}, chosen


class _Score(beam.DoFn):
    """Sample -> JSON of {name of a model: its scores}, or a line about what is wrong or has failed."""

    def __init__(self, folders: Mapping[str, str], listen_to: str) -> None:
        self._folders = folders
        self._listen_to = listen_to
        self._separators: dict[str, Separator] = {}

    def process(self, sample: Sample) -> Iterator[Any]:
        """Score one sample; excerpts go to their own output, by target."""
        try:
            scores = {}
            for name in self._folders:
                track, excerpts = evaluate_sample(self._separator(name), sample, excerpts=name == self._listen_to)
                scores[name] = track.to_json()
                for excerpt in excerpts:
                    yield TaggedOutput(_EXCERPTS, (excerpt.target, [excerpt]))
            yield json.dumps(scores)
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


def _choose(lists: Iterable[Sequence[Excerpt]]) -> list[Excerpt]:
    """Choose from what was chosen before, in any order; sorted, so that the order makes no difference."""
    excerpts = [excerpt for some in lists for excerpt in some]
    return choose_excerpts(sorted(excerpts, key=lambda excerpt: (excerpt.track, excerpt.start_seconds)))


def _to_line(excerpt: Excerpt) -> str:
    sounds = {name: base64.b64encode(getattr(excerpt, name)).decode() for name in _SOUNDS}
    return json.dumps(asdict(excerpt) | sounds)


def _from_line(line: str) -> Excerpt:
    fields = json.loads(line)
    return Excerpt(**fields | {name: base64.b64decode(fields[name]) for name in _SOUNDS})
