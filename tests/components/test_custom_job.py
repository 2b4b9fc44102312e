"""Training as a custom job of Vertex AI: the request, held against the API's own types, and what becomes of the job."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import helpers
import pytest
from gcs import GcsServer
from google.cloud.aiplatform_v1.types import CustomJob
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils, standard_artifacts

from components.sample_gen.executor import Executor as SampleGen
from components.trainer import custom_job
from components.trainer.custom_job import Executor, WorkerPool
from umx_model.errors import InputError
from umx_model.profile import Profile

REPOSITORY = Path(__file__).parents[2]
PLACE = "projects/studio/locations/europe-west4"
PROFILE = {
    "model": {
        "targets": ["vocals", "drums"],
        "sample_rate": 8000,
        "channels": 1,
        "n_fft": 512,
        "hop_length": 256,
        "hidden_size": 8,
        "layers": 1,
        "bandwidth": 3000.0,
    },
    "train": {"epochs": 1000, "batch_size": 2, "excerpts_per_sample": 2, "excerpt_seconds": 1.0},
}


class JobServer(ThreadingHTTPServer):
    """Answers as the API's JobService does (aiplatform.googleapis.com, v1), for custom jobs.

    Attributes:
        jobs: by id, as the API shows them.
        states: that the next jobs go through, one for each time that they are asked for; the last one stays.
        error: of jobs that fail.
        refusal: status and message for who starts a job; None to take it.
        failures: how many of the next questions are answered with 503.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states = ["JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"]
        self.error = ""
        self.refusal: tuple[int, str] | None = None
        self.failures = 0
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JobServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        path = self.path.split("?")[0]
        if path == f"/v1/{PLACE}/customJobs":
            if self.server.refusal:
                self.answer(*self.server.refusal)
                return
            number = str(len(self.server.jobs) + 1)
            job = {
                **body,
                "name": f"{PLACE}/customJobs/{number}",
                "state": "JOB_STATE_PENDING",
                "left": [*self.server.states],
            }
            self.server.jobs[number] = job
            self.answer(200, self.shown(job))
        elif cancelled := re.fullmatch(rf"/v1/{PLACE}/customJobs/(\d+):cancel", path):
            self.server.jobs[cancelled[1]]["state"] = "JOB_STATE_CANCELLED"
            self.answer(200, {})
        else:
            self.answer(404, f"no route {path}")

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if self.server.failures:
            self.server.failures -= 1
            self.answer(503, "try again")
        elif path == f"/v1/{PLACE}/customJobs":
            wanted = re.search(r"umx-pro-training(?:%3D|=)(?:%22|\")(\w+)", self.path)
            going_on = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING")
            found = [
                self.shown(job)
                for job in self.server.jobs.values()
                if wanted and job["labels"]["umx-pro-training"] == wanted[1] and job["state"] in going_on
            ]
            self.answer(200, {"customJobs": found})
        elif asked := re.fullmatch(rf"/v1/{PLACE}/customJobs/(\d+)", path):
            job = self.server.jobs[asked[1]]
            if job["left"]:
                job["state"] = job["left"].pop(0)
            self.answer(200, self.shown(job))
        else:
            self.answer(404, f"no route {path}")

    def shown(self, job: dict[str, Any]) -> dict[str, Any]:
        failed = {"error": {"code": 3, "message": self.server.error}} if job["state"] == "JOB_STATE_FAILED" else {}
        return {name: value for name, value in job.items() if name != "left"} | failed

    def answer(self, status: int, content: Any) -> None:
        if isinstance(content, str):
            content = {"error": {"code": status, "message": content}}
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr(custom_job, "_FIRST_PAUSE_SECONDS", 0.01)
    with JobServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """An index without anomalies."""
    folder = tmp_path_factory.mktemp("index")
    counts = {"train": 2, "valid": 1}
    data = helpers.make_database(folder / "db", counts, seconds=1.5, sample_rate=8000, channels=1)
    examples, anomalies = standard_artifacts.Examples(), standard_artifacts.ExampleAnomalies()
    examples.uri, anomalies.uri = str(folder / "examples"), str(folder / "anomalies")
    context = BaseBeamExecutor.Context(tmp_dir=str(folder / "tmp"), unique_id="1")
    SampleGen(context).Do(
        {}, {"examples": [examples]}, {"data": str(data), "targets": "vocals,drums", "data_version": ""}
    )
    anomalies.split_names = artifact_utils.encode_split_names(list(counts))
    for split in counts:
        (folder / "anomalies" / f"Split-{split}").mkdir(parents=True)
        empty = anomalies_pb2.Anomalies().SerializeToString()
        (folder / "anomalies" / f"Split-{split}" / "SchemaDiff.pb").write_bytes(empty)
    return {"examples": [examples], "anomalies": [anomalies]}


