"""Training a model of some of a database's targets: it hears the mixture of all of them."""

from collections.abc import Callable
from pathlib import Path

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.data.track_folder import Sample, read_database
from umx_model.errors import InputError
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile
from umx_model.train.batches import piece_batches, training_batches
from umx_model.train.statistics import input_statistics
from umx_model.train.steps import Steps
from umx_model.train.trainer import train

ALL = ("vocals", "drums", "bass")
RATE = 8000


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    root = helpers.make_database(
        tmp_path_factory.mktemp("data") / "database", {"train": 2, "valid": 1}, ALL, seconds=1.0, sample_rate=RATE
    )
    return read_database(root, ALL)["train"]


def make_profile(*targets: str) -> Profile:
    return Profile.model_validate(
        {
            "model": {
                "targets": targets,
                "sample_rate": RATE,
                "n_fft": 512,
                "hop_length": 128,
                "bandwidth": 3500,
                "hidden_size": 8,
                "layers": 2,
                "dropout": 0.0,  # whose draws differ with the place of a target in the model
            },
            "train": {"mixture_targets": ALL, "excerpt_seconds": 0.5, "batch_size": 2},
        }
    )


def trained(profile: Profile, samples: tuple[Sample, ...], initial: dict[str, list[np.ndarray]]) -> tuple:
    """Losses of three steps and of a validation, and the weights by target."""
    spectral_filter = get_joint_spectral_filter(profile.model)
    for target in profile.model.targets:
        spectral_filter.get_layer(target).set_weights(initial[target])
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(spectral_filter.trainable_variables)
    strategy = tf.distribute.get_strategy()
    steps = Steps(strategy, spectral_filter, optimizer, profile)
    batches = training_batches(strategy, profile, samples, 0)
    step, losses, iterator = steps.compile_train(batches.element_spec), [], iter(batches)
    for _ in range(3):
        losses.append(step(next(iterator)).losses.numpy())
    pieces = piece_batches(profile, samples, 2)
    valid = steps.compile_valid(pieces.element_spec)
    errors = sum(valid(piece)[0].numpy() for piece in pieces)
    weights = {target: spectral_filter.get_layer(target).get_weights() for target in profile.model.targets}
    return np.array(losses), errors, weights


def test_each_learns_as_in_the_joint_model(samples: tuple[Sample, ...]) -> None:
    joint = make_profile(*ALL)
    first = get_joint_spectral_filter(joint.model)
    initial = {target: first.get_layer(target).get_weights() for target in ALL}
    losses, errors, weights = trained(joint, samples, initial)
    assert np.all(losses > 0)
    for part in (("drums",), ("bass", "vocals")):
        part_losses, part_errors, part_weights = trained(make_profile(*part), samples, initial)
        columns = [ALL.index(target) for target in part]
        np.testing.assert_allclose(part_losses, losses[:, columns], rtol=1e-5)
        np.testing.assert_allclose(part_errors, errors[columns], rtol=1e-5)
        for target in part:
            for one, other in zip(part_weights[target], weights[target], strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)


def test_input_statistics_are_those_of_the_whole_mixture(samples: tuple[Sample, ...]) -> None:
    alone, joint = (input_statistics(make_profile(*targets), samples, quiet=True) for targets in (("drums",), ALL))
    np.testing.assert_array_equal(alone[0], joint[0])
    np.testing.assert_array_equal(alone[1], joint[1])


def test_the_mixture_is_the_models_targets_where_nothing_else_is_said() -> None:
    profile = Profile.model_validate({"model": {"targets": ["vocals", "drums"]}})
    assert profile.mixture_targets == ("vocals", "drums")


@pytest.mark.parametrize(
    ("mixture", "message"),
    [("drums,bass", "must hold all that the model separates, and lacks vocals"), ("vocals,vocals", "must differ")],
)
def test_refuses_mixtures_without_the_models_targets(mixture: str, message: str) -> None:
    profile = Profile.model_validate({"model": {"targets": ["vocals"]}})
    with pytest.raises(InputError, match=f"train.mixture_targets: .*{message}"):
        profile.updated({"train.mixture_targets": mixture})


def test_trains_and_goes_on(make_database: Callable[..., Path], tmp_path: Path) -> None:
    root = make_database(tmp_path / "database", {"train": 1, "valid": 1}, ALL, seconds=1.0, sample_rate=RATE)
    profile = make_profile("bass").updated({"train.epochs": 1, "train.excerpts_per_sample": 2})
    train(profile, root, tmp_path / "model", quiet=True)
    written = train(profile.updated({"train.epochs": 2}), root, tmp_path / "model", resume=True, quiet=True)
    assert written.model.targets == ("bass",)
    assert written.mixture_targets == ALL
    assert [set(entry) & {"valid_loss/bass", "valid_loss/drums"} for entry in written.history] == [
        {"valid_loss/bass"}
    ] * 2
