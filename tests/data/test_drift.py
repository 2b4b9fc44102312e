"""Drift between databases, with SciPy's statistics as oracle."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from umx_model.data.drift import compare, earth_movers_distance, ks_distance
from umx_model.data.measure import TargetStatistics
from umx_model.data.report import CheckedSample, DatabaseReport

PLAIN = TargetStatistics(0.5, -20.0, 0.1, 16000.0, 0.0, 0.0, 0.0, 0, "")


def database(count: int, seed: int = 0, shift_db: float = 0.0, **changes: object) -> DatabaseReport:
    """A database whose loudness is normally distributed with a deviation of 3 dB."""
    loudness = np.random.default_rng(seed).normal(-20 + shift_db, 3, count)
    samples = tuple(
        CheckedSample(
            **{
                "split": "train",
                "id": f"song{number}",
                "sample_rate": 44100,
                "channels": 2,
                "length": 44100 * (100 + number),
                "formats": {"vocals": "WAV/PCM_16"},
                "statistics": {"vocals": replace(PLAIN, loudness_db=float(value), content=f"{seed} {number}")},
                "mixture_peak": 0.5,
                **changes,
            }  # type: ignore[arg-type]
        )
        for number, value in enumerate(loudness)
    )
    return DatabaseReport("music", ("vocals",), (), (), samples)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 7), (50, 60), (300, 1000)])
@pytest.mark.parametrize("ties", [False, True])
def test_statistics_are_scipys(n: int, m: int, ties: bool) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(0, 1, n), generator.normal(0.3, 2, m)
    if ties:
        a, b = a.round(), b.round()
    assert ks_distance(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-12)
    assert earth_movers_distance(a, b) == pytest.approx(stats.wasserstein_distance(a, b), abs=1e-12)


def test_chance_is_the_999th_of_a_thousand() -> None:
    [critical] = [one.critical for one in compare(database(400), database(600)).differences if "length" in one.what]
    assert stats.kstwobign.sf(critical * np.sqrt(400 * 600 / 1000)) == pytest.approx(0.001, rel=0.01)


def test_drift_must_be_beyond_chance_and_large() -> None:
    def drifted(new: DatabaseReport, old: DatabaseReport) -> list[str]:
        return [one.what for one in compare(new, old).differences if one.drifted]

    assert drifted(database(300, 1, shift_db=4), database(300, 2)) == ["vocals loudness"]
    assert drifted(database(300, 1), database(300, 2)) == []
    assert drifted(database(3, 1, shift_db=10), database(3, 2)) == []  # may be chance
    assert drifted(database(5_000, 1, shift_db=0.5), database(5_000, 2)) == []  # small
    assert drifted(database(5_000, 1, shift_db=1.2), database(5_000, 2)) == ["vocals loudness"]


def test_hardly_any_false_alarm() -> None:
    """0.1 % of figures, by construction; the limits of size make it fewer."""
    alarms = sum(bool(compare(database(100, seed), database(100, seed + 1000)).warnings) for seed in range(200))
    assert alarms <= 1


def test_a_part_that_has_become_lossy_is_found() -> None:
    old = database(200)
    lossy = {"vocals": replace(PLAIN, cutoff_hz=16000.0)}
    samples = [
        replace(sample, statistics=lossy) if index % 3 == 0 else sample for index, sample in enumerate(old.samples)
    ]
    warnings = compare(replace(old, samples=tuple(samples)), old).warnings
    assert [line.split(":")[0] for line in warnings] == ["vocals cutoff"]


def test_files_of_another_kind() -> None:
    old = database(10)
    mono = compare(database(10, channels=1, formats={"vocals": "FLAC/PCM_24"}), old)
    assert mono.warnings == (
        "channels 1: 100% of the files, were 0%",
        "channels 2: 0% of the files, were 100%",
        "format FLAC/PCM_24: 100% of the files, were 0%",
        "format WAV/PCM_16: 0% of the files, were 100%",
    )
    resampled = compare(database(10, sample_rate=48000), old)
    assert any(line.startswith("sample rate 48000 Hz: 100%") for line in resampled.warnings)


def test_targets_and_splits() -> None:
    old = database(10)
    assert "targets: bass; were vocals" in compare(replace(old, targets=("bass",)), old).warnings
    assert "train: 4 samples, were 10" in compare(database(4), old).warnings


def test_samples_that_came_went_and_changed() -> None:
    old, new = database(4), database(4)
    other = replace(new.samples[2], statistics={"vocals": replace(PLAIN, content="other")})
    new = replace(new, samples=(replace(new.samples[0], id="new"), new.samples[1], other, new.samples[3]))
    drift = compare(new, old)
    assert (drift.added, drift.removed, drift.changed) == (("train/new",), ("train/song0",), ("train/song2",))
    assert compare(old, old).warnings == ()


def test_an_unusable_database_has_no_figures() -> None:
    broken = database(5, sample_rate=0, channels=0, length=0, statistics={}, formats={})
    assert compare(broken, database(5)).differences == ()