def outputs(folder: Path) -> dict[str, list[Any]]:
    model, model_run = standard_artifacts.Model(), standard_artifacts.ModelRun()
    model.uri, model_run.uri = str(folder / "model"), str(folder / "model_run")
    return {"model": [model], "model_run": [model_run]}


def properties(folder: Path, endpoint: str, **pool: Any) -> dict[str, Any]:
    machines = WorkerPool(
        **{
            "project": "studio",
            "region": "europe-west4",
            "machine_type": "n1-standard-8",
            "image": "images/umx-pro:1",
            "endpoint": endpoint,
            "machines": 2,
            **pool,
        }
    )
    return {
        "profile": Profile.parse(PROFILE).model_dump_json(),
        "training_folder": str(folder / "training"),
        "push_destination": "",
        "warm_start": 0,
        "init_from": "",
        "epochs": 1,
        "custom_job": machines.model_dump_json(),
        "code_version": "c",
    }


def requested(server: JobServer, number: str = "1") -> Any:
    """A job as it was asked for, read by the API's own type."""
    asked = {name: value for name, value in server.jobs[number].items() if name not in ("left", "name", "state")}
    return CustomJob.from_json(json.dumps(asked), ignore_unknown_fields=False)


def test_request(server: JobServer, inputs: dict, tmp_path: Path) -> None:
    gpus = {"accelerator_type": "NVIDIA_TESLA_T4", "accelerator_count": 2, "machines": 3}
    chosen = properties(tmp_path, server.address, **gpus, spot=True, service_account="runner@studio")
    Executor().Do(inputs, outputs(tmp_path), chosen)
    job = requested(server)
    chief, workers = job.job_spec.worker_pool_specs
    assert (chief.replica_count, workers.replica_count) == (1, 2)
    for pool in (chief, workers):
        assert pool.machine_spec.machine_type == "n1-standard-8"
        assert pool.machine_spec.accelerator_type.name == "NVIDIA_TESLA_T4"
        assert pool.machine_spec.accelerator_count == 2
        assert pool.container_spec.image_uri == "images/umx-pro:1"
        assert list(pool.container_spec.command[:3]) == ["python", "-m", "components.container"]
        assert "custom_job" not in pool.container_spec.command[-1]
    assert job.job_spec.scheduling.strategy.name == "SPOT"
    assert job.job_spec.scheduling.restart_job_on_worker_restart
    assert job.job_spec.service_account == "runner@studio"
    assert re.fullmatch(r"[a-z0-9_-]{1,63}", job.labels["umx-pro-training"])


def test_one_machine_that_keeps_its_place(server: JobServer, inputs: dict, tmp_path: Path) -> None:
    Executor().Do(inputs, outputs(tmp_path), properties(tmp_path, server.address, machines=1))
    job = requested(server)
    [pool] = job.job_spec.worker_pool_specs
    assert pool.replica_count == 1
    assert not pool.machine_spec.accelerator_count
    assert job.job_spec.scheduling.strategy.name == "STRATEGY_UNSPECIFIED"


def test_job_that_fails(server: JobServer, inputs: dict, tmp_path: Path) -> None:
    server.states, server.error = ["JOB_STATE_RUNNING", "JOB_STATE_FAILED"], "workerpool1-0 ran out of memory"
    with pytest.raises(
        RuntimeError, match=r"without a model: workerpool1-0 ran out of memory; its log: https://.*/1\?pro"
    ):
        Executor().Do(inputs, outputs(tmp_path), properties(tmp_path, server.address))


def test_short_silence_is_borne(server: JobServer, inputs: dict, tmp_path: Path) -> None:
    custom = properties(tmp_path, server.address)
    server.states = ["JOB_STATE_RUNNING"] * 3 + ["JOB_STATE_SUCCEEDED"]
    jobs = custom_job._Jobs(WorkerPool.model_validate_json(custom["custom_job"]))
    name = jobs._client.create_custom_job({"parent": PLACE, "custom_job": {"display_name": "x"}}).name
    server.failures = 2
    jobs._wait(name)
    assert server.failures == 0


def test_long_silence_is_told(server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_job, "_PATIENCE_SECONDS", 0.2)
    custom = properties(tmp_path, server.address)
    jobs = custom_job._Jobs(WorkerPool.model_validate_json(custom["custom_job"]))
    server.failures = 10**6
    with pytest.raises(RuntimeError, match="Vertex AI does not answer any more .*; the training may go on"):
        jobs._wait(f"{PLACE}/customJobs/1")


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "Permission 'aiplatform.customJobs.create' denied"), (400, "No machine type n1"), (429, "Quota exceeded")],
)
def test_refused_job(server: JobServer, inputs: dict, tmp_path: Path, status: int, message: str) -> None:
    server.refusal = (status, message)
    with pytest.raises(
        InputError, match=f"{PLACE}: Vertex AI does not take .*{message}.*look at machine_type"
    ) as caught:
        Executor().Do(inputs, outputs(tmp_path), properties(tmp_path, server.address))
    assert "\n" not in str(caught.value)


