"""`umx-pro models`, and how models are found by name."""

import os
import re
import shutil

import pytest

from umx_model import pretrained
from umx_model.errors import InputError
from umx_model.pretrained import known_models, locate_model, mention_licence
from umx_model.profile import Profile


@pytest.fixture
def models(model, tmp_path, monkeypatch):
    """A folder of two models and something else."""
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a"):
        shutil.copytree(model, tmp_path / "models" / name)
    os.mkdir(tmp_path / "models" / "notes")
    scored = Profile.read("models/b").model_copy(
        update={"license": "CC BY-NC-SA 4.0", "scores": {"vocals": 6.321, "drums": 5.5}}
    )
    scored.write("models/b")
    return tmp_path / "models"


def test_lists_models_of_folders(umx_pro, models):
    code, out, err = umx_pro("models", "models", "models/b/")
    assert (code, err) == (0, "")
    size = f"{os.path.getsize('models/a/model.weights.h5') / 1e6:.1f} MB"
    assert [re.split("  +", line) for line in out.splitlines()] == [
        ["name", "targets", "size", "licence", "SDR in dB", "folder"],
        ["a", "vocals, drums, bass", size, "not stated", "not measured", "models/a"],
        ["b", "vocals, drums, bass", size, "CC BY-NC-SA 4.0", "vocals 6.3, drums 5.5", "models/b"],
        ["b", "vocals, drums, bass", size, "CC BY-NC-SA 4.0", "vocals 6.3, drums 5.5", "models/b"],
    ]
    assert len({line.index("models/") for line in out.splitlines()[1:]}) == 1  # in columns


def test_lists_models_of_the_environment(umx_pro, models, monkeypatch):
    monkeypatch.setenv("UMX_PRO_MODELS", f"{models}{os.pathsep}{models / 'a'}")
    code, out, err = umx_pro("models")
    assert (code, err) == (0, "")
    *table, last = out.splitlines()
    assert [line.split()[0] for line in table] == ["name", *pretrained.shipped_models(), "a", "b"]
    assert last == "`umx-pro separate` uses vocals-accompaniment where --model names no other."


def test_a_model_of_the_environment_hides_a_shipped_one(models, monkeypatch):
    monkeypatch.setenv("UMX_PRO_MODELS", "models")
    os.rename("models/b", "models/vocals-accompaniment")
    assert locate_model("vocals-accompaniment") == "models/vocals-accompaniment"


def test_damaged_models_are_named_and_the_others_listed(umx_pro, models):
    (models / "a" / "profile.json").write_text("{")
    shutil.copytree("models/b", "models/c")
    os.remove("models/c/model.weights.h5")
    code, out, err = umx_pro("models", "models")
    assert code == 2
    assert [line.split()[0] for line in out.splitlines()] == ["name", "b"]
    first, second = err.splitlines()
    assert first.startswith("umx-pro: error: models/a/profile.json: not JSON")
    assert second.startswith("umx-pro: error: models/c: no model.weights.h5 in it")


@pytest.mark.parametrize(
    ("folder", "message"), [("nowhere", "nowhere: no such folder"), ("models/notes", "models/notes: no model in it")]
)
def test_folders_without_models(umx_pro, models, folder, message):
    code, out, err = umx_pro("models", folder)
    assert (code, out) == (2, "")
    assert err.startswith(f"umx-pro: error: {message}")
    assert len(err.splitlines()) == 1


def test_locate_model(models, monkeypatch):
    monkeypatch.setenv("UMX_PRO_MODELS", f"models{os.pathsep}ram://models")
    with pytest.raises(InputError, match="ram://models: no such folder; the environment variable UMX_PRO_MODELS"):
        known_models()
    monkeypatch.setenv("UMX_PRO_MODELS", "models")
    assert locate_model("a") == "models/a"
    assert locate_model("models/b/model.weights.h5") == "models/b/model.weights.h5"
    os.mkdir("a")
    assert locate_model("a") == "a"  # what is there goes before what is known
    with pytest.raises(InputError, match="c: no such model; .*; known by name: .*, a, b$"):
        locate_model("c")


def test_the_licence_of_a_shipped_model_is_mentioned_once(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "shipped_models", lambda: {"b": "models/b"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mention_licence("models/b")
    told = capsys.readouterr().err
    assert told == "umx-pro: licence of the model b: CC BY-NC-SA 4.0; see models/b/card.md (shown once)\n"
    mention_licence("models/b")
    mention_licence("models/a")  # one's own
    assert capsys.readouterr().err == ""
    # Where nothing can be remembered, it is told again.
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        mention_licence("models/b")
        assert capsys.readouterr().err == told
