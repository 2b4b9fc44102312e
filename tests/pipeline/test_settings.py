"""Settings from a file, the environment and the command line, and what is refused."""

import json
import os
from pathlib import Path

import pytest

from pipeline.settings import PipelineSettings
from umx_model.errors import InputError

PROFILE = {"model": {"targets": ["drums", "vocals"], "hidden_size": 8}, "train": {"epochs": 7}}


def load(options: dict, file: Path | None = None, **environment: str) -> PipelineSettings:
    return PipelineSettings.load(options, str(file) if file else None, environment)


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "data: from-file\noutput: out-file  # a comment\nfloor_db: 1\nset:\n  train.epochs: 3\ntargets: [a, b]\n"
    )
    return path


def test_command_line_wins_over_environment_over_file(settings_file: Path) -> None:
    from_file = load({}, settings_file)
    assert from_file.data == os.path.abspath("from-file")
    assert from_file.floor_db == 1.0
    assert from_file.profile.model.targets == ("a", "b")
    assert from_file.profile.train.epochs == 3

    both = load({}, settings_file, UMX_PRO_DATA="from-env", UMX_PRO_TARGETS="c,d", UMX_PRO_SET='{"train.epochs": 4}')
    assert both.data == os.path.abspath("from-env")
    assert both.output == os.path.abspath("out-file")
    assert both.profile.model.targets == ("c", "d")
    assert both.profile.train.epochs == 4

    options = {"data": "from-options", "targets": "e", "set": {"train.epochs": "5"}, "floor_db": 2.5, "output": None}
    everything = load(options, settings_file, UMX_PRO_DATA="from-env", UMX_PRO_FLOOR_DB="3")
    assert everything.data == os.path.abspath("from-options")
    assert everything.output == os.path.abspath("out-file")
    assert everything.floor_db == 2.5
    assert everything.profile.model.targets == ("e",)
    assert everything.profile.train.epochs == 5


def test_profile_may_be_a_path_a_model_folder_or_inline(tmp_path: Path) -> None:
    # What an earlier training left in its profile is no setting of the next.
    trained = {**PROFILE, "made_with": {"keras": "1"}, "data_fingerprint": "f", "history": [{"epoch": 1.0}]}
    (tmp_path / "profile.json").write_text(json.dumps(trained))
    for profile in (str(tmp_path / "profile.json"), str(tmp_path), PROFILE):
        loaded = load({"data": "d", "profile": profile}).profile
        assert loaded.model.targets == ("drums", "vocals")
        assert (loaded.model.hidden_size, loaded.train.epochs) == (8, 7)
        assert loaded.history == ()
        assert loaded.data_fingerprint is None
    assert load({"data": "d", "profile": PROFILE, "targets": "vocals"}).profile.model.targets == ("vocals",)


def test_targets_are_found_in_the_database(database: Path) -> None:
    assert load({"data": str(database)}).profile.model.targets == ("drums", "vocals")
    assert load({"data": str(database), "set": {"model.targets": "vocals"}}).profile.model.targets == ("vocals",)


def test_remote_folders_stay_as_they_are() -> None:
    settings = load({"data": "gs://bucket/data", "push_destination": "gs://bucket/serving", "profile": PROFILE})
    assert settings.data == "gs://bucket/data"
    assert settings.serving_folder == "gs://bucket/serving"
    assert load({"data": "d", "profile": PROFILE}).serving_folder == os.path.abspath("umx-pro-output/serving")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data: no database named; give --data DIR"),
        ({"data": "d", "profile": "none.json"}, "none.json: cannot be read; expected"),
        ({"data": "d", "profile": PROFILE, "colour": "red"}, "colour: unknown setting; known are data, profile"),
        ({"data": "d", "profile": PROFILE, "floor_db": "high"}, "floor_db: .* (found 'high')"),
        ({"data": "d", "profile": PROFILE, "set": {"train.epoch": "3"}}, "train.epoch: unknown setting; known are"),
        ({"data": "d", "profile": PROFILE, "set": {"train.epochs": "-3"}}, "train.epochs: .* (found -3)"),
        ({"data": "d", "profile": {"model": {"hidden": 3}, "train": {}}, "targets": "a"}, "model.hidden: unknown key"),
        ({"data": "d", "profile": PROFILE, "targets": "a b"}, "model.targets.0: .* (found 'a b')"),
    ],
)
def test_refuses(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        load(options)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    for text, message in (
        ("a: [", "not YAML or JSON"),
        ("- a\n", "found list"),
        ("colour: red\ndata: d\ntargets: a\n", "colour"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load({}, path)
