"""`umx-pro train`: its options; `tests/train` has the training itself."""

import re

import helpers
import pytest

from umx_model.model.folder import WEIGHTS
from umx_model.profile import ModelProfile, Profile, TrainProfile
from umx_model.train import trainer

RATE = 8000


@pytest.fixture
def music(tmp_path, monkeypatch):
    """A working folder with a database of three targets."""
    monkeypatch.chdir(tmp_path)
    targets = ("vocals", "drums", "bass")
    return helpers.make_database(tmp_path / "music", {"train": 1, "valid": 1}, targets, seconds=1.0, sample_rate=RATE)


@pytest.fixture
def asked(monkeypatch):
    """What the training is asked to do, instead of doing it."""
    calls = []
    monkeypatch.setattr(trainer, "train", lambda *arguments, **options: calls.append((*arguments, options)))
    return calls


def flat(text):
    """Text without the borders and line breaks of its layout."""
    return re.sub(r"[\s│]+", " ", text)


@pytest.mark.parametrize("width", [80, 120])
def test_help(umx_pro, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = umx_pro("train", "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    for part in (
        *("checkpoints/", "logs/", "model.weights.h5", "saved_model/"),
        *("130 stopped by Ctrl-C", "143 stopped by SIGTERM", "--resume continues it"),
        *("--target ", "--set ", "--settings ", "--backup ", "--data ", "--output "),
        *("umx-pro train --data music --target vocals --output vocals", "umx-pro join", "umx-pro check-data"),
    ):
        assert part in flat(out), part


@pytest.mark.parametrize("width", [80, 120])
def test_settings_are_all_there(umx_pro, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = umx_pro("train", "--settings")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    for part, kind in (("model", ModelProfile), ("train", TrainProfile)):
        for name, field in kind.model_fields.items():
            [line] = [line for line in out.splitlines() if line.startswith(f"{part}.{name} ")]
            assert field.description
            assert field.description.split()[0] in line
    assert re.search(r"^model.hidden_size +512 +width", out, re.MULTILINE)
    assert re.search(r"^train.gain_range +\[0.25, 1.25\] ", out, re.MULTILINE)
    assert "(float32 | float16 | bfloat16)" in flat(out)


def test_one_target_of_all_that_the_database_has(umx_pro, music, asked):
    assert umx_pro("train", "--data", "music", "--output", "out", "--target", "drums")[0] == 0
    [(profile, data, output, options)] = asked
    assert (data, output, options) == ("music", "out", {"resume": False, "backup": None, "start_from": None})
    assert profile.model.targets == ("drums",)
    assert profile.mixture_targets == ("bass", "drums", "vocals")


def test_targets_of_the_profile_come_before_the_databases(umx_pro, music, asked):
    Profile.model_validate({"model": {"targets": ["vocals", "drums"]}}).write(music.parent)
    command = ("train", "profile.json", "--data", "music", "--output", "out")
    umx_pro(*command, "--target", "drums")
    umx_pro(*command, "--targets", "bass,vocals", "--target", "bass")
    umx_pro(*command, "--target", "drums,vocals")
    profiles = [call[0] for call in asked]
    assert [profile.model.targets for profile in profiles] == [("drums",), ("bass",), ("drums", "vocals")]
    assert [profile.mixture_targets for profile in profiles] == [
        ("vocals", "drums"),
        ("bass", "vocals"),
        ("drums", "vocals"),
    ]


def test_resuming_keeps_the_targets(umx_pro, music, asked):
    profile = Profile.model_validate(
        {"model": {"targets": ["drums"]}, "train": {"mixture_targets": ["bass", "drums", "vocals"], "epochs": 7}}
    )
    (music.parent / "out").mkdir()
    profile.write(music.parent / "out")
    command = ("train", "--data", "music", "--output", "out", "--resume")
    for more in ((), ("--target", "drums"), ("--set", "train.epochs=7")):
        umx_pro(*command, *more)
    assert [call[0] for call in asked] == [profile] * 3


def test_resuming_where_nothing_is_yet(umx_pro, music, asked):
    """The same command starts a training and continues it, on whichever machine."""
    umx_pro("train", "--data", "music", "--output", "out", "--resume")
    Profile.model_validate({"model": {"targets": ["bass"]}, "train": {"epochs": 7}}).write(music)  # stands for a bucket
    umx_pro("train", "--data", "music", "--output", "out", "--resume", "--backup", str(music))
    assert [call[0].train.epochs for call in asked] == [1000, 7]
    assert asked[1][3] == {"resume": True, "backup": str(music), "start_from": None}


def test_starting_from_a_named_model(umx_pro, music, asked, monkeypatch):
    start = Profile.model_validate({"model": {"targets": ["drums", "bass", "vocals"], "hidden_size": 32}})
    (music.parent / "models" / "mine").mkdir(parents=True)
    start.write(music.parent / "models" / "mine")
    (music.parent / "models" / "mine" / "checkpoints").mkdir()
    (music.parent / "models" / "mine" / "checkpoints" / "step-7.index").touch()
    Profile.model_validate({"model": {"targets": ["vocals", "drums"]}}).write(music.parent)
    monkeypatch.setenv("UMX_PRO_MODELS", "models")
    command = ("train", "--data", "music", "--output", "out", "--init-from")
    assert umx_pro(*command, "mine", "--set", "train.epochs=3")[0] == 0
    umx_pro(*command, "models/mine", "profile.json")
    umx_pro(*command, "models/mine/checkpoints/step-7")
    assert [call[3]["start_from"] for call in asked] == ["models/mine"] * 2 + ["models/mine/checkpoints/step-7"]
    assert [call[0].model for call in asked] == [start.model, Profile.read("profile.json").model, start.model]
    assert asked[0][0].train.epochs == 3
    assert umx_pro(*command, "yours")[2].startswith("umx-pro: error: yours: no such model; ")


def test_refuses_a_target_that_is_not_there(umx_pro, music, asked):
    code, out, err = umx_pro("train", "--data", "music", "--output", "out", "--target", "piano")
    assert (code, out) == (2, "")
    assert err == "umx-pro: error: --target: there is no piano; the samples hold bass, drums, vocals\n"


@pytest.mark.slow
def test_targets_apart_then_joined(umx_pro, music, settings):
    """Trains two models on one database, joins them, and scores them all."""
    changes = [option for name, value in settings.items() for option in ("--set", f"{name}={value}")]
    data = ("--data", music / "valid")
    for target, output in (("vocals", "voice"), ("drums,bass", "rest")):
        code, out, err = umx_pro("train", "--data", "music", "--target", target, "--output", output, *changes)
        assert (code, err) == (0, "")
    code, out, err = umx_pro("evaluate", "--model", "voice", *data)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["target", "vocals"]
    assert umx_pro("join", "voice", "rest", "--output", "joint")[0] == 0
    assert (music.parent / "joint" / WEIGHTS).exists()
    code, joint, err = umx_pro("evaluate", "--model", "joint", *data)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in joint.splitlines()[1:]] == ["target", "vocals", "drums", "bass"]
    assert joint.splitlines()[2].split()[:2] == out.splitlines()[2].split()[:2]  # without EM, SDR as if alone
    profile = Profile.read("joint")
    assert profile.train.mixture_targets is None
    assert set(profile.history[0]) == {"epoch", "valid_loss/vocals", "valid_loss/drums", "valid_loss/bass"}
