"""Scores of samples and databases, with separators whose score is known."""

import helpers
import numpy as np
import pytest
import soundfile as sf

from umx_model.data.track_folder import read_database
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import SampleScore, evaluate_sample, summarize, table, to_json
from umx_model.inference.separator import Separator
from umx_model.profile import ModelProfile

RATE = 8000
PROFILE = ModelProfile(targets=("vocals", "drums"), sample_rate=RATE, n_fft=512, hop_length=128)
PASSING = Separator(lambda channels: helpers.PointwiseStream(lambda x: np.stack([x, x], axis=-1)), PROFILE)


@pytest.fixture
def sample(tmp_path):
    helpers.make_database(tmp_path, {"valid": 1}, seconds=3.5, sample_rate=RATE)
    return read_database(tmp_path, ("vocals", "drums"), splits=["valid"])["valid"][0]


def read(sample, target):
    return sf.read(sample.files[target].path, dtype="float32")[0]


def test_known_estimates(sample):
    """Estimates of 0.9 and 0.5 times the target score 20 and 6.02 dB: -20 log10(1 - gain)."""
    heard = []

    def cheating(mixture):
        heard.append(mixture)
        estimates = [gain * read(sample, target) for gain, target in ((0.9, "vocals"), (0.5, "drums"))]
        return np.stack(estimates, axis=-1)[: len(mixture)]

    whole = Separator(lambda channels: helpers.PointwiseStream(cheating, chunk=2**30), PROFILE)
    score = evaluate_sample(whole, sample)
    vocals, drums = read(sample, "vocals"), read(sample, "drums")
    np.testing.assert_allclose(heard[-1], vocals + drums, atol=1e-7)
    assert score.id == "song00"
    assert score.estimates == pytest.approx({"vocals": 20.0, "drums": 6.0206}, abs=1e-3)
    # Taken for the vocals, the mixture is wrong by the drums.
    windows = [slice(second * RATE, (second + 1) * RATE) for second in range(3)]
    expected = np.median([10 * np.log10(np.sum(vocals[w] ** 2) / np.sum(drums[w] ** 2)) for w in windows])
    assert score.mixture == pytest.approx({"vocals": expected, "drums": -expected}, abs=1e-3)


def test_returning_the_mixture_gains_nothing(sample):
    score = evaluate_sample(PASSING, sample)
    assert score.estimates == pytest.approx(score.mixture, abs=1e-4)


def test_targets_the_model_lacks_are_heard_all_the_same(tmp_path):
    helpers.make_database(tmp_path, {"valid": 1}, ("vocals", "drums", "bass"), seconds=1.0, sample_rate=RATE)
    sample = read_database(tmp_path, splits=["valid"])["valid"][0]
    score = evaluate_sample(PASSING, sample)
    rest = read(sample, "drums") + read(sample, "bass")
    expected = 10 * np.log10(np.sum(read(sample, "vocals") ** 2) / np.sum(rest**2))
    assert list(score.mixture) == ["vocals", "drums"]
    assert score.mixture["vocals"] == pytest.approx(expected, abs=1e-3)


def test_refuses_a_sample_without_a_target(tmp_path):
    helpers.make_database(tmp_path, {"valid": 1}, ("vocals",), seconds=1.0, sample_rate=RATE)
    sample = read_database(tmp_path, ("vocals",), splits=["valid"])["valid"][0]
    with pytest.raises(InputError, match="song00: lacks drums"):
        evaluate_sample(PASSING, sample)


def test_summary_is_the_median_over_samples():
    scores = [
        SampleScore("a", {"vocals": -3.0}, {"vocals": 1.0}),
        SampleScore("b", {"vocals": -5.0}, {"vocals": 9.0}),
        SampleScore("c", {"vocals": float("nan")}, {"vocals": float("nan")}),
        SampleScore("d", {"vocals": -6.0}, {"vocals": 2.0}),
    ]
    summary = summarize(scores)
    assert (summary["vocals"].mixture, summary["vocals"].estimates, summary["vocals"].gain) == (-5.0, 2.0, 7.0)
    assert table(summary).splitlines()[1].split() == ["vocals", "-5.00", "2.00", "+7.00"]
    document = to_json(scores)
    assert document["targets"] == {"vocals": {"mixture": -5.0, "estimates": 2.0, "gain": 7.0}}
    assert document["samples"][2] == {"id": "c", "mixture": {"vocals": None}, "estimates": {"vocals": None}}
    with pytest.raises(ValueError, match="no scores"):
        summarize([])
