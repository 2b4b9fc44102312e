"""Stems as sums: what each selection gives of estimates and a mixture that are known."""

import numpy as np
import pytest

from umx_model.errors import InputError
from umx_model.inference.stems import StemSelection

TARGETS = ("vocals", "drums", "bass", "other")


@pytest.fixture(scope="module")
def audio():
    """A mixture and estimates that are far from summing to it."""
    generator = np.random.default_rng(0)
    return [generator.uniform(-1, 1, shape).astype(np.float32) for shape in ((1000, 2), (1000, 2, 4))]


def stems_of(selection, mixture, estimates, targets=TARGETS):
    stems = selection.resolve(targets)
    return dict(zip(stems.names, stems(mixture, estimates), strict=True))


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_all_targets_sum_to_the_mixture_by_the_smallest_change(audio):
    mixture, estimates = audio
    stems = stems_of(StemSelection(), mixture, estimates)
    assert tuple(stems) == TARGETS
    assert_equal(sum(stems.values()), mixture)
    # The orthogonal projection onto the plane of sums equal to the mixture, by numpy's least squares.
    change, *_ = np.linalg.lstsq(np.ones((1, 4)), (mixture - estimates.sum(-1)).reshape(1, -1), rcond=None)
    for number, target in enumerate(TARGETS):
        assert_equal(stems[target], estimates[..., number] + change[number].reshape(mixture.shape))


def test_without_consistency_estimates_are_as_they_were(audio):
    stems = stems_of(StemSelection(consistency=False), *audio)
    for number, target in enumerate(TARGETS):
        np.testing.assert_array_equal(stems[target], audio[1][..., number])


def test_chosen_targets_are_what_they_are_among_all(audio):
    chosen = stems_of(StemSelection(targets=["bass", "vocals"]), *audio)
    assert tuple(chosen) == ("vocals", "bass")  # in the model's order
    everything = stems_of(StemSelection(), *audio)
    assert_equal(chosen["bass"], everything["bass"])


def test_two_stems_are_a_target_and_all_else(audio):
    mixture, estimates = audio
    stems = stems_of(StemSelection(two_stems="drums"), mixture, estimates)
    assert tuple(stems) == ("drums", "no_drums")
    assert_equal(stems["drums"], estimates[..., 1])
    assert_equal(stems["no_drums"], mixture - estimates[..., 1])


@pytest.mark.parametrize("targets", [None, ["drums"], ["vocals", "other"]])
@pytest.mark.parametrize("consistency", [True, False])
def test_residual_is_what_targets_leave(audio, targets, consistency):
    mixture, estimates = audio
    stems = stems_of(StemSelection(targets, residual=True, consistency=consistency), mixture, estimates)
    assert tuple(stems)[-1] == "residual"
    assert_equal(sum(stems.values()), mixture)
    for target in targets or TARGETS:
        assert_equal(stems[target], estimates[..., TARGETS.index(target)])


def test_aggregates_stand_for_their_targets(audio):
    mixture, estimates = audio
    selection = StemSelection(aggregates={"accompaniment": ["drums", "bass", "other"]})
    assert selection.names(TARGETS) == ("vocals", "accompaniment")
    stems = stems_of(selection, mixture, estimates)
    everything = stems_of(StemSelection(), mixture, estimates)
    assert_equal(stems["accompaniment"], everything["drums"] + everything["bass"] + everything["other"])
    assert_equal(sum(stems.values()), mixture)


def test_aggregates_beside_targets_named(audio):
    mixture, estimates = audio
    selection = StemSelection(["drums"], aggregates={"rhythm": ["drums", "bass"]}, residual=True)
    stems = stems_of(selection, mixture, estimates)
    assert tuple(stems) == ("drums", "rhythm", "residual")
    assert_equal(stems["rhythm"], estimates[..., 1] + estimates[..., 2])
    assert_equal(stems["rhythm"] + stems["residual"], mixture)  # the drums are left out once


def test_an_aggregate_may_rename_a_target(audio):
    stems = stems_of(StemSelection(aggregates={"vocals": ["vocals"], "band": TARGETS[1:]}), *audio)
    assert tuple(stems) == ("vocals", "band")
    assert_equal(stems["vocals"] + stems["band"], audio[0])


def test_the_only_target_is_not_the_mixture(audio):
    mixture, estimates = audio[0], audio[1][..., :1]
    assert_equal(stems_of(StemSelection(), mixture, estimates, ("vocals",))["vocals"], estimates[..., 0])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (StemSelection(["piano", "vocals"]), "targets: the model has no piano; it has vocals, drums, bass, other"),
        (StemSelection([]), "targets: none given"),
        (StemSelection(two_stems="piano"), "two stems: the model has no piano"),
        (StemSelection(["vocals"], two_stems="vocals"), "two stems: leave out targets"),
        (StemSelection(two_stems="vocals", residual=True), "two stems: leave out"),
        (StemSelection(aggregates={"band": ["piano"]}), "aggregate band: the model has no piano"),
        (StemSelection(aggregates={"band": []}), "aggregate band: none given"),
        (StemSelection(aggregates={"../band": ["drums"]}), "'../band' cannot name a stem"),
        (StemSelection(["drums"], aggregates={"drums": ["bass"]}), "drums would be two stems"),
        (StemSelection(residual=True, aggregates={"residual": ["bass"]}), "residual would be two stems"),
    ],
)
def test_refuses(selection, message):
    with pytest.raises(InputError, match=message):
        selection.resolve(TARGETS)
