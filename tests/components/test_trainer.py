"""What the Trainer refuses, and when two trainings are the same."""

from pathlib import Path
from typing import Any

import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.types import artifact_utils, standard_artifacts

from components.trainer import executor
from components.trainer.executor import refuse_anomalies, training_key
from umx_model.errors import InputError
from umx_model.profile import ModelProfile, Profile


def write(folder: Path, **splits: anomalies_pb2.Anomalies) -> standard_artifacts.ExampleAnomalies:
    artifact = standard_artifacts.ExampleAnomalies()
    artifact.uri = str(folder)
    artifact.split_names = artifact_utils.encode_split_names(list(splits))
    for split, found in splits.items():
        (folder / f"Split-{split}").mkdir()
        (folder / f"Split-{split}" / "SchemaDiff.pb").write_bytes(found.SerializeToString())
    return artifact


def test_anomalies_are_named(tmp_path: Path) -> None:
    found = anomalies_pb2.Anomalies()
    found.anomaly_info["peak"].short_description = "Out-of-range values"
    found.anomaly_info["peak"].description = "Unexpectedly high values: 32767 > 16."
    few = anomalies_pb2.Anomalies()
    few.dataset_anomaly_info.short_description = "Low num examples in dataset."
    few.dataset_anomaly_info.description = "Found 0."
    with pytest.raises(InputError) as caught:
        refuse_anomalies(write(tmp_path, train=found, valid=few))
    lines = str(caught.value).splitlines()
    assert lines[0] == "train/: peak: out-of-range values: Unexpectedly high values: 32767 > 16."
    assert lines[1].startswith("valid/: database: low num examples")
    assert "data_schema/schema.pbtxt" in lines[2]


def test_no_anomalies_no_refusal(tmp_path: Path) -> None:
    refuse_anomalies(write(tmp_path, train=anomalies_pb2.Anomalies(), valid=anomalies_pb2.Anomalies()))


def test_a_training_is_known_by_profile_and_data() -> None:
    profile = Profile(model=ModelProfile(targets=("vocals", "drums")))
    keys = {
        training_key(profile, "data"),
        training_key(profile, "other data"),
        training_key(profile.updated({"train.seed": 43}), "data"),
        training_key(profile.updated({"model.targets": "drums,vocals"}), "data"),
    }
    assert len(keys) == 4
    assert training_key(Profile.parse(profile.model_dump_json()), "data") == training_key(profile, "data")


@pytest.mark.parametrize("lost", [None, "profile.json", "model.weights.h5", "saved_model/saved_model.pb"])
def test_a_model_that_is_not_whole_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str | None
) -> None:
    made = {"profile.json", "model.weights.h5", "saved_model/saved_model.pb", "checkpoints/checkpoint"}

    def train(profile: Profile, samples: Any, work: str, **_: Any) -> None:
        for name in made - {lost}:
            path = Path(work, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    monkeypatch.setattr(executor, "train", train)
    monkeypatch.setattr(executor, "read_index", lambda folder: ())
    examples, model, model_run = (
        kind() for kind in (standard_artifacts.Examples, standard_artifacts.Model, standard_artifacts.ModelRun)
    )
    examples.split_names = artifact_utils.encode_split_names(["train", "valid"])
    examples.set_string_custom_property("data_version", "v")
    model.uri, model_run.uri = str(tmp_path / "model"), str(tmp_path / "run")
    Path(model.uri).mkdir()
    inputs = {"examples": [examples], "anomalies": [write(tmp_path)]}
    properties = {
        "profile": Profile(model=ModelProfile(targets=("a",))).model_dump_json(),
        "training_folder": str(tmp_path / "training"),
        "push_destination": "",
        "warm_start": 0,
        "init_from": "",
    }

    def run() -> None:
        executor.Executor().Do(inputs, {"model": [model], "model_run": [model_run]}, properties)

    if lost is None:
        run()
        assert list((tmp_path / "training").iterdir()) == []
    else:
        with pytest.raises(RuntimeError, match=f"lacks {lost} after training"):
            run()
        assert len(list((tmp_path / "training").iterdir())) == 1


def test_trainings_from_other_weights_are_other_trainings(tmp_path: Path) -> None:
    profile = Profile(model=ModelProfile(targets=("a",)))
    starts = []
    for name, checksum in (("first", "1"), ("second", "2"), ("copy", "1")):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        profile.model_copy(update={"weights_sha256": checksum}).write(tmp_path / name)
        (tmp_path / name / "model.weights.h5").touch()
        starts.append(str(tmp_path / name))
    for step in (1, 2):
        (tmp_path / "first" / "checkpoints" / f"step-{step}.index").touch()
        starts.append(str(tmp_path / "first" / "checkpoints" / f"step-{step}"))
    keys = [training_key(profile, "data", start) for start in (None, *starts)]
    assert keys[3] == keys[1]  # the same weights elsewhere
    assert len(set(keys)) == 5


def test_where_training_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile(model=ModelProfile(targets=("a",)))
    other = profile.updated({"model.hidden_size": 16})

    def write_profile(folder: Path, written: Profile) -> str:
        folder.mkdir(parents=True)
        written.write(folder)
        return str(folder)

    def start(warm_start: bool, init_from: str) -> str | None:
        properties = {"warm_start": int(warm_start), "push_destination": served, "init_from": init_from}
        return executor.find_start(profile, properties)

    served = str(tmp_path / "serving")
    named = write_profile(tmp_path / "named", profile)
    unlike = write_profile(tmp_path / "unlike", other)
    assert start(warm_start=False, init_from="") is None
    assert start(warm_start=True, init_from="") is None  # nothing is served yet
    assert start(warm_start=True, init_from=named) == named
    with pytest.raises(InputError, match="model.hidden_size is 16 there, 512 here"):
        start(warm_start=False, init_from=unlike)
    with pytest.raises(InputError, match="no such model"):
        start(warm_start=False, init_from="nothing")
    monkeypatch.setenv("UMX_PRO_MODELS", str(tmp_path))
    assert start(warm_start=False, init_from="named") == named

    version = write_profile(tmp_path / "serving" / "1700000000", profile)
    Path(version, "saved_model.pb").touch()
    assert start(warm_start=True, init_from=named) == version
    assert start(warm_start=False, init_from=named) == named
    other.write(version)
    assert start(warm_start=True, init_from=named) == named
    assert start(warm_start=True, init_from="") is None
