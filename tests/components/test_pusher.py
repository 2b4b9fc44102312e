"""Pushing: numbered versions that appear whole or not at all."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfx.types import Artifact, standard_artifacts

from components.pusher import executor
from umx_model.errors import InputError
from umx_model.model.folder import read_model, write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    model = ModelProfile(
        targets=("vocals", "drums"), sample_rate=8000, channels=1, n_fft=64, hop_length=32, hidden_size=4, layers=1
    )
    profile = Profile(model=model)
    write_model_folder(folder, get_joint_spectral_filter(model), profile, saved_model=False)
    return folder


def push(model_folder: str, destination: Path, blessed: bool = True) -> standard_artifacts.PushedModel:
    model, blessing = standard_artifacts.Model(), standard_artifacts.ModelBlessing()
    model.uri = model_folder
    blessing.set_int_custom_property("blessed", int(blessed))
    blessing.set_string_custom_property("blessing_message", "vocals: too bad")
    pushed = standard_artifacts.PushedModel()
    inputs: dict[str, list[Artifact]] = {"model": [model], "model_blessing": [blessing]}
    executor.Executor().Do(inputs, {"pushed_model": [pushed]}, {"push_destination": str(destination)})
    return pushed


def test_pushes_what_the_model_computes_as_increasing_versions(model_folder: str, tmp_path: Path) -> None:
    destination = tmp_path / "serving"
    (destination / "9999999999").mkdir(parents=True)  # later than any clock says
    pushed = push(model_folder, destination)
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_version") == "10000000000"
    folder = pushed.get_string_custom_property("pushed_destination")
    assert folder == str(destination / "10000000000")
    assert {path.name for path in destination.iterdir()} == {"9999999999", "10000000000"}

    mixture = np.random.default_rng(0).uniform(-1, 1, (2, 1000, 1)).astype(np.float32)
    served = tf.saved_model.load(folder).signatures["serving_default"](mixture=tf.constant(mixture))
    estimates = read_model(model_folder)[0](mixture)
    for index, target in enumerate(("vocals", "drums")):
        np.testing.assert_allclose(served[target], estimates[..., index], atol=1e-5)


def test_only_the_newest_version_is_served(tmp_path: Path) -> None:
    for name in ("9", "10", "partial-11", "notes"):
        (tmp_path / name).mkdir()
    assert [executor.is_served(str(tmp_path / name)) for name in ("9", "10", "11")] == [False, True, False]


def test_first_version_is_the_time() -> None:
    before = int(time.time())
    assert before <= int(executor.next_version(["notes"])) <= time.time()


def test_unblessed_model_leaves_the_destination_alone(model_folder: str, tmp_path: Path) -> None:
    pushed = push(model_folder, tmp_path / "serving", blessed=False)
    assert pushed.get_int_custom_property("pushed") == 0
    assert not pushed.has_custom_property("pushed_destination")
    assert not (tmp_path / "serving").exists()


def test_failed_export_leaves_nothing(model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(model: Any, profile: Profile, folder: str) -> None:
        (Path(folder) / "variables").mkdir(parents=True)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(executor, "export_saved_model", export)
    with pytest.raises(RuntimeError, match="out of luck"):
        push(model_folder, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_destination_that_cannot_be_written(model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file/serving: cannot push here") as caught:
        push(model_folder, tmp_path / "file" / "serving")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["99999999998/", "99999999999/", "partial-999999999999", "notes.txt"], "100000000000"),
        (["99999999999"], "100000000000"),
    ],
)
def test_next_version_is_above_all(names: Sequence[str], expected: str) -> None:
    assert executor.next_version(list(names)) == expected
