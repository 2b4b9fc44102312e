"""What an evaluation finds out: scores of tracks, excerpts to listen to, and how they are summed up.

Aggregation is that of the field: the score of a track is the median over its windows, the score of a
database the median over its tracks, each leaving out NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from umx_model.evaluation.bss_eval import database_score, track_score

Figures = npt.NDArray[np.float64]

SDR = "SDR"
METRICS = (SDR, "ISR", "SIR", "SAR")


@dataclass(frozen=True, eq=False)
class TrackScores:
    """Scores of the estimates of one track, in dB.

    Attributes:
        name: of the track.
        targets: names, in the order of the last axis of all figures.
        windows: BSSEval v4, metric to `[windows, targets]`; NaN where a window has no score. Holds
            SDR, and the others of `METRICS` where they were asked for.
        mixture: SDR `[windows, targets]` of the mixture taken for each target: what doing nothing gets.
        si_sdr: scale-invariant SDR `[targets]` of the whole track.
        mdx_sdr: SDR `[targets]` of the whole track as the Music Demixing Challenge counts it.
        window_seconds: length of a window.
        hop_seconds: from one window to the next.
    """

    name: str
    targets: tuple[str, ...]
    windows: Mapping[str, Figures]
    mixture: Figures
    si_sdr: Figures
    mdx_sdr: Figures
    window_seconds: float = 1.0
    hop_seconds: float = 1.0

    def score(self, metric: str = SDR) -> dict[str, float]:
        """Return the track's score per target: the median over windows."""
        return self._by_target(track_score(self.windows[metric]))

    def mixture_score(self) -> dict[str, float]:
        """Return the SDR of the mixture per target: the median over windows."""
        return self._by_target(track_score(self.mixture))

    def _by_target(self, figures: Figures) -> dict[str, float]:
        return dict(zip(self.targets, figures.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document that `from_json` reads; NaN as null."""
        return {
            "name": self.name,
            "targets": list(self.targets),
            "window_seconds": self.window_seconds,
            "hop_seconds": self.hop_seconds,
            "windows": {metric: _to_lists(figures) for metric, figures in self.windows.items()},
            "mixture": _to_lists(self.mixture),
            "si_sdr": _to_lists(self.si_sdr),
            "mdx_sdr": _to_lists(self.mdx_sdr),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TrackScores:
        """Read what `to_json` made."""
        targets = tuple(document["targets"])
        shape = (-1, len(targets))
        return cls(
            name=document["name"],
            targets=targets,
            windows={metric: np.array(rows, np.float64).reshape(shape) for metric, rows in document["windows"].items()},
            mixture=np.array(document["mixture"], np.float64).reshape(shape),
            si_sdr=np.array(document["si_sdr"], np.float64),
            mdx_sdr=np.array(document["mdx_sdr"], np.float64),
            window_seconds=document["window_seconds"],
            hop_seconds=document["hop_seconds"],
        )


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A few seconds to listen to.

    Attributes:
        track: name of the track.
        target: what is estimated.
        start_seconds: where it starts in the track.
        sdr: of the window that it was chosen for, in dB.
        mixture: the audio as a file (Ogg Vorbis).
        reference: likewise, of the target.
        estimate: likewise, of the model's estimate of it.
    """

    track: str
    target: str
    start_seconds: float
    sdr: float
    mixture: bytes
    reference: bytes
    estimate: bytes


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything about one evaluation.

    Attributes:
        title: what was evaluated: a model's name or folder, or a folder of estimates.
        tracks: scores of its tracks.
        baseline: scores of another model on the same tracks; None where there is none.
        baseline_title: what that is.
        excerpts: to listen to, the best and the worst.
        settings: everything that the scores depend on, by name, to be shown.
        data_fingerprint: of the database; None where it is not known.
        blessed: whether the model may be released; None where that was not the question.
        verdict: sentences that led there.
    """

    title: str
    tracks: Sequence[TrackScores]
    baseline: Sequence[TrackScores] | None = None
    baseline_title: str | None = None
    excerpts: Sequence[Excerpt] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_fingerprint: str | None = None
    blessed: bool | None = None
    verdict: Sequence[str] = ()


def summarize(tracks: Sequence[TrackScores], metric: str = SDR) -> dict[str, float]:
    """Return the score of a database per target: the median over tracks of the median over windows, in dB."""
    return _median_of(tracks, [track.score(metric) for track in tracks])


def summarize_mixture(tracks: Sequence[TrackScores]) -> dict[str, float]:
    """Return the SDR per target that the mixtures themselves get, aggregated as in `summarize`."""
    return _median_of(tracks, [track.mixture_score() for track in tracks])


def _median_of(tracks: Sequence[TrackScores], scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not tracks:
        raise ValueError("no scores to summarize")
    targets = tracks[0].targets
    medians = database_score([np.array([score[target] for target in targets]) for score in scores])
    return dict(zip(targets, medians.tolist(), strict=True))


def _to_lists(figures: Figures) -> Any:
    def nulls(value: Any) -> Any:
        return [nulls(entry) for entry in value] if isinstance(value, list) else None if math.isnan(value) else value

    return nulls(figures.tolist())
