"""Pushing: a blessed model becomes a version that is a SavedModel and a model folder, and tells where it is from."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfx.types import Artifact, standard_artifacts

from components.pusher import executor
from components.pusher.versions import current_version, list_versions, number, read_lineage, rollback, served_weights
from umx_model.errors import InputError
from umx_model.inference.restore import load_separator
from umx_model.model.folder import read_model, write_model_folder
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import ModelProfile, Profile

FINDINGS = {
    "metric": "SDR, median of medians",
    "figures": {"SDR": {"vocals": 4.256, "drums": None}, "mixture": {"vocals": -3.0, "drums": None}},
    "verdict": ["vocals: 7.3 dB above the mixture", "drums: never heard"],
    "baseline_version": "7",
}


def make_model(folder: Path, **settings: Any) -> str:
    settings = {"sample_rate": 8000, "channels": 1, "n_fft": 64, "hop_length": 32, "hidden_size": 4, **settings}
    settings["unidirectional"] = True  # quicker to export
    model = ModelProfile(targets=("vocals", "drums"), layers=1, **settings)
    profile = Profile(model=model, data_fingerprint="f1n9er", made_with={"keras": "3"})
    write_model_folder(folder, get_joint_spectral_filter(model), profile, saved_model=False)
    return str(folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model"), niter=2, softmask=True)


def push(
    model_folder: str, destination: Path, blessed: bool = True, baseline: str | None = None, **properties: Any
) -> standard_artifacts.PushedModel:
    """Push a model that was compared with weights of that checksum; with those that are served, if None."""
    if baseline is None:
        baseline = served_weights(current_version(str(destination)))
    model, blessing = standard_artifacts.Model(), standard_artifacts.ModelBlessing()
    evaluation = standard_artifacts.ModelEvaluation()
    model.uri, evaluation.uri = model_folder, str(destination.parent / "evaluation")
    Path(evaluation.uri).mkdir(exist_ok=True)
    Path(evaluation.uri, "scores.json").write_text(json.dumps(FINDINGS))
    blessing.set_int_custom_property("blessed", int(blessed))
    blessing.set_string_custom_property("blessing_message", "vocals: too bad")
    blessing.set_string_custom_property("baseline_weights_sha256", baseline)
    pushed = standard_artifacts.PushedModel()
    inputs: dict[str, list[Artifact]] = {"model": [model], "model_blessing": [blessing], "evaluation": [evaluation]}
    given = {"push_destination": str(destination), "keep_versions": 3, "vertex_registry": "", "code_version": "c0de"}
    executor.Executor().Do(inputs, {"pushed_model": [pushed]}, given | properties)
    return pushed


def said(pushed: Artifact, name: str) -> str:
    return str(pushed.get_string_custom_property(name))


def versions(destination: Path) -> list[str]:
    return [number(version) for version in list_versions(str(destination))]


class TestAVersion:
    @pytest.fixture(scope="class")
    def folder(self, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
        pushed = push(model_folder, tmp_path_factory.mktemp("out") / "serving")
        assert pushed.get_int_custom_property("pushed") == 1
        assert said(pushed, "pushed_version") == "1"
        return Path(said(pushed, "pushed_destination"))

    def test_plain_tensorflow_gets_what_the_model_computes(self, folder: Path, model_folder: str) -> None:
        mixture = np.random.default_rng(0).uniform(-1, 1, (2, 1000, 1)).astype(np.float32)
        served = tf.saved_model.load(str(folder)).signatures["serving_default"](mixture=tf.constant(mixture))
        estimates = read_model(model_folder, niter=2, softmask=True)[0](mixture)
        for index, target in enumerate(("vocals", "drums")):
            np.testing.assert_allclose(served[target], estimates[..., index], atol=1e-5)

    def test_is_a_model_folder_too_and_read_as_one(self, folder: Path, model_folder: str, tmp_path: Path) -> None:
        model, profile = read_model(folder)
        before, there = read_model(model_folder)
        assert profile.model == there.model
        assert profile.weights_sha256 == there.weights_sha256
        assert profile.scores == {"vocals": 4.256}
        for mine, theirs in zip(model.spectral_filter.weights, before.spectral_filter.weights, strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
        # The SavedModel is not opened, which would run slower.
        broken = shutil.copytree(folder, tmp_path / "broken")
        (broken / "saved_model.pb").write_text("garbage")
        mixture = np.random.default_rng(0).uniform(-1, 1, (4000, 1)).astype(np.float32)
        quick = load_separator(broken).separate(mixture)
        (broken / "saved_model.pb").write_bytes((folder / "saved_model.pb").read_bytes())
        (broken / "model.weights.h5").unlink()
        slow = load_separator(broken).separate(mixture)
        for target in quick:
            np.testing.assert_allclose(quick[target], slow[target], atol=1e-4)

    def test_lineage(self, folder: Path, model_folder: str) -> None:
        lineage = read_lineage(str(folder))
        assert lineage.pop("time").endswith("+00:00")
        assert lineage == {
            "weights_sha256": Profile.read(model_folder).weights_sha256,
            "model": model_folder,
            "data_fingerprint": "f1n9er",
            "started_from": None,
            "evaluation": str(folder.parents[1] / "evaluation"),
            "scores": {"vocals": 4.256, "drums": None},
            "verdict": ["vocals: 7.3 dB above the mixture", "drums: never heard"],
            "baseline_version": "7",
            "baseline_weights_sha256": None,
            "niter": 2,
            "softmask": True,
            "exported_by": "c0de",
            "rolled_back_from": None,
            "pushed_as": None,
            "withdrawn": [],
        }

    def test_card(self, folder: Path, model_folder: str) -> None:
        card = (folder / "card.md").read_text()
        assert card.startswith("# Music separator: vocals, drums\n")
        sha = Profile.read(model_folder).weights_sha256
        for line in (
            "Separates vocals, drums from a mixture of vocals, drums: 1 channel at 8000 Hz.",
            "| target | SDR | mixture |",
            "| vocals | 4.26 | -3.00 |",
            "| drums | - | - |",
            "* vocals: 7.3 dB above the mixture",
            "| data fingerprint | f1n9er |",
            f"| weights (SHA-256) | {sha} |",
            "| baseline version | 7 |",
            "| niter | 2 |",
            "| softmask | True |",
            "| learning_rate | 0.001 |",
        ):
            assert line in card.splitlines(), line


def test_unknown_architecture_runs_as_saved_model(model_folder: str, tmp_path: Path) -> None:
    """A version's network may be of a class that only the program that trained it has."""
    folder = Path(said(push(model_folder, tmp_path / "serving"), "pushed_destination"))
    profile = folder / "profile.json"
    profile.write_text(profile.read_text().replace('"blstm"', '"theirs"'))
    load_separator(folder).separate(np.zeros((4000, 1), np.float32))
    with pytest.raises(InputError, match="'theirs' is not registered"):
        read_model(folder)


