"""Excerpts: the right places, the right audio, the right choice."""

import io

import numpy as np
import pytest
import soundfile as sf

from umx_model.evaluation.excerpts import best_and_worst, choose_excerpts
from umx_model.evaluation.scores import Excerpt, TrackScores

RATE = 8000


def scores_of(sdr):
    sdr = np.array(sdr, np.float64)
    return TrackScores("song", ("vocals", "drums")[: sdr.shape[1]], {"SDR": sdr}, sdr, sdr[0], sdr[0])


def tones(seconds, frequencies, channels=2, rate=RATE, level=0.3):
    """`[samples, channels, targets]`, one frequency each, and louder every second."""
    time = np.arange(round(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * frequency * time) * (1 + np.floor(time)) / seconds for frequency in frequencies]
    return np.repeat(np.stack(waves, axis=-1)[:, np.newaxis], channels, axis=1) * level


def decoded(content):
    waveform, rate = sf.read(io.BytesIO(content), always_2d=True)
    return waveform, rate


def test_where_and_what():
    references = tones(12, (300, 1100))
    estimates = references[..., ::-1] * 0.5
    mixture = references.sum(axis=-1)
    sdr = np.zeros((12, 2))
    sdr[:, 0] = [9, 1, 2, 3, 4, 5, 6, -7, 2, 2, 2, 2]
    sdr[:, 1] = np.nan
    sdr[[5, 11], 1] = 1.0, 3.0
    found = best_and_worst(scores_of(sdr), references, estimates, mixture, RATE)
    # The window is in the middle, unless the track begins or ends there.
    assert [(one.target, one.start_seconds, one.sdr) for one in found] == [
        ("vocals", 0.0, 9.0),
        ("vocals", 5.0, -7.0),
        ("drums", 7.0, 3.0),
        ("drums", 3.0, 1.0),
    ]
    worst = found[1]
    assert worst.track == "song"
    piece = slice(5 * RATE, 10 * RATE)
    for content, expected in (
        (worst.mixture, mixture[piece]),
        (worst.reference, references[piece, :, 0]),
        (worst.estimate, estimates[piece, :, 0]),
    ):
        waveform, rate = decoded(content)
        assert (waveform.shape, rate) == (expected.shape, RATE)
        assert sf.info(io.BytesIO(content)).subtype == "VORBIS"
        assert np.sum((waveform - expected) ** 2) < 0.02 * np.sum(expected**2)


@pytest.mark.parametrize(("seconds", "windows"), [(0.5, 1), (3.2, 3)])
def test_short_tracks(seconds, windows):
    references = tones(seconds, (300,))
    found = best_and_worst(scores_of(np.full((windows, 1), 2.0)), references, references, references[..., 0], RATE)
    assert [(one.start_seconds, one.sdr) for one in found] == [(0.0, 2.0)]
    assert len(decoded(found[0].estimate)[0]) == len(references)


def test_nothing_of_a_target_without_scores():
    references = tones(2, (300,))
    assert best_and_worst(scores_of([[np.nan], [np.nan]]), references, references, references[..., 0], RATE) == []


def test_what_would_clip_is_turned_down_by_one_gain():
    references = tones(2, (300,), level=0.5)
    loud = references * 4
    (found,) = best_and_worst(scores_of([[1.0]]), references, loud, references[..., 0], RATE)
    peaks = [np.abs(decoded(content)[0]).max() for content in (found.mixture, found.reference, found.estimate)]
    assert peaks == pytest.approx([0.25, 0.25, 1.0], rel=0.1)


@pytest.mark.parametrize(
    ("channels", "rate", "expected"), [(6, 8000, (1, 8000)), (1, 8000, (1, 8000)), (2, 96000, (2, 48000))]
)
def test_what_browsers_play(channels, rate, expected):
    references = tones(1.0, (300,), channels, rate)
    (found,) = best_and_worst(scores_of([[1.0]]), references, references, references[..., 0], rate)
    waveform, played_rate = decoded(found.reference)
    assert (waveform.shape[1], played_rate) == expected
    assert len(waveform) == played_rate


def excerpt(track, sdr, target="vocals"):
    return Excerpt(track, target, 0.0, sdr, b"", b"", b"")


def test_choice():
    """The best and the worst, each of another track, best first; none twice."""
    tracks = {"a": (9.0, 8.0), "b": (7.0, -4.0), "c": (3.0, -5.0), "d": (2.0, 1.0)}
    found = [excerpt(track, sdr) for track, pair in tracks.items() for sdr in pair]
    found += [excerpt("a", 1.0, "drums"), excerpt("a", 5.0, "drums")]
    chosen = [(one.target, one.track, one.sdr) for one in choose_excerpts(found)]
    assert chosen == [
        ("vocals", "a", 9.0),
        ("vocals", "b", 7.0),
        ("vocals", "b", -4.0),
        ("vocals", "c", -5.0),
        ("drums", "a", 5.0),
        ("drums", "a", 1.0),
    ]
    assert choose_excerpts(found[:1]) == found[:1]
    assert choose_excerpts([]) == []


def test_choosing_as_tracks_come_in_makes_no_difference():
    generator = np.random.default_rng(0)
    found = [excerpt(f"t{number // 2}", sdr) for number, sdr in enumerate(generator.standard_normal(40))]
    kept: list[Excerpt] = []
    for first in range(0, 40, 2):
        kept = choose_excerpts([*kept, *found[first : first + 2]])
    assert [one.sdr for one in kept] == [one.sdr for one in choose_excerpts(found)]
