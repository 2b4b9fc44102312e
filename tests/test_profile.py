"""Profiles: defaults, round trips, and what they refuse."""

import json

import pytest

from umx_model.errors import InputError
from umx_model.profile import ModelProfile, Profile

PROFILE = Profile(model=ModelProfile(targets=("vocals", "accompaniment")))


def test_smallest_profile_is_the_reference_recipe():
    profile = Profile.parse('{"model": {"targets": ["vocals", "accompaniment"]}}')
    assert profile == PROFILE
    assert (profile.model.hidden_size, profile.model.bins, profile.train.batch_size) == (512, 2049, 16)


def test_file_round_trip(tmp_path):
    profile = PROFILE.updated({"train.gain_range": None, "train.max_minutes": 1.5, "model.niter": 2})
    profile.write(tmp_path)
    assert Profile.read(tmp_path) == Profile.read(tmp_path / "profile.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_settings_from_text():
    settings = {"model.targets": "bass, drums", "train.epochs": "3", "train.gain_range": "[0.5, 1]"}
    profile = PROFILE.updated(settings)
    assert profile.model.targets == ("bass", "drums")
    assert (profile.train.epochs, profile.train.gain_range) == (3, (0.5, 1.0))
    assert PROFILE.train.epochs == 1000
    assert PROFILE.updated({"train.gain_range": "0.25, 1.25"}).train.gain_range == (0.25, 1.25)
    assert PROFILE.updated({"train.gain_range": "null"}).train.gain_range is None
    assert PROFILE.updated({"model.targets": "1,2"}).model.targets == ("1", "2")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", "hiden_size", 8, "model.hiden_size: unknown key"),
        ("model", "targets", [], "model.targets: .*at least 1"),
        ("model", "targets", ["a", "a"], "targets must differ"),
        ("model", "targets", ["../a"], "model.targets.0: .*pattern"),
        ("model", "hidden_size", 7, "hidden_size must be even"),
        ("model", "hidden_size", "big", "model.hidden_size: .*found 'big'"),
        ("model", "n_fft", 1023, "n_fft must be even"),
        ("model", "hop_length", 4096, "hop_length must be at most n_fft / 2 = 2048, got 4096"),
        ("model", "sample_rate", 0, "model.sample_rate"),
        ("model", "dropout", 1, "model.dropout"),
        ("train", "excerpt_seconds", 0, "train.excerpt_seconds: .*found 0"),
        ("train", "gain_range", [2, 1], "gain_range must be"),
        ("train", "speed_range", [2, 1], "speed_range must be"),
        ("train", "speed_range", [0, 1], "speed_range must be"),
        ("train", "learning_rate", float("nan"), "train.learning_rate"),
        ("train", "epochs", 0, "train.epochs"),
        ("train", "epochs", True, "train.epochs: .*integer .found True"),
        ("train", "learning_rate", True, "train.learning_rate: .*number .found True"),
        ("model", "niter", False, "model.niter: .*integer .found False"),
        ("train", "seed", 2**32, "train.seed: .*4294967295 .found 4294967296"),
    ],
)
def test_refused(part, key, value, message, tmp_path):
    document = PROFILE.model_dump(mode="json")
    document[part][key] = value
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"mine.json: .*{message}") as error:
        Profile.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {}}'])
def test_not_a_profile(text):
    with pytest.raises(InputError, match="^profile: "):
        Profile.parse(text)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="none.json: no such profile"):
        Profile.read(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["epochs", "train.epoch", "other.epochs", "train"])
def test_unknown_setting_names_the_known(name):
    with pytest.raises(InputError, match=f"{name}: unknown setting; known are model.targets.*train.epochs"):
        PROFILE.updated({name: 1})


@pytest.mark.parametrize("document", ["{}", '{"model": {}}', {"train": {"epochs": 3}}])
def test_targets_are_asked_for_where_none_are_named(document):
    assert Profile.parse(document, find_targets=lambda: ["a", "b"]).model.targets == ("a", "b")
    named = PROFILE.model_dump(mode="json")
    assert Profile.parse(named, find_targets=lambda: ["a", "b"]) == PROFILE


def test_one_objective():
    with pytest.raises(InputError, match="floor_db is an objective of its own"):
        PROFILE.updated({"train.floor_db": -30.0, "train.sdr_weight": 10.0})


def test_normalized_level_needs_all_frames():
    with pytest.raises(InputError, match="normalize_level needs all frames"):
        PROFILE.updated({"model.normalize_level": True, "model.unidirectional": True})


def test_a_refiner_needs_what_comes():
    with pytest.raises(InputError, match="refiner_channels: a refiner looks ahead"):
        PROFILE.updated({"model.refiner_channels": 16, "model.unidirectional": True})


def test_there_is_something_to_train():
    with pytest.raises(InputError, match=r"train.freeze_filters: leaves nothing to train without model.refiner_chan"):
        PROFILE.updated({"train.freeze_filters": True})


def test_what_the_fastest_excerpt_takes_of_a_sample():
    settings = PROFILE.updated({"train.excerpt_seconds": 4.0}).train
    assert settings.read_seconds == 4.0
    for speeds, seconds in (((0.5, 0.9), 4.0), ((0.8, 1.25), 5.0)):
        assert settings.model_copy(update={"speed_range": speeds}).read_seconds == seconds