def test_restarted_container_finds_its_job(server: JobServer, inputs: dict, tmp_path: Path) -> None:
    server.states = ["JOB_STATE_RUNNING"]
    first = threading.Thread(
        target=Executor().Do, args=(inputs, outputs(tmp_path), properties(tmp_path, server.address)), daemon=True
    )
    first.start()
    deadline = time.monotonic() + 30
    while not server.jobs or server.jobs["1"]["left"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.jobs["1"]["left"] = ["JOB_STATE_RUNNING"] * 20 + ["JOB_STATE_SUCCEEDED"]
    Executor().Do(inputs, outputs(tmp_path), properties(tmp_path, server.address))
    first.join(30)
    assert len(server.jobs) == 1
    # Another training is another job.
    server.states = ["JOB_STATE_SUCCEEDED"]
    Executor().Do(inputs, outputs(tmp_path), {**properties(tmp_path, server.address), "epochs": 2})
    assert len(server.jobs) == 2


def test_stopped_container_stops_its_job(server: JobServer, inputs: dict, tmp_path: Path) -> None:
    server.states = ["JOB_STATE_RUNNING"]
    chosen = properties(tmp_path, server.address)
    command = custom_job.container_command(inputs, outputs(tmp_path), chosen)
    command = [sys.executable, *command[1:]]
    command[3] = "--executor_class_path=components.trainer.custom_job.Executor"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not server.jobs:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143, stderr
    assert server.jobs["1"]["state"] == "JOB_STATE_CANCELLED"


@pytest.mark.slow
def test_command_of_the_job_trains_on_two_machines(inputs: dict, tmp_path: Path) -> None:
    made = outputs(tmp_path)
    chosen = {name: value for name, value in properties(tmp_path, "").items() if name != "custom_job"}
    command = custom_job.container_command(inputs, made, chosen)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = []
    for kind, address in zip(("chief", "worker"), addresses, strict=True):
        # As Vertex AI sets it, apart from the names of the machines.
        config = {
            "cluster": {"chief": addresses[:1], "worker": addresses[1:]},
            "task": {"type": kind, "index": 0, "trial": "0"},
            "environment": "cloud",
            "job": json.dumps({"worker_pool_specs": []}),
        }
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(config),
            "PYTHONPATH": str(REPOSITORY),
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        own = tmp_path / address.replace(":", "-")
        own.mkdir()
        processes.append(
            subprocess.Popen(
                [sys.executable, *command[1:]],
                cwd=own,
                env={**environment, "TMPDIR": str(own)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    profile = Profile.read(made["model"][0].uri)
    assert len(profile.history) == 1
    assert profile.made_with["strategy"] == "CollectiveAllReduceStrategy"
    assert profile.made_with["devices"].startswith("2 x CPU")
    assert Path(made["model"][0].uri, "saved_model", "saved_model.pb").exists()
    assert list((tmp_path / "training").iterdir()) == []


@pytest.mark.slow
def test_training_goes_on_elsewhere_after_its_machine_was_taken_away(inputs: dict, tmp_path: Path) -> None:
    """Checkpoints are copied to a bucket; a machine that has nothing goes on from there."""
    chosen = {name: value for name, value in properties(tmp_path, "").items() if name != "custom_job"}
    chosen |= {"training_folder": "gs://bucket/training", "epochs": 40}
    made = outputs(tmp_path)
    made["model"][0].uri, made["model_run"][0].uri = "gs://bucket/model", "gs://bucket/model_run"
    command = custom_job.container_command(inputs, made, chosen)
    (tmp_path / "gcs").mkdir()
    with GcsServer(tmp_path / "gcs") as gcs:
        gcs.create_bucket("bucket")

        def start(machine: str) -> subprocess.Popen[str]:
            (tmp_path / machine).mkdir()
            environment = {**gcs.environment(), "TMPDIR": str(tmp_path / machine)}
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            return subprocess.Popen([sys.executable, *command[1:]], env=environment, cwd=tmp_path / machine, **pipes)

        process, deadline = start("first"), time.monotonic() + 120
        while not any(name.endswith(".index") for name in gcs.list("bucket", "training/")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 143, said
        process = start("second")
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
        profile = Profile.parse(gcs.download("bucket", "model/profile.json"))
        assert [entry["epoch"] for entry in profile.history] == list(range(1, 41))
        assert "model/saved_model/saved_model.pb" in gcs.list("bucket", "model/")
        assert any("events.out" in name for name in gcs.list("bucket", "model_run/"))
        assert gcs.list("bucket", "training/") == {}
        assert not list(tmp_path.glob("second/umx-pro-*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
