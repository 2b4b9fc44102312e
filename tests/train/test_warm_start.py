"""Training that starts from a model that is there."""

import shutil
from pathlib import Path

import h5py
import helpers
import numpy as np
import pytest

from umx_model.errors import InputError
from umx_model.model.folder import read_model
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.pretrained import shipped_models
from umx_model.profile import Profile
from umx_model.train.loop import Loop
from umx_model.train.trainer import train
from umx_model.train.warm_start import check_start, take_weights

MODEL = {
    "targets": ["vocals", "drums"],
    "sample_rate": 8000,
    "n_fft": 256,
    "hop_length": 128,
    "hidden_size": 8,
    "layers": 1,
    "unidirectional": True,
    "bandwidth": 4000,
}
TRAIN = {"excerpt_seconds": 0.5, "batch_size": 2, "excerpts_per_sample": 1, "epochs": 1}


def make_profile(**changes: object) -> Profile:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return Profile.model_validate({"model": MODEL, "train": TRAIN}).updated(names)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("database")
    return helpers.make_database(folder, {"train": 2, "valid": 1}, seconds=1.0, sample_rate=8000)


@pytest.fixture(scope="module")
def first(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("first")
    train(make_profile(), root, output, quiet=True)
    return output


def weights(folder: Path) -> dict[str, np.ndarray]:
    """All numbers of a weights file by name, read without Keras."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(folder / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: found.update({name: item[:]}) if isinstance(item, h5py.Dataset) and item.shape else None
        )
    return found


def test_starts_where_the_other_ended(root: Path, first: Path, tmp_path: Path) -> None:
    # So small a rate moves no weight by more than 1e-9 a step; random weights would be those of another seed.
    profile = make_profile(train__learning_rate=1e-9, train__seed=7, train__weight_decay=0.0)
    made = train(profile, root, tmp_path / "warm", quiet=True, start_from=first)
    before, warm = weights(first), weights(tmp_path / "warm")
    assert before.keys() == warm.keys()
    moving = [name for name in before if np.abs(before[name] - warm[name]).max() > 1e-7]
    assert moving  # statistics of batch normalisation go on
    assert len(moving) <= 2 * 3 * 2  # mean and variance, three layers, two targets
    sha = Profile.read(first).weights_sha256
    assert sha
    assert made.made_with["started_from"] == f"{first} (weights {sha[:12]})"
    assert "started_from" not in Profile.read(first).made_with


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__hidden_size": 16}, "model.hidden_size is 8 there, 16 here"),
        ({"model__targets": "drums,vocals"}, r"model.targets is \('vocals', 'drums'\) there"),
        ({"model__sample_rate": 16000}, "model.sample_rate is 8000 there, 16000 here"),
    ],
)
def test_other_kinds_of_model_are_refused(
    root: Path, first: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_start(make_profile(**changes).model, str(first))


def test_refusal_leaves_nothing(root: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model to start from"):
        train(make_profile(model__layers=2), root, tmp_path / "out", quiet=True, start_from=first)
    with pytest.raises(InputError, match="nowhere: no such model"):
        train(make_profile(), root, tmp_path / "out", quiet=True, start_from=tmp_path / "nowhere")
    frozen = make_profile(model__unidirectional=False, model__refiner_channels=2, train__freeze_filters=True)
    with pytest.raises(InputError, match=r"train.freeze_filters: would leave .*name a model to start from"):
        train(frozen, root, tmp_path / "out", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_settings_of_use_may_differ(first: Path) -> None:
    check_start(make_profile(model__niter=3, model__softmask=True, model__dropout=0.1).model, str(first))


def test_a_model_can_get_a_refiner_and_not_lose_it(root: Path, tmp_path: Path) -> None:
    both_ways = {"model__unidirectional": False, "train__learning_rate": 1e-9, "train__weight_decay": 0.0}
    train(make_profile(**both_ways), root, tmp_path / "plain", quiet=True)
    refined = make_profile(**both_ways, model__refiner_channels=2)
    train(refined, root, tmp_path / "refined", quiet=True, start_from=tmp_path / "plain")
    mixture = np.random.default_rng(0).normal(0, 0.1, (1, 4000, 2)).astype(np.float32)
    plain, start = (read_model(tmp_path / name)[0] for name in ("plain", "refined"))
    # Statistics of batch normalisation have gone on.
    assert np.abs(start(mixture) - plain(mixture)).max() < 0.02 * np.abs(plain(mixture)).max()
    with pytest.raises(InputError, match=r"model\.refiner_channels is 2 there, 0 here"):
        check_start(make_profile(**both_ways).model, str(tmp_path / "refined"))


def test_a_refiner_is_trained_alone(root: Path, tmp_path: Path) -> None:
    both_ways = {"model__unidirectional": False, "model__layers": 2, "model__dropout": 0.5}
    train(make_profile(**both_ways), root, tmp_path / "plain", quiet=True)
    refined = make_profile(**both_ways, model__refiner_channels=2, train__freeze_filters=True)
    train(refined, root, tmp_path / "refined", quiet=True, start_from=tmp_path / "plain")
    (plain, _), (model, _) = (read_model(tmp_path / name) for name in ("plain", "refined"))
    for target in ("vocals", "drums"):
        theirs, ours = (umx.spectral_filter.get_layer(target) for umx in (plain, model))
        for before, after in zip(theirs.weights, ours.weights, strict=True):  # statistics of normalisation among them
            np.testing.assert_array_equal(before, after)
    assert np.any(model.spectral_filter.get_layer("mask.refiner").correction.kernel)


def test_starts_from_a_checkpoint(first: Path) -> None:
    newest = max((first / "checkpoints").glob("epoch-1-*.index")).with_suffix("")
    saved, profile = read_model(newest)
    model = get_joint_spectral_filter(profile.model)
    assert take_weights(model, profile.model, str(newest)) == str(newest)  # no checksum is known of a checkpoint
    for ours, theirs in zip(model.weights, saved.spectral_filter.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match=r"model\.hidden_size is 8 there, 16 here"):
        check_start(make_profile(model__hidden_size=16).model, str(newest))


def test_a_model_that_comes_with_the_program_is_called_by_its_name() -> None:
    model, profile = read_model(shipped_models()["five-targets"])
    start = take_weights(model.spectral_filter, profile.model, shipped_models()["five-targets"])
    assert start == f"five-targets (weights {profile.weights_sha256[:12]})"


@pytest.mark.slow
def test_resumed_it_goes_on_from_its_own_checkpoint(
    root: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = shutil.copytree(first, tmp_path / "start")
    profile = make_profile(train__epochs=2)
    finish, finished = Loop._finish_epoch, []

    def finish_once(self: Loop, losses: np.ndarray) -> None:
        if finished:
            raise RuntimeError("out of luck")
        finish(self, losses)
        finished.append(1)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_finish_epoch", finish_once)
        with pytest.raises(RuntimeError, match="out of luck"):
            train(profile, root, tmp_path / "broken", quiet=True, start_from=start)
    shutil.rmtree(start)  # what it started from may be gone by then
    resumed = train(profile, root, tmp_path / "broken", quiet=True, resume=True, start_from=start)
    train(profile, root, tmp_path / "whole", quiet=True, start_from=first)
    assert resumed.made_with["started_from"].startswith(f"{start} (weights ")
    one, other = (read_model(tmp_path / name)[0].spectral_filter for name in ("broken", "whole"))
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_the_licence_is_inherited_and_scores_are_not(root: Path, first: Path, tmp_path: Path) -> None:
    licensed = tmp_path / "licensed"
    shutil.copytree(first, licensed)
    start = Profile.read(first).model_copy(update={"license": "CC-BY-NC-SA-4.0", "scores": {"vocals": 5.0}})
    start.write(licensed)
    made = train(make_profile(), root, tmp_path / "warm", quiet=True, start_from=licensed)
    assert made.license == "CC-BY-NC-SA-4.0"
    assert train(start, root, tmp_path / "own", quiet=True, start_from=licensed).scores == {}
    own = make_profile().model_copy(update={"license": "CC0-1.0"})
    for _ in range(2):
        both = train(own, root, tmp_path / "both", quiet=True, start_from=licensed, resume=True)
        assert both.license == "CC-BY-NC-SA-4.0 AND CC0-1.0"
    resumed = train(make_profile(train__epochs=2), root, tmp_path / "warm", quiet=True, resume=True)
    assert resumed.license == "CC-BY-NC-SA-4.0"
