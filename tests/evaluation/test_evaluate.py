"""Scores of samples, with separators and estimates whose score is known, and museval's."""

from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import soundfile as sf
from museval_oracle import museval

from umx_model.data.track_folder import read_database
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import METRIC, columns, evaluate_sample, evaluate_stems, score_track, table
from umx_model.evaluation.scores import METRICS, TrackScores
from umx_model.inference.separator import Separator
from umx_model.profile import ModelProfile

RATE = 8000
PROFILE = ModelProfile(targets=("vocals", "drums"), sample_rate=RATE, n_fft=512, hop_length=128)
PASSING = Separator(lambda channels: helpers.PointwiseStream(lambda x: np.stack([x, x], axis=-1)), PROFILE)
FOUR = ("bass", "drums", "other", "vocals")


@pytest.fixture
def sample(tmp_path):
    helpers.make_database(tmp_path, {"valid": 1}, seconds=3.5, sample_rate=RATE)
    return read_database(tmp_path, ("vocals", "drums"), splits=["valid"])["valid"][0]


def read(sample, target):
    return sf.read(sample.files[target].path, dtype="float32")[0]


def noise(seed, targets=4, seconds=3.3, channels=1):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((round(seconds * 2000), channels, targets)).astype(np.float32) * 0.1


def leaking(stems, seed=9):
    """Estimates with some of everything that can be wrong: level, leakage, delay, noise."""
    estimates = 0.8 * stems + 0.2 * np.roll(stems, 1, axis=-1) + 0.1 * np.roll(stems, 3, axis=0)
    return (estimates + 0.1 * noise(seed, stems.shape[-1])[: len(stems)]).astype(np.float32)


def musevals_scores(stems, estimates):
    """Of museval's `eval_mus_track`, target to metric to windows; both are target to `[samples, channels]`."""
    targets = {name: SimpleNamespace(audio=stem) for name, stem in stems.items()}
    track = SimpleNamespace(targets=targets, rate=2000, name="song", subset="test")
    found = museval.eval_mus_track(track, estimates).scores["targets"]
    return {
        target["name"]: {metric: [float(frame["metrics"][metric]) for frame in target["frames"]] for metric in METRICS}
        for target in found
    }


def assert_equal_scores(scores, expected):
    assert set(scores.targets) == set(expected)
    for index, target in enumerate(scores.targets):
        for metric in METRICS:
            np.testing.assert_allclose(scores.windows[metric][:, index], expected[target][metric], rtol=0, atol=1e-3)


def test_known_estimates(sample):
    """Estimates of 0.9 and 0.5 times the target score 20 and 6.02 dB: -20 log10(1 - gain)."""
    heard = []

    def cheating(mixture):
        heard.append(mixture)
        estimates = [gain * read(sample, target) for gain, target in ((0.9, "vocals"), (0.5, "drums"))]
        return np.stack(estimates, axis=-1)[: len(mixture)]

    whole = Separator(lambda channels: helpers.PointwiseStream(cheating, chunk=2**30), PROFILE)
    told = []
    scores, excerpts = evaluate_sample(whole, sample, lambda done, total: told.append((done, total)))
    vocals, drums = read(sample, "vocals"), read(sample, "drums")
    np.testing.assert_allclose(heard[-1], vocals + drums, atol=1e-7)
    assert (scores.name, scores.targets) == ("song00", ("vocals", "drums"))
    assert (scores.window_seconds, scores.hop_seconds) == (1.0, 1.0)
    known = {"vocals": 20.0, "drums": 6.0206}
    assert scores.score() == pytest.approx(known, abs=1e-3)
    np.testing.assert_allclose(scores.mdx_sdr, list(known.values()), atol=1e-3)
    assert set(scores.windows) == set(METRICS)
    # Taken for the vocals, the mixture is wrong by the drums.
    windows = [slice(second * RATE, (second + 1) * RATE) for second in range(3)]
    expected = [10 * np.log10(np.sum(vocals[w] ** 2) / np.sum(drums[w] ** 2)) for w in windows]
    np.testing.assert_allclose(scores.mixture, np.stack([expected, np.negative(expected)], axis=-1), atol=1e-3)
    assert {excerpt.target for excerpt in excerpts} == {"vocals", "drums"}
    assert told[-1] == (3.5, 3.5)
    assert told == sorted(told)


