"""The commands for runs and schedules, as typed, against a Vertex AI on loopback."""

from __future__ import annotations

import dataclasses
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gcs import GcsServer
from google.cloud import aiplatform_v1 as api
from vertex_server import Bucket, Failure, VertexServer

import pipeline_runner
from pipeline import following
from pipeline.kubeflow import Kubeflow
from pipeline.vertex import Vertex
from tests.pipeline.compiled_pipelines import compiled
from umx_model.data.track_folder import database_fingerprint

RUNNER = Path(pipeline_runner.__file__)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    with VertexServer().running() as server:
        server.buckets["bucket"] = Bucket(objects=["music/train/a/vocals.wav"])
        server.images.add("a-project/us-central1/images/umx-pro:1")
        yield server


@pytest.fixture
def file(server: VertexServer, tmp_path: Path) -> str:
    path = str(tmp_path / "umx_pro.yaml")
    compiled(vertex_endpoint=server.address).write(path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`code, output, errors = run("submit", FILE, ...)`."""
    monkeypatch.setattr(following, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(following, "_LAST_PAUSE", 0.01)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline_runner.py", *arguments])
        code = pipeline_runner.main()
        return (code, *capsys.readouterr())

    return call


def last_job(server: VertexServer) -> api.PipelineJob:
    return list(server.jobs.values())[-1]


def test_a_run_is_submitted(server: VertexServer, file: str, run: Run) -> None:
    code, output, errors = run(
        "submit", file, "--yes", "--param", "epochs=3", "--param", "warm_start=yes", "--name", "mine"
    )
    assert (code, errors) == (0, "")
    job = last_job(server)
    assert job.display_name == "mine"
    assert dict(job.runtime_config.parameter_values) == {"epochs": 3, "warm_start": True, "data_version": ""}
    lines = output.splitlines()
    assert lines[0] == "gs://bucket/music cannot be read from here, so the run reads all of it, changed or not"
    assert any("$" in line for line in lines)  # what it costs
    assert lines[-2] == "Submitted: mine"
    assert lines[-1].startswith(
        "https://console.cloud.google.com/vertex-ai/locations/us-central1/pipelines/runs/umx-pro-"
    )


def test_a_named_state_of_the_data_lets_the_index_come_from_the_cache(
    server: VertexServer, file: str, run: Run
) -> None:
    code, output, _ = run("submit", file, "--yes", "--param", "data_version=abc")
    assert code == 0
    assert "cannot be read" not in output
    spec = api.PipelineJob.to_dict(last_job(server))["pipeline_spec"]
    assert spec["root"]["dag"]["tasks"]["SampleGen"]["cachingOptions"] == {"enableCache": True}


def test_the_state_of_readable_data_is_found_out(
    server: VertexServer, file: str, database: Path, gcs: GcsServer
) -> None:
    gcs.upload(database, "bucket", "music")
    command = [sys.executable, str(RUNNER), "submit", file, "--yes"]
    environment = gcs.environment() | {"UMX_PRO_DEBUG": "1"}
    environment.pop("STORAGE_EMULATOR_HOST", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    job = last_job(server)
    code = "from umx_model.data.track_folder import database_fingerprint as f; print(f('gs://bucket/music'))"
    expected = gcs.run(code).stdout.strip()
    assert expected != database_fingerprint(database)  # files in a bucket have other identities
    assert dict(job.runtime_config.parameter_values) == {"data_version": expected}
    spec = api.PipelineJob.to_dict(job)["pipeline_spec"]
    assert spec["root"]["dag"]["tasks"]["SampleGen"]["cachingOptions"] == {"enableCache": True}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (["epochs"], "--param epochs: expected NAME=VALUE, as in epochs=20"),
        (["rounds=3"], "--param rounds: no such parameter; there are "),
        (["epochs=many"], "--param epochs=many: expected a whole number"),
        (["epochs=0"], "--param epochs=0: train.epochs: "),
        (["batch_size=-1"], "--param batch_size=-1: train.batch_size: "),
        (["excerpt_seconds=0"], "--param excerpt_seconds=0.0: train.excerpt_seconds: "),
        (["targets="], "--param targets=: model.targets"),
        (["targets=vocals,vocals"], "--param targets=vocals,vocals: model.targets: "),
        (["floor_db=loud"], "--param floor_db=loud: floor_db: expected dB"),
        (["floor_db=piano=3"], "--param floor_db=piano=3: floor_db: piano is no target of the model"),
        (["data="], "--param data=: expected a folder"),
        (["epochs=0", "data="], "--param data=: expected a folder\n--param epochs=0: train.epochs: "),
    ],
)
def test_parameters_that_a_component_would_refuse(
    server: VertexServer, file: str, run: Run, parameters: list[str], expected: str
) -> None:
    options = [word for parameter in parameters for word in ("--param", parameter)]
    code, output, errors = run("submit", file, "--yes", *options)
    assert (code, output) == (2, "")
    assert errors.startswith(f"umx-pro: error: {expected}")
    assert len(errors.splitlines()) == len(parameters)
    assert server.requests == []


def test_other_targets_may_have_other_floors(server: VertexServer, file: str, run: Run) -> None:
    code, _, errors = run("submit", file, "--yes", "--param", "targets=piano,vocals", "--param", "floor_db=piano=3")
    assert (code, errors) == (0, "")


def test_what_stands_in_the_way_is_said_unless_nobody_wants_to_know(server: VertexServer, file: str, run: Run) -> None:
    server.images.clear()
    server.buckets["bucket"].location = "EU"
    code, _, errors = run("submit", file, "--yes")
    assert code == 2
    first, second = errors.splitlines()
    assert first.startswith("umx-pro: error: pipeline_root, data, push_destination: gs://bucket is in eu, ")
    assert second.startswith("image: there is no us-central1-docker.pkg.dev/")
    assert server.jobs == {}
    assert run("submit", file, "--yes", "--no-check")[0] == 0


def test_without_a_terminal_nothing_is_started_unasked(
    server: VertexServer, file: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output, errors = run("submit", file)
    assert code == 2
    assert (
        errors
        == "umx-pro: error: submit: nobody is there to say yes; give --yes to start the run without the question\n"
    )
    assert "$" in output
    assert server.jobs == {}


@pytest.mark.parametrize(
    ("failure", "code", "expected"),
    [
        (Failure("GET", "/pipelineJobs", 401), 2, "error: Google Cloud: the credentials are not accepted"),
        (Failure("POST", "/pipelineJobs", 403), 2, "error: Vertex AI: no permission in project a-project"),
        (
            Failure("POST", "/pipelineJobs", 500),
            1,
            "failed: Vertex AI failed: it is said to be so; try again later",
        ),
    ],
)
def test_failures_are_one_line_with_an_exit_code(
    server: VertexServer,
    file: str,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    failure: Failure,
    code: int,
    expected: str,
) -> None:
    monkeypatch.setattr(Vertex.__init__, "__kwdefaults__", {"timeout": 10, "patience": 0.2})
    server.failures.append(dataclasses.replace(failure))
    found, _, errors = run("submit", file, "--yes")
    assert found == code
    assert errors.startswith(f"umx-pro: {expected}")
    assert errors.count("\n") == 1
    assert server.jobs == {}


def test_files_that_are_none(run: Run, tmp_path: Path, file: str) -> None:
    code, _, errors = run("runs", str(tmp_path / "none.yaml"))
    assert code == 2
    assert "none.yaml" in errors
    text = Path(file).read_text()
    Path(file).write_text(re.sub(r'"version": "[^"]*"', '"version": "0.0.1"', text, count=1))
    code, _, errors = run("runs", file)
    assert code == 2
    assert "compiled by version 0.0.1" in errors


def test_a_run_that_succeeds_is_watched(server: VertexServer, file: str, run: Run) -> None:
    server.steps = [
        ("PENDING", {}),
        ("RUNNING", {"SampleGen": "PENDING"}),
        ("RUNNING", {"SampleGen": "RUNNING"}),
        ("RUNNING", {"SampleGen": "RUNNING"}),
        ("SUCCEEDED", {"SampleGen": "SUCCEEDED"}),
    ]
    code, output, _ = run("submit", file, "--yes", "--wait", "--name", "mine")
    assert code == 0
    lines = output[output.index("Submitted") :].splitlines()[2:]
    assert [" ".join(line.split()) for line in lines[:2]] == ["SampleGen waiting", "SampleGen running"]
    assert re.fullmatch(r"SampleGen +succeeded +\d s", lines[2].strip())
    assert re.fullmatch(r"mine: succeeded after \d s", lines[3])
    assert len(lines) == 4


def test_a_run_that_fails_is_said_to(server: VertexServer, file: str, run: Run) -> None:
    server.steps = [("RUNNING", {"SampleGen": "RUNNING"}), ("FAILED", {"SampleGen": "FAILED"})]
    code, output, _ = run("submit", file, "--yes", "--wait", "--name", "mine")
    assert code == 1
    *_, outcome, reason = output.splitlines()
    assert re.fullmatch(r"mine: failed after \d s", outcome)
    assert reason == "SampleGen: The replica workerpool0-0 exited with a non-zero status of 1."


def test_a_platform_that_is_away_for_a_while_does_not_end_the_watch(
    server: VertexServer, file: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.steps = [("SUCCEEDED", {"SampleGen": "SUCCEEDED"})]
    server.failures.append(Failure("GET", "/pipelineJobs/", 0, times=2))
    code, output, _ = run("submit", file, "--yes", "--wait")
    assert code == 0
    assert output.count("Vertex AI: cannot be reached; check the network and the region; trying again\n") == 1

    monkeypatch.setattr(following, "_PATIENCE", 0.0)
    server.failures.append(Failure("GET", "/pipelineJobs/", 0))
    code, _, errors = run("submit", file, "--yes", "--wait")
    assert code == 1
    assert "cannot be reached" in errors
    assert "; the run may go on: https://" in errors


def test_whose_credentials_lapse_is_told_where_the_run_is(server: VertexServer, file: str, run: Run) -> None:
    server.failures.append(Failure("GET", "/pipelineJobs/", 401))
    code, _, errors = run("submit", file, "--yes", "--wait")
    assert code == 2
    assert re.search("credentials are not accepted.*; the run may go on: https://", errors)
    assert errors.count("\n") == 1


def test_runs_are_listed_and_shown(server: VertexServer, file: str, run: Run) -> None:
    assert run("runs", file)[1] == "No runs yet; `submit` starts one\n"
    for name in ("first", "second"):
        run("submit", file, "--yes", "--name", name)
    job = last_job(server)
    code, output, _ = run("runs", file)
    assert code == 0
    assert [line.split()[1:3] for line in output.splitlines()] == [["second", "waiting"], ["first", "waiting"]]
    assert len(run("runs", file, "--limit", "1")[1].splitlines()) == 1

    server.steps = [("FAILED", {"SampleGen": "FAILED"})]
    code, output, _ = run("runs", file, job.name.rsplit("/", 1)[-1])
    assert code == 0
    head, task, reason, link = output.splitlines()
    assert head.startswith("second: failed, ")
    assert task.split()[:2] == ["SampleGen", "failed"]
    assert reason.startswith("SampleGen: The replica")
    assert link.startswith("https://")
    code, _, errors = run("runs", file, "nothing")
    assert code == 2
    assert "run nothing: there is none" in errors


def test_schedules(server: VertexServer, file: str, run: Run) -> None:
    assert run("schedule", "list", file)[1] == "No schedules; `schedule create` makes one\n"
    berlin = ["--cron", "0 3 * * MON", "--time-zone", "Europe/Berlin"]
    code, output, errors = run("schedule", "create", file, "weekly", *berlin, "--param", "epochs=3")
    assert (code, errors) == (0, "")
    assert "weekly: 0 3 * * 1 (Europe/Berlin), active\nnext: Mon " in output
    assert re.search(r"(Mon \d{4}-\d\d-\d\d 03:00 CES?T(, |\n)){3}", output)
    [schedule] = server.schedules.values()
    parameters = schedule.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values
    assert dict(parameters) == {"epochs": 3}

    code, _, errors = run("schedule", "create", file, "weekly", "--cron", "0 4 * * *")
    assert code == 2
    assert "schedule weekly: exists already; change it with `schedule update`" in errors
    assert run("schedule", "list", file)[1].split()[:8] == [
        "weekly",
        "0",
        "3",
        "*",
        "*",
        "1",
        "Europe/Berlin",
        "active",
    ]

    assert "weekly: 0 3 * * 1 (Europe/Berlin), paused\nhttps" in run("schedule", "pause", file, "weekly")[1]
    assert run("schedule", "list", file)[1].split()[7:] == ["paused"]
    assert "(Europe/Berlin), active\nnext: " in run("schedule", "resume", file, "weekly")[1]
    assert (
        "weekly: 30 4 * * * (UTC), active"
        in run("schedule", "update", file, "weekly", "--cron", "30 4 * * *", "--time-zone", "UTC")[1]
    )
    assert run("schedule", "update", file, "weekly", "--param", "epochs=5")[0] == 0
    assert dict(schedule.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values) == {"epochs": 5}
    assert run("schedule", "update", file, "weekly", "--pipeline")[0] == 0
    assert not schedule.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values
    assert schedule.cron == "TZ=UTC 30 4 * * *"

    schedule.cron = "@daily"  # by hand, in the console
    assert "weekly: @daily (UTC), active\nhttps" in run("schedule", "resume", file, "weekly")[1]

    code, output, _ = run("schedule", "delete", file, "weekly")
    assert (code, output) == (0, "Deleted: weekly\n")
    assert server.schedules == {}
    code, _, errors = run("schedule", "delete", file, "weekly")
    assert code == 2
    assert "schedule weekly: there is none of this name" in errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create", "FILE", "weekly", "--cron", "soon"], "--cron 'soon': expected five fields"),
        (["create", "FILE", "weekly", "--cron", "0 3 * * 1", "--time-zone", "Berlin"], "--time-zone 'Berlin': no such"),
        (["create", "FILE", "weekly", "--cron", "0 3 * * 1", "--param", "epochs=0"], "--param epochs=0: "),
        (["create", "FILE", "weekly"], "Missing option '--cron'"),
        (["update", "FILE", "weekly"], "schedule update: nothing to change; give --cron"),
    ],
)
def test_schedules_that_cannot_be(
    server: VertexServer, file: str, run: Run, arguments: list[str], expected: str
) -> None:
    code, _, errors = run("schedule", *(file if word == "FILE" else word for word in arguments))
    assert code == 2
    assert errors.startswith(f"umx-pro: error: {expected}")
    assert errors.count("\n") == 1
    assert server.requests == []


def test_a_file_for_kubeflow_goes_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kubeflow.__init__, "__kwdefaults__", {"timeout": 10, "patience": 0.2})
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    file = str(tmp_path / "umx_pro.yaml")
    compiled(platform="kubeflow", kubeflow_host=f"http://127.0.0.1:{port}").write(file)
    code, _, errors = run("runs", file)
    assert code == 1
    assert errors.startswith(f"umx-pro: failed: Kubeflow: http://127.0.0.1:{port} cannot be reached")
    times = ("--cron", "0 3 * * 1", "--time-zone", "Europe/Berlin")
    code, output, errors = run("schedule", "create", file, "weekly", *times, "--no-check")
    assert (code, output) == (2, "")
    assert "this Kubeflow keeps the time of UTC" in errors


class Terminal:
    """A command on a terminal."""

    def __init__(self, *arguments: str) -> None:
        pid, self._descriptor = pty.fork()
        if pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="100", TF_CPP_MIN_LOG_LEVEL="3")
            os.execv(sys.executable, [sys.executable, str(RUNNER), *arguments])
        self.pid = pid
        self.text = ""

    def read_until(self, pattern: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._descriptor], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._descriptor, 4096).decode()
                except OSError:  # closed: the command has ended
                    assert re.search(pattern, self.text), self.text

    def write(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def end(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._descriptor)
        return code


def test_on_a_terminal_one_is_asked_and_may_stop_watching(server: VertexServer, file: str) -> None:
    server.steps = [("RUNNING", {"SampleGen": "RUNNING"})]
    terminal = Terminal("submit", file, "--wait", "--name", "mine")
    terminal.read_until(r"Start the run\? \[y/N\]: ")
    assert server.jobs == {}
    terminal.write("y\n")
    terminal.read_until(r"SampleGen .*running.*[1-9] s")
    assert "Trainer" in terminal.text  # which has not started
    os.kill(terminal.pid, signal.SIGINT)
    terminal.read_until(r"umx-pro: no longer watched; the run goes on: https://\S+")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert len(server.jobs) == 1


def test_on_a_terminal_no_is_taken_for_an_answer(server: VertexServer, file: str) -> None:
    terminal = Terminal("submit", file)
    terminal.read_until(r"Start the run\? \[y/N\]: ")
    terminal.write("\n")
    terminal.read_until("Not submitted")
    assert terminal.end() == 1
    assert server.jobs == {}


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2025-06-18T12:00:00Z", "2025-06-18T12:00:59Z", "59 s"),
        ("2025-06-18T12:00:00Z", "2025-06-18T12:03:05Z", "3 min 05 s"),
        ("2025-06-18T12:00:00Z", "2025-06-19T13:03:05Z", "25 h 03 min"),
        ("2025-06-18T12:00:05Z", "2025-06-18T12:00:00Z", "0 s"),
        ("2999-06-18T12:00:05Z", "", "0 s"),
    ],
)
def test_elapsed(start: str, end: str, expected: str) -> None:
    assert following.elapsed(start, end) == expected
