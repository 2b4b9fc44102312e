"""The release gate: its rule on made-up scores, its interval against the binomial distribution."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError

from umx_model.evaluation.evaluate import score_track
from umx_model.evaluation.gate import GateRule, judge
from umx_model.evaluation.scores import TrackScores

NAN = math.nan


def tracks(scores: Mapping[str, Sequence[float]], mixture: float = 0.0, heard: bool = False) -> list[TrackScores]:
    """Make tracks of one window with these SDRs per target; what has none is music that is silent, unless heard."""
    table = np.array(list(scores.values()), np.float64).T  # [tracks, targets]
    return [
        TrackScores(
            name=f"song{index}",
            targets=tuple(scores),
            windows={"SDR": row[np.newaxis]},
            mixture=np.where(np.isnan(row) & (not heard), NAN, mixture)[np.newaxis],
            si_sdr=row,
            mdx_sdr=row,
        )
        for index, row in enumerate(table)
    ]


@pytest.mark.parametrize(
    ("scores", "baseline", "rule", "objections"),
    [
        # Nothing is served: the floor, and the mixture.
        ({"a": [1, 2, 3], "b": [0.1, 0.2, 0.3]}, None, {}, []),
        ({"a": [1, 2, 3], "b": [0, 0, 0]}, None, {}, ["b: .* not above the floor of .0 dB"]),  # as doing nothing
        ({"a": [1, 2, 3]}, None, {"floor_db": 2}, ["a: .* gain is .2.00 dB, not above the floor of .2 dB"]),
        ({"a": [1, 2, 3]}, None, {"floor_db": 1.99}, []),
        ({"a": [1, 2, 3], "b": [1, 2, 3]}, None, {"floor_db": {"a": 1, "b": 3}}, ["b: .* the floor of .3 dB"]),
        ({"a": [1, 2, 3], "b": [0, 0, 0]}, None, {"floor_db": {"a": 1}}, ["b: .* the floor of .0 dB"]),
        ({"a": [-4, 5, 6]}, None, {}, ["a: against the mixture .* between -4.00 and .6.00 dB: it might be worse"]),
        ({"a": [-4, -5, -6]}, None, {"floor_db": -10}, []),
        # Something is served.
        ({"a": [5, 6, 7]}, {"a": [5, 6, 7]}, {}, []),
        ({"a": [5, 6, 7]}, {"a": [5, 6, 7]}, {"margin_db": 0}, []),  # itself
        ({"a": [5, 6, 7.1]}, {"a": [5, 6, 7]}, {"margin_db": 0}, ["a: against version 1 .* it might be worse"]),
        ({"a": [5.1, 6.1, 7.1]}, {"a": [5, 6, 7]}, {"margin_db": 0}, []),
        ({"a": [4.9, 6.0, 7.2]}, {"a": [5, 6, 7]}, {}, []),
        ({"a": [4.9, 5.9, 6.9]}, {"a": [5, 6, 7]}, {}, ["a: .* between -0.10 and -0.10 dB: it is worse"]),
        ({"a": [4.996, 5.996, 6.996]}, {"a": [5, 6, 7]}, {}, []),  # what is decided is what is shown
        ({"a": [4.5, 6, 7]}, {"a": [5, 6, 7]}, {}, ["a: .* between -0.50 and .0.00 dB: it might be worse, by the"]),
        ({"a": [4.51, 6, 7]}, {"a": [5, 6, 7]}, {}, []),
        ({"a": [4.4, 6, 7]}, {"a": [5, 6, 7]}, {"margin_db": 1}, []),
        # Better on the whole, but each track is compared with itself.
        ({"a": [9, 1, 5]}, {"a": [1, 5, 4]}, {}, ["a: .* median difference over 3 tracks is .1.00 dB"]),
        ({"a": [5, 6], "b": [5, 6]}, {"b": [9, 9]}, {}, ["b: against version 1"]),  # a is new
        # Without a score.
        ({"a": [NAN, NAN], "b": [1, 1]}, None, {}, ["a: no track has a score, so nothing"]),
        (
            {"a": [5, NAN]},
            {"a": [NAN, 5]},
            {},
            ["a: 1 track without a score although", "a: no track has a score of both"],
        ),
        ({"a": [5, 5, 6]}, {"a": [NAN, 5, NAN]}, {}, []),
        ({"a": [NAN, 5, 6]}, {"a": [NAN, 5, 6]}, {}, []),
        # Silent where what is served is heard.
        ({"a": [NAN, NAN, 6]}, {"a": [9, 5, 6]}, {}, ["a: 2 tracks without a score although there is sound"]),
    ],
)
def test_rule(
    scores: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]] | None, rule: dict, objections: list
) -> None:
    verdict = judge(tracks(scores), tracks(baseline) if baseline else None, GateRule(**rule), "version 1")
    assert verdict.blessed is not bool(objections)
    assert len(verdict.objections) == len(objections), verdict.objections
    for sentence, pattern in zip(verdict.objections, objections, strict=True):
        assert re.match(pattern, sentence), sentence
    assert set(verdict.objections) < set(verdict.sentences)


def test_a_model_may_not_be_silent_where_there_is_sound() -> None:
    for scores, silent in (([9.0, NAN, NAN], "2 tracks"), ([NAN, NAN, NAN], "3 tracks")):
        verdict = judge(tracks({"a": scores}, heard=True), None, GateRule())
        assert verdict.objections == (
            f"a: {silent} without a score although there is sound, because an estimate is silent.",
        )
    served = tracks({"a": [9.0, NAN, 9.0]}, heard=True)
    assert judge(served, served, GateRule()).blessed  # as silent as what is served
    assert judge(tracks({"a": [9.0, NAN, NAN]}), None, GateRule()).blessed  # as silent as the music


def test_silent_estimates_of_real_scores_are_noticed() -> None:
    generator = np.random.default_rng(0)
    references = generator.normal(0, 0.1, (4000, 1, 2))
    good = references + generator.normal(0, 0.01, references.shape)
    dead = good * [1, 0]
    scored = [score_track(f"song{n}", references, good if n == 0 else dead, ("a", "b"), 2000) for n in range(3)]
    verdict = judge(scored, None, GateRule())
    assert [sentence[:11] for sentence in verdict.objections] == ["a: 2 tracks", "b: 2 tracks"]


def test_a_single_track_has_no_interval() -> None:
    verdict = judge(tracks({"a": [5.0]}), tracks({"a": [4.0]}), GateRule(), "version 1")
    assert verdict.sentences[2] == (
        "a: against version 1 the median difference over 1 track is +1.00 dB, which a single track cannot tell from "
        "chance: it is not worse by the margin of 0.5 dB or more."
    )


def test_every_figure_is_in_the_sentences() -> None:
    verdict = judge(
        tracks({"a": [5.0, 6.0, 7.5, NAN], "b": [1.0, 1.0, 1.0, 1.0]}, mixture=-1.25),
        tracks({"a": [4.0, 6.5, 7.0, NAN], "b": [2.0, 2.0, 2.0, 2.0]}),
        GateRule(floor_db=0.125, margin_db=0.75, confidence=0.9),
        "version 7",
    )
    assert verdict.sentences == (
        "Not good enough: b.",
        "a: SDR is 6.00 dB, the mixture's -1.25 dB; track by track the median gain is +7.25 dB, "
        "above the floor of +0.125 dB.",
        "a: against version 7 the median difference over 3 of 4 tracks is +0.50 dB, with 90 % confidence between "
        "-0.50 and +1.00 dB: it is not worse by the margin of 0.75 dB or more.",
        "a: 1 track without a score left out.",
        "b: SDR is 1.00 dB, the mixture's -1.25 dB; track by track the median gain is +2.25 dB, "
        "above the floor of +0.125 dB.",
        "b: against version 7 the median difference over 4 tracks is -1.00 dB, with 90 % confidence between -1.00 and "
        "-1.00 dB: it might be worse, by the margin of 0.75 dB or more.",
    )
    assert verdict.comparisons["a"] == {
        "sdr": 6.0,
        "mixture": -1.25,
        "gain": 7.25,
        "floor": 0.125,
        "baseline": "version 7",
        "difference": 0.5,
        "low": -0.5,
        "high": 1.0,
        "tracks": 3,
        "left_out": 1,
        "silent": 0,
        "passed": True,
    }
    assert not verdict.comparisons["b"]["passed"]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_is_that_of_all_resamples(confidence: float) -> None:
    # Of an odd number of values, a resample's median is at most the k-th smallest if more than half of its draws
    # are: a binomial probability.
    differences = np.sort(np.random.default_rng(3).normal(0.3, 1.0, 15)).round(2)
    at_most = [scipy.stats.binom.sf(7, 15, (k + 1) / 15) for k in range(15)]
    low, high = (differences[np.searchsorted(at_most, end)] for end in ((1 - confidence) / 2, (1 + confidence) / 2))
    figures = judge(
        tracks({"a": 5 + differences}), tracks({"a": np.full(15, 5.0)}), GateRule(confidence=confidence)
    ).comparisons["a"]
    assert (figures["low"], figures["high"]) == pytest.approx((low, high), abs=1e-9)
    assert figures["difference"] == pytest.approx(np.median(differences), abs=1e-9)


def test_equal_models_pass_and_worse_ones_do_not() -> None:
    # Equal but for chance, 60 times: no difference in the median, 1 dB of noise per track, 50 tracks.
    generator = np.random.default_rng(0)

    def share_blessed(shift: float) -> float:
        rule = GateRule(resamples=500)
        served = tracks({"a": np.full(50, 5.0)})
        scores = (5 + shift + generator.normal(0, 1, 50) for _ in range(60))
        return float(np.mean([judge(tracks({"a": score}), served, rule).blessed for score in scores]))

    assert share_blessed(0.5) > 0.95
    assert share_blessed(0.0) > 0.6
    assert share_blessed(-0.5) < 0.1


def test_the_same_scores_are_judged_alike() -> None:
    scores = {"a": np.random.default_rng(5).normal(5, 2, 20)}
    served = tracks({"a": np.full(20, 5.0)})
    verdicts = [judge(tracks(scores), served, GateRule()) for _ in range(2)]
    assert verdicts[0] == verdicts[1]
    # Nor does the order of the tracks of the baseline matter.
    assert judge(tracks(scores), served[::-1], GateRule()) == verdicts[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, 2.0),
        ("2.5", 2.5),
        ("vocals=2,drums=-1.5", {"vocals": 2.0, "drums": -1.5}),
        ("vocals = 2, drums = 1", {"vocals": 2.0, "drums": 1.0}),
        ({"vocals": 2}, {"vocals": 2.0}),
    ],
)
def test_floors_may_be_text(given: object, expected: object) -> None:
    rule = GateRule(floor_db=given)
    assert rule.floor_db == expected
    assert GateRule.model_validate_json(rule.model_dump_json()) == rule


@pytest.mark.parametrize(
    "wrong",
    [
        {"floor_db": "high"},
        {"floor_db": "vocals=2,drums"},
        {"floor_db": {"vocals": NAN}},
        {"floor_db": NAN},
        {"floor_db": [1]},
        {"margin_db": -1},
        {"confidence": 1},
        {"confidence": 95},
        {"resamples": 1},
        {"floor": 1},
    ],
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ValidationError) as caught:
        GateRule(**wrong)
    assert caught.value.error_count() == 1


def test_refuses_no_tracks() -> None:
    with pytest.raises(ValueError, match="no scores"):
        judge([], None, GateRule())