def test_models_are_pushed_as_increasing_versions_of_which_some_are_kept(tmp_path: Path) -> None:
    for index in range(3):
        push(make_model(tmp_path / f"model{index}"), tmp_path / "serving", keep_versions=2)
    assert versions(tmp_path / "serving") == ["2", "3"]


def test_unblessed_model_leaves_the_destination_alone(model_folder: str, tmp_path: Path) -> None:
    pushed = push(model_folder, tmp_path / "serving", blessed=False)
    assert pushed.get_int_custom_property("pushed") == 0
    assert said(pushed, "reason") == "the model was not blessed: vocals: too bad"
    assert not pushed.has_custom_property("pushed_destination")
    assert not (tmp_path / "serving").exists()


def test_what_is_served_already_is_not_pushed_again(model_folder: str, tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    push(model_folder, serving)
    assert said(push(model_folder, serving), "pushed_destination") == str(serving / "1")
    push(model_folder, serving, code_version="another exporter")
    assert versions(serving) == ["1", "2"]
    folder = shutil.copytree(model_folder, tmp_path / "other settings")
    Profile.read(folder).updated({"model.niter": 1}).write(folder)
    push(str(folder), serving, code_version="another exporter")
    assert versions(serving) == ["1", "2", "3"]


def test_a_model_that_was_compared_with_something_else_is_not_pushed(model_folder: str, tmp_path: Path) -> None:
    served, other = (make_model(tmp_path / name) for name in ("served", "other"))
    destination = tmp_path / "serving"
    push(served, destination)
    sha = {folder: Profile.read(folder).weights_sha256 for folder in (served, other)}
    for baseline in ("", sha[other]):  # another run has pushed since
        pushed = push(model_folder, destination, baseline=baseline)
        assert pushed.get_int_custom_property("pushed") == 0
        assert pushed.get_int_custom_property("overtaken") == 1
        assert said(pushed, "reason").startswith("something else is served now than the model was compared with")
    assert versions(destination) == ["1"]
    assert push(served, destination, baseline=sha[other]).get_int_custom_property("pushed") == 1  # served already
    push(model_folder, destination, baseline=sha[served])
    assert versions(destination) == ["1", "2"]
    assert read_lineage(str(destination / "2"))["baseline_weights_sha256"] == sha[served]


def test_a_version_made_by_hand_is_not_overlooked(model_folder: str, tmp_path: Path) -> None:
    destination = tmp_path / "serving"
    (destination / "7").mkdir(parents=True)
    (destination / "7" / "saved_model.pb").write_text("somebody's model")
    assert push(model_folder, destination, baseline="").get_int_custom_property("pushed") == 0
    assert push(model_folder, destination, baseline="unknown-7").get_int_custom_property("pushed") == 1
    assert versions(destination) == ["7", "8"]


def test_a_withdrawn_model_is_not_pushed_again(model_folder: str, tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    push(make_model(tmp_path / "first"), serving)
    push(model_folder, serving)
    rollback(str(serving), "1")
    pushed = push(model_folder, serving)
    assert pushed.get_int_custom_property("pushed") == 0
    assert said(pushed, "reason").startswith("version 2 with this model was withdrawn by a rollback on 2")
    assert versions(serving) == ["1", "2", "3"]

    push(make_model(tmp_path / "third"), serving)  # the withdrawal outlives the version that noted it
    assert push(model_folder, serving).get_int_custom_property("pushed") == 0
    assert versions(serving) == ["2", "3", "4"]
    rollback(str(serving), "2")
    assert said(push(model_folder, serving), "pushed_version") == "5"
    assert versions(serving) == ["2", "3", "4", "5"]


def test_failed_export_leaves_nothing(model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(model: Any, profile: Profile, folder: str) -> None:
        (Path(folder) / "variables").mkdir(parents=True)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(executor, "export_saved_model", export)
    with pytest.raises(RuntimeError, match="out of luck"):
        push(model_folder, tmp_path / "serving")
    assert list((tmp_path / "serving").iterdir()) == []


def test_damaged_model_is_refused(model_folder: str, tmp_path: Path) -> None:
    damaged = shutil.copytree(model_folder, tmp_path / "damaged")
    with (damaged / "model.weights.h5").open("r+b") as file:
        file.seek(5000)
        file.write(b"xxxx")
    with pytest.raises(InputError, match="damaged: its SHA-256"):
        push(str(damaged), tmp_path / "serving")
    assert not (tmp_path / "serving").exists()


def test_destination_that_cannot_be_written(model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file: cannot push here") as caught:
        push(model_folder, tmp_path / "file")
    assert "\n" not in str(caught.value)
