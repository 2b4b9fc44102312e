"""The compiled pipeline, run for real: each container's command as a process, in the order of the tasks.

Kubeflow's variant runs in a folder, that for Vertex AI in a bucket (a real server process), where it is resolvers that
know what was blessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import soundfile as sf
from gcs import GcsServer
from platform_run import Finished, PlatformRun

from pipeline.cloud_settings import COMPONENTS, CloudSettings
from pipeline.compile import compile_pipeline
from umx_model.data.track_folder import database_fingerprint

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "image": "image:1",
    "profile": {
        "model": {
            "targets": ["vocals", "drums"],
            "sample_rate": 8000,
            "channels": 1,
            "n_fft": 512,
            "hop_length": 256,
            "hidden_size": 8,
            "layers": 1,
            "bandwidth": 3000,
        },
        "train": {"epochs": 1, "batch_size": 2, "excerpts_per_sample": 2, "excerpt_seconds": 1.0},
    },
    "floor_db": -100.0,  # so short a training makes no good model
}
ALL = dict.fromkeys(COMPONENTS, "succeeded")


def make_database(folder: Path) -> Path:
    return helpers.make_database(folder, {"train": 2, "valid": 1}, seconds=1.5, sample_rate=8000, channels=1)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UMX_PRO_", "TF_CPP_"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "-1"}


def profile_of(finished: Finished) -> dict[str, Any]:
    uri = finished.outputs["Trainer"]["model"]["uri"]
    return dict(json.loads(Path(uri, "profile.json").read_text()))


class TestOnKubeflow:
    """These build on one another, as runs do."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_database(tmp_path_factory.mktemp("data") / "db")

    @pytest.fixture(scope="class")
    def platform(self, data: Path, tmp_path_factory: pytest.TempPathFactory) -> PlatformRun:
        folder = tmp_path_factory.mktemp("kubeflow")
        options = {**SETTINGS, "platform": "kubeflow", "data": str(data), "pipeline_root": "gs://bucket/root"}
        settings = CloudSettings.load(options, environment={})
        # In a folder, which Kubeflow would not take: a bucket is what the tests for Vertex AI have.
        pipeline = compile_pipeline(settings.model_copy(update={"pipeline_root": str(folder / "root")}))
        return PlatformRun(pipeline, folder / "disks", environment())

    def serving(self, platform: PlatformRun) -> Path:
        return Path(platform.pipeline.settings.serving_folder)

    def versions(self, platform: PlatformRun) -> list[str]:
        return sorted(path.name for path in self.serving(platform).iterdir())

    def test_first_run_pushes(self, platform: PlatformRun, data: Path) -> None:
        finished = platform.run({"epochs": 2, "batch_size": 1, "excerpt_seconds": 0.75})
        assert finished.states == ALL, finished.logs
        assert self.versions(platform) == ["1"]
        assert finished.said("Pusher", "pushed_model")["pushed_destination"] == str(self.serving(platform) / "1")
        profile = profile_of(finished)
        train = profile["train"]
        assert (train["epochs"], train["batch_size"], train["excerpt_seconds"]) == (2, 1, 0.75)
        assert len(profile["history"]) == 2
        assert profile["data_fingerprint"] == database_fingerprint(data)
        assert finished.said("SampleGen", "examples")["data_version"] == database_fingerprint(data)
        assert finished.said("Evaluator", "blessing")["baseline_weights_sha256"] == ""
        report = Path(finished.outputs["Evaluator"]["report"]["uri"])
        assert report.read_text().startswith("<!DOCTYPE html>")

    def test_second_run_starts_from_what_is_served_and_is_compared_with_it(self, platform: PlatformRun) -> None:
        served = self.serving(platform) / "1"
        finished = platform.run({"warm_start": True})
        # Its input is the schema alone; all else saw the data again.
        assert finished.states == {**ALL, "ImportSchemaGen": "cached"}, finished.logs
        assert profile_of(finished)["made_with"]["started_from"].startswith(str(served))
        blessing = finished.said("Evaluator", "blessing")
        assert blessing["baseline_model"] == str(served)
        assert (
            blessing["baseline_weights_sha256"] == json.loads((served / "lineage.json").read_text())["weights_sha256"]
        )

    def test_weak_model_is_not_pushed(self, platform: PlatformRun, known: dict[str, str]) -> None:
        before = self.versions(platform)
        finished = platform.run({**known, "floor_db": "vocals=100,drums=-100"})
        assert set(finished.states.values()) == {"succeeded", "cached"}, finished.logs
        assert finished.said("Evaluator", "blessing")["blessed"] == 0
        pushed = finished.said("Pusher", "pushed_model")
        assert pushed["pushed"] == 0
        assert pushed["reason"].startswith("the model was not blessed: vocals:")
        assert self.versions(platform) == before

    @pytest.fixture
    def known(self, platform: PlatformRun, data: Path) -> Iterator[dict[str, str]]:
        """Parameters of `submit`, with which an unchanged database is not read again."""
        as_compiled, platform.pipeline = platform.pipeline, platform.pipeline.with_cache(index=True)
        yield {"data_version": database_fingerprint(data)}
        platform.pipeline = as_compiled

    def test_known_data_is_not_read_again(self, platform: PlatformRun, known: dict[str, str]) -> None:
        finished = platform.run({**known, "floor_db": "piano=1"})
        states = [finished.states[name] for name in COMPONENTS]
        assert states == ["cached"] * 5 + ["failed", "not run"], finished.logs
        self.expect(finished, "Evaluator", "floor_db: piano is no target of the model")

    @pytest.mark.parametrize(
        ("parameters", "task", "message"),
        [
            ({"data": "/nowhere"}, "SampleGen", "umx-pro: error: /nowhere: no such folder"),
            ({"data_version": "old"}, "SampleGen", "has changed: data_version should be old, and is"),
            ({"targets": "vocals,piano"}, "SampleGen", "piano"),
            ({"epochs": 0}, "Trainer", "epochs"),
        ],
    )
    def test_wrong_parameters(
        self, platform: PlatformRun, known: dict[str, str], parameters: dict, task: str, message: str
    ) -> None:
        self.expect(platform.run({**known, **parameters}), task, message)

    def expect(self, finished: Finished, task: str, message: str) -> None:
        assert finished.states[task] == "failed", finished.logs
        assert finished.logs[f"{task} exit code"] == "1"
        assert message in finished.logs[task]
        assert "Traceback" not in finished.logs[task]
        assert finished.states["Pusher"] == "not run"

    def test_bad_data(self, platform: PlatformRun, data: Path) -> None:
        broken = data / "train" / "song00" / "vocals.wav"
        good = broken.read_bytes()
        audio = sf.read(broken, dtype="float32")[0]
        audio[100] = np.inf
        sf.write(broken, audio, 8000, subtype="FLOAT")
        finished = platform.run()
        assert finished.states["SampleGen"] == "failed"
        assert finished.logs["SampleGen exit code"] == "1"
        assert f"umx-pro: error: {broken}: 1 values are NaN or infinite; replace the file" in finished.logs["SampleGen"]
        assert {finished.states[name] for name in COMPONENTS[4:]} == {"not run"}

        integers = 32768 * sf.read(data / "train" / "song01" / "drums.wav", dtype="float32")[0]
        broken.write_bytes(good)
        sf.write(data / "train" / "song01" / "drums.wav", integers, 8000, subtype="FLOAT")
        finished = platform.run()
        assert finished.states["Trainer"] == "failed"
        assert "training refuses data with anomalies" in finished.logs["Trainer"]
        assert finished.states["Evaluator"] == "not run"


