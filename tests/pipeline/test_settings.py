"""Settings from a file, the environment and the command line, and what is refused."""

import json
import os
from pathlib import Path

import pytest

from pipeline.settings import PipelineSettings
from umx_model.cli.common import DEFAULT_MODEL
from umx_model.errors import InputError
from umx_model.evaluation.gate import GateRule

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


def test_a_floor_for_each_target(tmp_path: Path) -> None:
    options = {"data": "d", "profile": PROFILE}
    floors = {"drums": 1.0, "vocals": 2.5}
    file = tmp_path / "settings.yaml"
    file.write_text("floor_db: {drums: 1, vocals: 2.5}\nmargin_db: 0.25\n")
    assert load(options, file).rule == GateRule(floor_db=floors, margin_db=0.25)
    assert load(options, UMX_PRO_FLOOR_DB='{"drums": 1, "vocals": 2.5}').floor_db == floors
    assert load(options, UMX_PRO_FLOOR_DB="drums=1,vocals=2.5", UMX_PRO_CONFIDENCE="0.9").floor_db == floors
    assert load({**options, "floor_db": "drums=1,vocals=2.5"}).rule.floor("vocals") == 2.5


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


def test_a_model_to_start_from_brings_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    trained = {**PROFILE, "license": "CC0-1.0", "scores": {"drums": 1.0}, "weights_sha256": "0"}
    (tmp_path / "models" / "mine" / "profile.json").write_text(json.dumps(trained))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMX_PRO_MODELS", "models")
    for name in ("mine", "models/mine"):
        loaded = load({"data": "d", "init_from": name})
        assert loaded.init_from == str(tmp_path / "models" / "mine")  # wherever a component runs
        assert loaded.profile.model.targets == ("drums", "vocals")
        assert (loaded.profile.license, loaded.profile.scores) == (None, {})
    (tmp_path / "models" / "mine" / "checkpoints").mkdir()
    (tmp_path / "models" / "mine" / "checkpoints" / "step-7.index").touch()
    checkpoint = load({"data": "d", "init_from": "models/mine/checkpoints/step-7"})
    assert checkpoint.init_from == str(tmp_path / "models" / "mine" / "checkpoints" / "step-7")
    assert checkpoint.profile.model.targets == ("drums", "vocals")
    own = {**PROFILE, "train": {"epochs": 8}}
    assert load({"data": "d", "init_from": "mine", "profile": own}).profile.train.epochs == 8
    assert load({"data": "d", "profile": PROFILE}).init_from == ""
    with pytest.raises(InputError, match="model.hidden_size is 8 there, 16 here"):
        load({"data": "d", "init_from": "mine", "set": {"model.hidden_size": 16}})
    with pytest.raises(InputError, match="yours: no such model"):
        load({"data": "d", "init_from": "yours"})
    shipped = load({"data": "d", "init_from": DEFAULT_MODEL})
    assert shipped.init_from == DEFAULT_MODEL  # which the program has wherever it runs
    assert shipped.profile.model.targets == ("vocals", "accompaniment")


def test_targets_are_found_in_the_database(database: Path) -> None:
    assert load({"data": str(database)}).profile.model.targets == ("drums", "vocals")
    assert load({"data": str(database), "set": {"model.targets": "vocals"}}).profile.model.targets == ("vocals",)


@pytest.mark.parametrize(
    "asked", [{"targets": "a, b"}, {"set": {"model.targets": '["a","b"]'}}, {"targets": ["a", "b"]}]
)
@pytest.mark.parametrize("profile", [{}, PROFILE])
def test_targets_are_read_alike_everywhere(asked: dict, profile: dict) -> None:
    assert load({"data": "d", "profile": profile, **asked}).profile.model.targets == ("a", "b")


def test_json_is_not_read_as_yaml(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text('{\n\t"model": {"targets": ["a"], "bandwidth": 1e3}\n}')
    assert load({"data": "d", "profile": str(path)}).profile.model.bandwidth == 1000.0


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
        ({"data": "d", "profile": PROFILE, "colour": "red"}, "colour: unknown setting; known are beam_args, con"),
        ({"data": "d", "profile": PROFILE, "floor_db": "high"}, "floor_db: .* (found 'high')"),
        ({"data": "d", "profile": PROFILE, "floor_db": "vocals=a"}, "floor_db: expected dB, .* (found 'vocals=a')"),
        ({"data": "d", "profile": PROFILE, "floor_db": {"bass": 1}}, "floor_db: bass is no target of the model; there"),
        ({"data": "d", "profile": PROFILE, "confidence": "95"}, "confidence: .* (found '95')"),
        ({"data": "d", "profile": PROFILE, "set": {"train.epoch": "3"}}, "train.epoch: unknown setting; known are"),
        ({"data": "d", "profile": PROFILE, "set": {"train.epochs": "-3"}}, "train.epochs: .* (found -3)"),
        ({"data": "d", "profile": {"model": {"hidden": 3}, "train": {}}, "targets": "a"}, "model.hidden: unknown key"),
        ({"data": "d", "profile": PROFILE, "targets": "a b"}, "model.targets.0: .* (found 'a b')"),
        ({"data": "d", "profile": PROFILE, "targets": 5}, "model.targets: .* (found 5)"),
        ({"data": "d", "profile": [1]}, "profile: expected a file, .* found .1."),
        ({"data": "d", "profile": PROFILE, "set": ["train.epochs=2"]}, "set: expected names and values, .* found"),
        ({"data": "d", "profile": PROFILE, "set": {1: 2}}, "1: unknown setting; known are"),
        ({"data": "d", "profile": PROFILE, 1: 2}, "1: unknown setting; known are"),
        (
            {"data": "d", "profile": PROFILE, "output": "o[1]"},
            "output: .*o.1. has one of .* which Beam takes for a pattern",
        ),
        (
            {"data": "d", "profile": PROFILE, "output": "gs://b/o"},
            "output: gs://b/o is remote; .* as --push-destination",
        ),
    ],
)
def test_refuses(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        load(options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.epochs=2", "set: expected names and values, as in {train.epochs: 2}, found 'train.epochs=2'"),
        ("{train.epochs: ", "UMX_PRO_SET: not YAML or JSON: "),
    ],
)
def test_refuses_from_the_environment(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load({"data": "d", "profile": PROFILE}, UMX_PRO_SET=text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    for text, message in (
        ("a: [", "not YAML or JSON"),
        ("- a\n", "found list"),
        ("data: 2020-13-45", "not YAML or JSON"),
        ("colour: red\ndata: d\ntargets: a\n", "colour"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load({}, path)
