"""The release gate: whether a model is good enough, by its scores and those of a baseline on the same tracks.

    verdict = judge(tracks, baseline, GateRule(floor_db=1.0), baseline_title="version 3")
    verdict.blessed, verdict.sentences        # all that led there, in words

Every target has to pass two tests:

* The floor: the median over tracks of its gain, the SDR of the estimate less that of the mixture, is above
  `floor_db`.
* Not worse than the baseline: each track is compared with itself, the differences of its SDR summed up by their
  median. Other tracks would have given another median; how other is estimated by a bootstrap, which draws as
  many tracks as there are, with replacement, again and again. The interval that holds `confidence` of these
  medians must not reach `margin_db` below 0, where the new model might be noticeably worse, nor lie below 0
  altogether, where it certainly is a little worse. A margin of 0 asks for what certainly is better.

The mixture is the baseline where there is no other, or where the baseline does not have the target.

Percentile bootstrap: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
Margin: non-inferiority, G. Piaggio et al., "Reporting of Noninferiority and Equivalence Randomized Trials",
JAMA 308(24), 2012.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import scipy.stats
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from umx_model.evaluation.scores import TrackScores, summarize, summarize_mixture

Figures = npt.NDArray[np.float64]
Floors = float | dict[str, float]

MIXTURE = "the mixture"

_SEED = 0  # the same scores are judged alike every time
_RESAMPLES_AT_ONCE = 1000


def _floors(value: Any) -> Floors:
    """Read dB, or dB per target from a mapping or from text as `vocals=2,drums=1`."""
    try:
        named = dict(part.split("=") for part in value.split(",")) if isinstance(value, str) and "=" in value else value
        floors: Floors = (
            {str(target).strip(): float(floor) for target, floor in named.items()}
            if isinstance(named, Mapping)
            else float(named)
        )
    except (TypeError, ValueError):
        floors = math.nan
    if not np.isfinite(list(floors.values()) if isinstance(floors, dict) else floors).all():
        raise ValueError(f"expected dB, or dB per target as in vocals=2,drums=1 (found {value!r})")
    return floors


class GateRule(BaseModel):
    """What a model must reach to be released."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    floor_db: Annotated[Floors, PlainValidator(_floors)] = Field(
        0.0, description="dB of SDR above the mixture that every target needs to be pushed, or dB per target"
    )
    margin_db: float = Field(0.5, ge=0, description="dB of SDR that a target might be worse than what is served")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the interval for the difference to what is served")
    resamples: int = Field(10000, ge=100, description="of the bootstrap that the interval comes from")

    def floor(self, target: str) -> float:
        """Return a target's floor in dB; 0 where floors are named and this one's is not."""
        return self.floor_db.get(target, 0.0) if isinstance(self.floor_db, dict) else self.floor_db