def test_returning_the_mixture_gains_nothing(sample):
    scores, _ = evaluate_sample(PASSING, sample, metrics=["SDR"], excerpts=False)
    np.testing.assert_allclose(scores.windows["SDR"], scores.mixture, atol=1e-4)
    assert set(scores.windows) == {"SDR"}


def test_targets_the_model_lacks_are_heard_all_the_same(tmp_path):
    helpers.make_database(tmp_path, {"valid": 1}, ("vocals", "drums", "bass"), seconds=1.0, sample_rate=RATE)
    sample = read_database(tmp_path, splits=["valid"])["valid"][0]
    scores, _ = evaluate_sample(PASSING, sample, metrics=["SDR"], excerpts=False)
    rest = read(sample, "drums") + read(sample, "bass")
    expected = 10 * np.log10(np.sum(read(sample, "vocals") ** 2) / np.sum(rest**2))
    assert scores.targets == ("vocals", "drums")
    assert scores.mixture_score()["vocals"] == pytest.approx(expected, abs=1e-3)


def test_refuses_a_sample_that_cannot_be_scored(tmp_path):
    helpers.make_database(tmp_path, {"valid": 1}, ("vocals",), seconds=1.0, sample_rate=RATE)
    sample = read_database(tmp_path, ("vocals",), splits=["valid"])["valid"][0]
    with pytest.raises(InputError, match="song00: lacks drums"):
        evaluate_sample(PASSING, sample)
    helpers.make_sample(tmp_path / "valid" / "song00", seconds=1.0, sample_rate=RATE, subtype="FLOAT")
    spoiled = np.zeros((RATE, 2), np.float32)
    spoiled[100] = np.nan
    sf.write(tmp_path / "valid" / "song00" / "drums.wav", spoiled, RATE, subtype="FLOAT")
    sample = read_database(tmp_path, splits=["valid"])["valid"][0]
    with pytest.raises(InputError, match="drums.wav: holds NaN"):
        evaluate_sample(PASSING, sample)


def test_equals_musevals_scores_of_a_track():
    stems = noise(1, targets=3)
    stems[2100:4000, :, 1] = 0  # no whole window
    stems[4000:6000, :, 1] = 0  # one, which has no score
    estimates = leaking(stems)[:-700]
    names = FOUR[:3]
    scores = score_track("song", stems, estimates, names, 2000)
    separate = [dict(zip(names, np.moveaxis(waveforms, -1, 0), strict=True)) for waveforms in (stems, estimates)]
    assert_equal_scores(scores, musevals_scores(*separate))
    assert np.isnan(scores.windows["SDR"][2]).all()


def test_a_pair_is_musevals_pair():
    """With the accompaniment among the estimates, museval scores it and the vocals as a track of two."""
    stems = noise(2)
    estimates = leaking(stems)
    scores, excerpts = evaluate_stems("song", stems, estimates, FOUR, 2000, pair="vocals")
    named = []
    for waveforms in (stems, estimates):
        of_track = dict(zip(FOUR, np.moveaxis(waveforms, -1, 0), strict=True))
        named.append(of_track | {"accompaniment": waveforms[..., :3].sum(axis=-1)})
    assert scores.targets == (*FOUR, "accompaniment")
    assert_equal_scores(scores, musevals_scores(*named))
    alone = evaluate_stems("song", stems, estimates, FOUR, 2000, excerpts=False)[0]
    for metric in METRICS:
        np.testing.assert_array_equal(scores.windows[metric][:, :3], alone.windows[metric][:, :3])
    assert np.abs(scores.windows["SIR"][:, 3] - alone.windows["SIR"][:, 3]).max() > 1e-3
    assert scores.mixture_score()["accompaniment"] == pytest.approx(-scores.mixture_score()["vocals"], abs=1e-4)
    for figures in (scores.si_sdr, scores.mdx_sdr):
        assert figures.shape == (5,)
    assert sorted({excerpt.target for excerpt in excerpts}) == sorted(scores.targets)


