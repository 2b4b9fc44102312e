"""A made-up evaluation, with all that a report can show."""

import io

import numpy as np
import soundfile as sf

from umx_model.evaluation.scores import METRICS, Evaluation, Excerpt, TrackScores

RATE = 22050
TARGETS = ("vocals", "drums", "bass", "other")


def made_up_track(name, seed, gain=0.0, windows=40, targets=TARGETS):
    random = np.random.default_rng(seed)
    shape = (windows, len(targets))
    level = np.linspace(2, 7, len(targets)) + random.normal(0, 1, len(targets)) + gain
    sdr = level + np.cumsum(random.normal(0, 0.7, shape), axis=0)
    sdr[windows // 2 : windows // 2 + 3] = np.nan
    by_metric = {metric: sdr + offset for metric, offset in zip(METRICS, (0, 5, 6, 1.5), strict=True)}
    return TrackScores(name, targets, by_metric, sdr - 6 - gain, level - 2, level + 0.5)


def tone(frequency, seconds=5.0):
    """A file with a rising tone, stereo."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = 0.4 * np.sin(2 * np.pi * frequency * (time + time**2 / 4))
    content = io.BytesIO()
    sf.write(content, np.stack([wave, wave * 0.5], axis=1), RATE, format="OGG", subtype="VORBIS")
    return content.getvalue()


def made_up_evaluation(tracks=7, names=None):
    names = names or [f"Band {number} - Song {number}" for number in range(1, tracks + 1)]
    excerpts = [
        Excerpt(names[place % tracks], target, 61.5 + place, 8.0 - 4 * place, tone(200), tone(400), tone(600))
        for target in TARGETS[:2]
        for place in range(4)
    ]
    return Evaluation(
        title="/models/2026-11/model/7",
        tracks=[made_up_track(name, seed, windows=30 + seed) for seed, name in enumerate(names)],
        baseline=[made_up_track(name, seed, gain=-0.4, windows=30 + seed) for seed, name in enumerate(names)],
        baseline_title="version 3",
        excerpts=excerpts,
        settings={"split": "test", "niter": 1, "softmask": False, "floor_db": {"vocals": 1.0}, "pair": None},
        data_fingerprint="0f3a9c6b",
        blessed=True,
        verdict=("Good enough: every target passes.", "vocals: 5.00 dB is 6.00 dB above the mixture; the floor is 1."),
    )