class TestOnVertex:
    """All of it in a bucket. These build on one another."""

    @pytest.fixture(scope="class")
    def gcs(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
        with GcsServer(tmp_path_factory.mktemp("gcs")) as server:
            server.upload(make_database(tmp_path_factory.mktemp("data") / "db"), "bucket", "music")
            yield server

    @pytest.fixture(scope="class")
    def platform(self, gcs: GcsServer, tmp_path_factory: pytest.TempPathFactory) -> PlatformRun:
        settings = {
            **SETTINGS,
            "data": "gs://bucket/music",
            "pipeline_root": "gs://bucket/runs",
        }
        pipeline = compile_pipeline(CloudSettings.load(settings, environment={}))
        return PlatformRun(pipeline, tmp_path_factory.mktemp("disks"), {**gcs.environment(), "HOME": "/nonexistent"})

    def versions(self, gcs: GcsServer) -> set[str]:
        return {name.split("/")[2] for name in gcs.list("bucket", "runs/serving/")}

    def test_first_run_pushes(self, platform: PlatformRun, gcs: GcsServer) -> None:
        finished = platform.run({"epochs": 2})
        states = dict(finished.states)
        resolvers = {states.pop(f"Resolver-{kind}-resolver") for kind in ("model-blessing", "model")}
        assert resolvers == {"succeeded"}
        assert states == ALL, finished.logs
        assert finished.inputs["Evaluator"]["inputs"]["artifacts"]["baseline_model"] == {"artifacts": []}
        assert self.versions(gcs) == {"1"}
        names = gcs.list("bucket", "runs/serving/1/")
        assert {"saved_model.pb", "profile.json", "lineage.json", "card.md"} <= {name.split("/")[3] for name in names}
        assert gcs.list("bucket", "runs/training/") == {}
        assert gcs.download("bucket", "runs/run-1/Evaluator/report").startswith(b"<!DOCTYPE html>")

    def test_blessed_model_is_the_baseline_where_nothing_is_served(self, platform: PlatformRun, gcs: GcsServer) -> None:
        finished = platform.run({"push_destination": "gs://bucket/elsewhere", "floor_db": "100"})
        assert set(finished.states.values()) == {"succeeded", "cached"}, finished.logs
        [resolved] = finished.inputs["Evaluator"]["inputs"]["artifacts"]["baseline_model"]["artifacts"]
        assert resolved["uri"] == "gs://bucket/runs/run-1/Trainer/model"
        blessing = finished.said("Evaluator", "blessing")
        assert blessing["baseline_model"] == resolved["uri"]
        assert blessing["baseline_weights_sha256"] == ""
        assert finished.said("Pusher", "pushed_model")["pushed"] == 0
        assert gcs.list("bucket", "elsewhere/") == {}
        assert self.versions(gcs) == {"1"}

    def test_bad_data(self, platform: PlatformRun, gcs: GcsServer) -> None:
        gcs.delete("bucket", "music/valid/song00/drums.wav")
        finished = platform.run()
        assert finished.states["SampleGen"] == "failed"
        assert finished.logs["SampleGen exit code"] == "1"
        assert "gs://bucket/music/valid/song00: lacks the target 'drums'" in finished.logs["SampleGen"]
        assert finished.states["Trainer"] == "not run"

    def test_served_version_is_used_without_our_code(self, platform: PlatformRun, gcs: GcsServer) -> None:
        program = (
            "import tensorflow as tf, json;"
            "serve = tf.saved_model.load('gs://bucket/runs/serving/1').signatures['serving_default'];"
            "print(json.dumps(sorted(serve(mixture=tf.zeros([1, 8000, 1])))))"
        )
        assert gcs.run(program).stdout.splitlines()[-1] == '["drums", "vocals"]'