def check_floors(rule: GateRule, targets: Sequence[str]) -> None:
    """Refuse floors for what a model does not separate.

    Raises:
        ValueError: one is named for another target.
    """
    unknown = set(rule.floor_db if isinstance(rule.floor_db, dict) else ()) - set(targets)
    if unknown:
        raise ValueError(
            f"floor_db: {', '.join(sorted(unknown))} is no target of the model; there are {', '.join(targets)}"
        )


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        sentences: all that led to the decision, beginning with the decision.
        objections: those of them that speak against a release.
        comparisons: per target the figures that the decision was made on, in dB: see `judge`.
    """

    sentences: tuple[str, ...]
    objections: tuple[str, ...]
    comparisons: Mapping[str, Mapping[str, Any]]

    @property
    def blessed(self) -> bool:
        """Whether the model may be released."""
        return not self.objections


def judge(
    tracks: Sequence[TrackScores],
    baseline: Sequence[TrackScores] | None,
    rule: GateRule,
    baseline_title: str | None = None,
) -> Verdict:
    """Decide whether a model may be released.

    A track is left out for a target that it has no score for (NaN), and of a comparison also where it has none
    on the other side. A model may not be silent, though, where the baseline (without one, the music) is heard: such a
    track has no score either, and counts against the model. All figures are rounded to 0.01 dB first, so that what
    is decided is what is shown.

    Where the mixture is the baseline, a floor below 0 lowers it: who asks for so little may release what is
    worse than the mixture.

    Args:
        tracks: scores of the model.
        baseline: scores of the model that is served, matched by the tracks' names; None if none is.
        rule: what to ask for.
        baseline_title: what the baseline is called.

    Returns:
        The verdict. Its comparisons hold per target `sdr` and `mixture` (medians over tracks), `gain` (median of
        the gains), `floor`; `baseline` (what it is compared with), `difference` (median), `low` and `high` (ends of
        the interval), `tracks` (compared), `left_out`, `silent`; `passed`. Figures that do not exist are None.

    Raises:
        ValueError: there are no tracks.
    """
    others = {track.name: track.score() for track in baseline or ()}
    sdr, mixture = summarize(tracks), summarize_mixture(tracks)
    comparisons: dict[str, dict[str, Any]] = {}
    sentences, objections = [], []
    for target in tracks[0].targets:
        scores = np.array([track.score()[target] for track in tracks])
        of_mixture = np.array([track.mixture_score()[target] for track in tracks])
        gains = scores - of_mixture
        against = np.array([others.get(track.name, {}).get(target, math.nan) for track in tracks])
        compared = any(target in scored for scored in others.values())
        floor = rule.floor(target)
        differences = scores - against if compared else gains - min(floor, 0.0)
        title = (baseline_title or "the baseline") if compared else MIXTURE
        if not compared and floor < 0:
            title += f" less {-floor:g} dB"
        figures = {
            "sdr": _rounded(sdr[target]),
            "mixture": _rounded(mixture[target]),
            "gain": _median(gains),
            "floor": floor,
            "baseline": title,
            **_compare(differences, rule),
            "silent": int(np.sum(np.isnan(scores) & ~np.isnan(against if compared else of_mixture))),
        }
        said = _sentences(target, figures, rule, len(tracks))
        sentences += [sentence for sentence, _ in said]
        objections += [sentence for sentence, passed in said if not passed]
        comparisons[target] = figures | {"passed": all(passed for _, passed in said)}
    failed = [target for target, figures in comparisons.items() if not figures["passed"]]
    opening = f"Not good enough: {', '.join(failed)}." if failed else "Good enough: every target passes."
    return Verdict((opening, *sentences), tuple(objections), comparisons)


def _compare(differences: Figures, rule: GateRule) -> dict[str, Any]:
    """Return the median difference of tracks and the interval that it is in."""
    found = differences[~np.isnan(differences)]
    low, high = _interval(found, rule)
    return {
        "difference": _median(found),
        "low": _rounded(low),
        "high": _rounded(high),
        "tracks": len(found),
        "left_out": len(differences) - len(found),
    }


def _interval(differences: Figures, rule: GateRule) -> tuple[float, float]:
    """Return the ends of the median's bootstrap interval; of less than two differences there is nothing to draw."""
    if len(differences) < 2:
        value = float(differences[0]) if len(differences) else math.nan
        return value, value
    interval = scipy.stats.bootstrap(
        (differences,),
        np.median,
        n_resamples=rule.resamples,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=rule.confidence,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _sentences(target: str, figures: Mapping[str, Any], rule: GateRule, tracks: int) -> list[tuple[str, bool]]:
    """Say how a target passes both tests, and whether it does."""
    silent = figures["silent"]
    silence = (
        f"{target}: {_plural(silent, 'track')} without a score although there is sound, because an estimate is silent.",
        False,
    )
    if figures["gain"] is None and silent:
        return [silence]
    if figures["gain"] is None:
        return [
            (f"{target}: no track has a score, so nothing can be said; add samples with sound in every stem.", False)
        ]
    enough = figures["gain"] > figures["floor"]
    lines = [
        (
            f"{target}: SDR is {figures['sdr']:.2f} dB, the mixture's {figures['mixture']:.2f} dB; track by track the "
            f"median gain is {figures['gain']:+.2f} dB, {'above' if enough else 'not above'} the floor of "
            f"{figures['floor']:+g} dB.",
            enough,
        )
    ]
    if silent:
        lines.append(silence)
    title, low, high = figures["baseline"], figures["low"], figures["high"]
    if not figures["tracks"]:
        return [*lines, (f"{target}: no track has a score of both this model and {title}.", False)]
    if low == high == 0:
        judgement = "it is as good"
    elif low <= -rule.margin_db:
        judgement = f"it might be worse, by the margin of {rule.margin_db:g} dB or more"
    elif high < 0:
        judgement = "it is worse"
    else:
        judgement = f"it is not worse by the margin of {rule.margin_db:g} dB or more"
    passed = (low > -rule.margin_db and high >= 0) or low == high == 0
    interval = f"with {100 * rule.confidence:g} % confidence between {low:+.2f} and {high:+.2f} dB"
    if figures["tracks"] == 1:
        interval = "which a single track cannot tell from chance"
    count = f"{figures['tracks']} of {tracks} tracks" if figures["left_out"] else _plural(tracks, "track")
    lines.append(
        (
            f"{target}: against {title} the median difference over {count} is {figures['difference']:+.2f} dB, "
            f"{interval}: {judgement}.",
            passed,
        )
    )
    if figures["left_out"] > silent:
        lines.append((f"{target}: {_plural(figures['left_out'] - silent, 'track')} without a score left out.", True))
    return lines


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _median(figures: Figures) -> float | None:
    found = figures[~np.isnan(figures)]
    return _rounded(float(np.median(found))) if len(found) else None


def _rounded(decibels: float) -> float | None:
    return None if math.isnan(decibels) else round(decibels, 2) + 0.0  # no -0.0
