"""`umx-pro join`, and that its model is one like any other."""

import os
import shutil

import pytest

from umx_model.model.folder import write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile


@pytest.fixture(scope="module")
def originals(tmp_path_factory, settings):
    """Models of one target each."""
    root = tmp_path_factory.mktemp("parts")
    for target in ("vocals", "drums"):
        profile = Profile.model_validate({"model": {"targets": [target]}}).updated(settings)
        write_model_folder(root / target, get_joint_spectral_filter(profile.model), profile, saved_model=False)
    return root


@pytest.fixture
def here(originals, songs):
    shutil.copytree(originals, songs, dirs_exist_ok=True)
    return songs


def test_joins(umx_pro, here):
    code, out, err = umx_pro("join", "vocals", "drums", "--output", "joint")
    assert (code, err) == (0, "")
    assert out == "model: joint, vocals, drums\nuse:   umx-pro separate --model joint FILES...\n"
    assert Profile.read("joint").model.targets == ("vocals", "drums")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vocals", "--output", "joint"], "join: expected two models or more, got 1"),
        (["vocals", "nowhere", "--output", "joint"], "nowhere: no such model"),
        (["vocals", "vocals", "--output", "joint"], "vocals: has the target 'vocals', and so has vocals"),
        (["vocals", "drums", "--output", "vocals"], "vocals: exists already"),
        (["vocals", "drums"], "Missing option '--output'"),
    ],
)
def test_mistakes(umx_pro, here, arguments, message):
    before = sorted(os.listdir("."))
    code, out, err = umx_pro("join", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"umx-pro: error: {message}")
    assert len(err.splitlines()) == 1
    assert sorted(os.listdir(".")) == before