@pytest.mark.parametrize("targets", [1, 2])
def test_the_rest_of_a_mixture_that_holds_more_than_the_targets(targets):
    """Its estimate is what the estimate of the target leaves."""
    stems = noise(3, targets=3)
    estimates = leaking(stems)[..., :targets]
    scores, _ = evaluate_stems("song", stems, estimates, ("vocals", "drums")[:targets], 2000, pair="vocals")
    assert scores.targets == (*("vocals", "drums")[:targets], "accompaniment")
    mixture = stems.sum(axis=-1)
    references = {"vocals": stems[..., 0], "accompaniment": mixture - stems[..., 0]}
    estimated = {"vocals": estimates[..., 0], "accompaniment": mixture - estimates[..., 0]}
    expected = musevals_scores(references, estimated)
    for target in ("vocals", "accompaniment"):
        index = scores.targets.index(target)
        np.testing.assert_allclose(scores.windows["SIR"][:, index], expected[target]["SIR"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(scores.windows["SDR"][:, index], expected[target]["SDR"], rtol=0, atol=1e-4)


def test_two_targets_that_are_the_mixture_are_a_pair():
    stems = noise(4, targets=2)
    scores, _ = evaluate_stems("song", stems, leaking(stems), ("vocals", "accompaniment"), 2000, pair="vocals")
    plain, _ = evaluate_stems("song", stems, leaking(stems), ("vocals", "accompaniment"), 2000)
    assert scores.targets == plain.targets == ("vocals", "accompaniment")
    np.testing.assert_array_equal(scores.windows["SIR"], plain.windows["SIR"])
    named, _ = evaluate_stems("song", noise(5, 3), leaking(noise(5, 3)), ("a", "b", "c"), 2000, pair="b")
    assert named.targets == ("a", "b", "c", "no_b")


@pytest.mark.parametrize(
    ("targets", "stems", "pair", "message"),
    [
        (("vocals", "drums"), 2, "bass", "pair bass: no such target; there are vocals, drums"),
        (("vocals",), 1, "vocals", "song: holds nothing but vocals"),
        (("vocals", "accompaniment"), 3, "vocals", "the rest would be called accompaniment"),
    ],
)
def test_pairs_that_are_none(targets, stems, pair, message):
    waveforms = noise(6, stems)
    with pytest.raises(InputError, match=message):
        evaluate_stems("song", waveforms, waveforms[..., : len(targets)], targets, 2000, pair=pair)


def made_up(name, sdr, mixture, targets=("vocals", "drums")):
    """Scores with one window; drums have those of the vocals, negated."""
    windows = np.array([[sdr, -sdr]])
    return TrackScores(
        name, targets, dict.fromkeys(METRICS, windows), np.array([[mixture, -mixture]]), windows[0], windows[0]
    )


def test_table():
    tracks = [made_up("a", 1.0, -3.0), made_up("b", 9.0, -5.0), made_up("c", np.nan, np.nan), made_up("d", 2.0, -6.0)]
    assert METRIC.startswith("BSSEval v4 in dB: median over samples")
    assert [line.split() for line in table(tracks).splitlines()] == [
        ["target", "SDR", "ISR", "SIR", "SAR", "mixture", "gain"],
        ["vocals", "2.00", "2.00", "2.00", "2.00", "-5.00", "+7.00"],
        ["drums", "-2.00", "-2.00", "-2.00", "-2.00", "5.00", "-7.00"],
    ]
    baseline = [made_up("a", 4.0, -3.0, ("vocals", "bass"))]
    assert [line.split()[-2:] for line in table(tracks, baseline).splitlines()] == [
        ["baseline", "change"],
        ["4.00", "-2.00"],
        ["-", "-"],
    ]
    assert columns(tracks, baseline)["change"]["vocals"] == -2.0
    silent = table([made_up("c", np.nan, np.nan)]).splitlines()
    assert silent[1].split() == ["vocals"] + ["-"] * 6
