"""Vertex AI over the wire: the real client library against a server on loopback that answers as Vertex AI does."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google.oauth2.credentials
import pytest
from google.cloud import aiplatform_v1 as api
from vertex_server import Bucket, Failure, VertexServer

from pipeline.remote import RemoteError
from pipeline.vertex import Vertex
from tests.pipeline.compiled_pipelines import compiled, settings
from umx_model.errors import InputError

PARENT = "projects/a-project/locations/us-central1"
IMAGE = "a-project/us-central1/images/umx-pro:1"
DATA, DESTINATION = "gs://bucket/music", "gs://bucket/root/serving"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    with VertexServer().running() as server:
        server.buckets["bucket"] = Bucket(objects=["music/train/a/vocals.wav"])
        server.images.add(IMAGE)
        yield server


@pytest.fixture
def vertex(server: VertexServer) -> Vertex:
    return connect(server)


def connect(server: VertexServer, timeout: float = 10, patience: float = 0.3, **changes: Any) -> Vertex:
    return Vertex(settings(vertex_endpoint=server.address, **changes), timeout=timeout, patience=patience)


def sent(server: VertexServer, method: str, part: str, kind: Any) -> Any:
    """Return the last body of such a request, as the client library's message."""
    return kind.from_json(server.bodies(method, part)[-1], ignore_unknown_fields=False)


def test_a_run_is_asked_for_as_vertex_ai_wants_it(server: VertexServer) -> None:
    pipeline = compiled()
    vertex = connect(server, service_account="runner@a-project.iam.gserviceaccount.com")
    run = vertex.submit(pipeline.with_cache(index=True), {"epochs": 3, "warm_start": True, "floor_db": "1.5"}, "mine")
    job = sent(server, "POST", "/pipelineJobs", api.PipelineJob)
    assert job.display_name == "mine"
    assert dict(job.labels) == {"pipeline": "umx-pro"}
    assert job.service_account == "runner@a-project.iam.gserviceaccount.com"
    assert job.runtime_config.gcs_output_directory == "gs://bucket/root"
    assert dict(job.runtime_config.parameter_values) == {"epochs": 3, "warm_start": True, "floor_db": "1.5"}
    spec = json.loads(server.bodies("POST", "/pipelineJobs")[0])["pipelineSpec"]
    assert spec == pipeline.with_cache(index=True).spec
    [(_, path, _)] = server.requests
    assert re.search(r"pipelineJobId=umx-pro-\d{14}-[0-9a-f]{4}(&|$)", path)

    assert run.state == "waiting"
    assert run.name == "mine"
    page = "https://console.cloud.google.com/vertex-ai/locations/us-central1/pipelines/runs"
    assert run.link == f"{page}/{run.id}?project=a-project"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run.created)
    assert vertex.find_run(run.id) == run


def test_a_run_without_a_name_has_its_id(vertex: Vertex) -> None:
    run = vertex.submit(compiled(), {}, "")
    assert run.name == run.id


def test_what_becomes_of_a_run(server: VertexServer, vertex: Vertex) -> None:
    run = vertex.submit(compiled(), {}, "mine")
    server.steps = [
        ("RUNNING", {}),
        ("RUNNING", {"SampleGen": "PENDING"}),
        ("RUNNING", {"SampleGen": "RUNNING"}),
        ("FAILED", {"SampleGen": "FAILED"}),
    ]
    states = []
    for _ in range(4):
        run = vertex.find_run(run.id)
        states.append((run.state, [(task.name, task.state) for task in run.tasks]))
    assert states == [
        ("running", []),
        ("running", [("SampleGen", "waiting")]),
        ("running", [("SampleGen", "running")]),
        ("failed", [("SampleGen", "failed")]),
    ]
    assert run.message == "The DAG failed because some tasks failed."
    [task] = run.tasks
    assert task.message == "The replica workerpool0-0 exited with a non-zero status of 1."
    assert task.started
    assert task.ended
    assert run.ended


def test_a_task_that_was_done_before_succeeded(server: VertexServer, vertex: Vertex) -> None:
    run = vertex.submit(compiled(), {}, "mine")
    server.steps = [("SUCCEEDED", {"SampleGen": "SKIPPED"})]
    assert [task.state for task in vertex.find_run(run.id).tasks] == ["succeeded"]
    server.steps = [("FAILED", {"SampleGen": "NOT_TRIGGERED"})]
    assert vertex.find_run(run.id).tasks == ()  # has not started


def test_runs_of_others_are_not_listed(server: VertexServer, vertex: Vertex) -> None:
    names = [vertex.submit(compiled(), {}, f"run {number}").name for number in range(5)]
    other = api.PipelineJob(name=f"{PARENT}/pipelineJobs/other", display_name="other")
    server.jobs[other.name] = other
    listed = vertex.list_runs()
    assert [run.name for run in listed] == names[::-1]
    assert [run.name for run in vertex.list_runs(3)] == names[:1:-1]
    path = next(path for method, path, _ in server.requests if method == "GET")
    assert "readMask=name%2CdisplayName" in path


def test_a_schedule_never_runs_from_the_cache_nor_twice_at_once(server: VertexServer, vertex: Vertex) -> None:
    pipeline = compiled().with_cache(index=True)
    created = vertex.create_schedule(pipeline, {"epochs": 3}, "weekly", "0 3 * * MON", "Europe/Berlin")
    schedule = sent(server, "POST", "/schedules", api.Schedule)
    assert schedule.display_name == "weekly"
    assert schedule.cron == "TZ=Europe/Berlin 0 3 * * 1"
    assert schedule.max_concurrent_run_count == 1
    assert not schedule.allow_queueing
    assert not schedule.catch_up
    asked = schedule.create_pipeline_job_request
    assert asked.parent == PARENT
    assert dict(asked.pipeline_job.labels) == {"pipeline": "umx-pro"}
    assert dict(asked.pipeline_job.runtime_config.parameter_values) == {"epochs": 3}
    spec = api.PipelineJob.to_dict(asked.pipeline_job)["pipeline_spec"]
    assert [task["cachingOptions"] for task in spec["root"]["dag"]["tasks"].values()] == [{"enableCache": False}]
    assert pipeline == compiled().with_cache(index=True)

    assert (created.name, created.cron, created.time_zone) == ("weekly", "0 3 * * 1", "Europe/Berlin")
    assert created.active
    assert created.next_run
    assert created.link.endswith(f"/pipelines/schedules/{created.id}?project=a-project")
    assert vertex.list_schedules() == [created]


def test_a_schedule_that_exists_is_refused_before_anything_is_sent(server: VertexServer, vertex: Vertex) -> None:
    for name in ("one", "two", "three"):  # more than a page
        vertex.create_schedule(compiled(), {}, name, "0 3 * * 1", "UTC")
    with pytest.raises(InputError, match="^schedule three: exists already; change it with `schedule update`"):
        vertex.create_schedule(compiled(), {}, "three", "0 4 * * 1", "UTC")
    assert len(server.bodies("POST", "/schedules")) == 3


def test_schedules_of_others_are_left_alone(server: VertexServer, vertex: Vertex) -> None:
    other = api.Schedule(
        name="projects/a-project/locations/us-central1/schedules/1", display_name="weekly", cron="@daily"
    )
    server.schedules[other.name] = other
    assert vertex.list_schedules() == []
    with pytest.raises(InputError, match="^schedule weekly: there is none of this name in .*; there are none$"):
        vertex.delete_schedule("weekly")
    vertex.create_schedule(compiled(), {}, "weekly", "0 3 * * 1", "UTC")
    vertex.delete_schedule("weekly")
    assert list(server.schedules.values()) == [other]


def test_a_schedule_is_paused_and_resumed_without_catching_up(server: VertexServer, vertex: Vertex) -> None:
    vertex.create_schedule(compiled(), {}, "weekly", "0 3 * * 1", "UTC")
    paused = vertex.pause_schedule("weekly")
    assert not paused.active
    assert not paused.next_run
    assert vertex.list_schedules() == [paused]
    assert vertex.resume_schedule("weekly").active
    assert not sent(server, "POST", ":resume", api.ResumeScheduleRequest).catch_up


def test_a_schedule_is_changed_in_what_is_named(server: VertexServer, vertex: Vertex) -> None:
    vertex.create_schedule(compiled(), {"epochs": 3}, "weekly", "0 3 * * 1", "Europe/Berlin")
    changed = vertex.update_schedule("weekly", "30 4 * * *", None, None, None)
    assert (changed.cron, changed.time_zone) == ("30 4 * * *", "Europe/Berlin")
    changed = vertex.update_schedule("weekly", None, "Asia/Tokyo", None, None)
    assert (changed.cron, changed.time_zone) == ("30 4 * * *", "Asia/Tokyo")
    [schedule] = server.schedules.values()
    assert dict(schedule.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values) == {"epochs": 3}

    vertex.update_schedule("weekly", None, None, compiled().with_cache(index=True), {"epochs": 5})
    job = schedule.create_pipeline_job_request.pipeline_job
    assert dict(job.runtime_config.parameter_values) == {"epochs": 5}
    [task] = api.PipelineJob.to_dict(job)["pipeline_spec"]["root"]["dag"]["tasks"].values()
    assert task["cachingOptions"] == {"enableCache": False}
    assert schedule.cron == "TZ=Asia/Tokyo 30 4 * * *"
    with pytest.raises(InputError, match="five fields"):
        vertex.update_schedule("weekly", "", None, None, None)


FORBIDDEN = "Permission 'aiplatform.pipelineJobs.create' denied on resource."


@pytest.mark.parametrize(
    ("failure", "kind", "expected"),
    [
        (
            Failure("POST", "", 401),
            InputError,
            "not accepted, or no longer; run `gcloud auth application-default login`",
        ),
        (
            Failure("POST", "", 403, FORBIDDEN, "IAM_PERMISSION_DENIED"),
            InputError,
            "^Vertex AI: no permission in project a-project; ask for the role roles/aiplatform.user .*Jobs.create",
        ),
        (
            Failure("POST", "", 403, "You may not act as service account x (iam.serviceAccounts.actAs)"),
            InputError,
            "ask for roles/iam.serviceAccountUser",
        ),
        (
            Failure("POST", "", 403, "Vertex AI API has not been used", "SERVICE_DISABLED"),
            InputError,
            "not enabled in project a-project; run `gcloud services enable aiplatform.* --project a-project`",
        ),
        (
            Failure("POST", "", 403, "?", "CONSUMER_INVALID"),
            InputError,
            "^project a-project: no such project; ",
        ),
        (Failure("POST", "", 404), InputError, "there is no project a-project with region us-central1; compile with"),
        (Failure("POST", "", 400, "Bad\n  machine"), InputError, "^Vertex AI refuses: Bad machine$"),
        (Failure("POST", "", 429, "Quota exceeded"), RemoteError, "too many requests, or a quota .*Quota exceeded"),
        (
            Failure("POST", "", 500, "Internal"),
            RemoteError,
            "^Vertex AI failed: Internal; try again later; `runs` shows whether umx-",
        ),
        (Failure("POST", "", 503, "x" * 1000), RemoteError, "^Vertex AI failed: x{300}...; try again later; "),
        (
            Failure("POST", "", 0),
            RemoteError,
            "^Vertex AI: cannot be reached; check the network and the region; ",
        ),
    ],
)
def test_a_failure_is_one_line(
    server: VertexServer, vertex: Vertex, failure: Failure, kind: type[Exception], expected: str
) -> None:
    # Failures are counted down, and parameters are shared between tests.
    server.failures.append(dataclasses.replace(failure))
    with pytest.raises(kind, match=expected) as refusal:
        vertex.submit(compiled(), {}, "mine")
    assert "\n" not in str(refusal.value)
    assert server.address not in str(refusal.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overload_is_waited_out(server: VertexServer, status: int) -> None:
    server.failures.append(Failure("POST", "/pipelineJobs", status, times=2))
    run = connect(server, patience=4).submit(compiled(), {}, "mine")
    assert run.name == "mine"
    assert len(server.bodies("POST", "/pipelineJobs")) == 3


def test_a_repeated_request_makes_no_second_run(server: VertexServer) -> None:
    server.failures.append(Failure("POST", "/pipelineJobs", 503, times=1, late=True))
    run = connect(server, patience=4).submit(compiled(), {}, "mine")
    assert run.name == "mine"
    assert len(server.bodies("POST", "/pipelineJobs")) == 2
    assert len(server.jobs) == 1


def test_a_schedule_is_not_asked_for_again_when_it_may_be_there(server: VertexServer) -> None:
    server.failures.append(Failure("POST", "/schedules", 503, times=1, late=True))
    vertex = connect(server, patience=4)
    with pytest.raises(RemoteError, match="try again later, and look first whether it was done all the same"):
        vertex.create_schedule(compiled(), {}, "weekly", "0 3 * * 1", "UTC")
    assert len(server.schedules) == 1
    server.failures.append(Failure("POST", "/schedules", 429, times=1))
    vertex.create_schedule(compiled(), {}, "daily", "0 3 * * *", "UTC")
    assert len(server.schedules) == 2


def test_a_slow_server_is_given_up_on(server: VertexServer) -> None:
    server.delay = 2
    start = time.monotonic()
    with pytest.raises(RemoteError, match="^Vertex AI: no answer within 0.3 s; check the network"):
        connect(server, timeout=0.3, patience=5).list_runs()
    assert time.monotonic() - start < 1.5


def test_no_server(server: VertexServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(RemoteError, match="^Vertex AI: cannot be reached"):
        Vertex(settings(vertex_endpoint=f"http://127.0.0.1:{port}"), patience=0.3).list_runs()


@pytest.mark.parametrize("run", ["nothing", "", "some/thing", "any thing", "../x"])
def test_a_run_that_is_not_there(vertex: Vertex, run: str) -> None:
    with pytest.raises(InputError, match=f"^run {run}: there is none in {PARENT}; `runs`"):
        vertex.find_run(run)


def test_no_project_is_named() -> None:
    with pytest.raises(InputError, match="^project: none named; compile with --project"):
        Vertex(settings(project=""))


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    [problem] = Vertex(settings()).check(DATA, DESTINATION)
    assert problem.startswith("Google Cloud: no credentials; run `gcloud auth application-default login`")


def test_credentials_that_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    for content in (None, "{"):
        if content is not None:
            key.write_text(content)
        [problem] = Vertex(settings()).check(DATA, DESTINATION)
        assert problem.startswith(f"GOOGLE_APPLICATION_CREDENTIALS={key}: no usable key (")
        assert "\n" not in problem


def test_credentials_that_have_lapsed(server: VertexServer) -> None:
    server.failures.append(Failure("GET", "", 401))
    lapsed = google.oauth2.credentials.Credentials(token="old")
    [problem] = Vertex(settings(vertex_endpoint=server.address), lapsed).check(DATA, DESTINATION)
    assert "not accepted, or no longer; run `gcloud auth application-default login`" in problem


def test_nothing_stands_in_the_way(server: VertexServer, vertex: Vertex) -> None:
    assert vertex.check(DATA, DESTINATION) == []
    assert vertex.check("https://music.example.com/stems", DESTINATION) == []
    assert {method for method, _, _ in server.requests} == {"GET"}


def test_what_vertex_ai_cannot_reach_is_refused(vertex: Vertex) -> None:
    problems = vertex.check("music", "/srv/serving")
    assert [problem.split(";")[0] for problem in problems] == [
        "data: music is no place that Vertex AI can read",
        "push_destination: /srv/serving is no place that Vertex AI can write to",
    ]


def no_bucket(server: VertexServer) -> None:
    server.buckets.clear()


def no_music(server: VertexServer) -> None:
    server.buckets["bucket"].objects = ["musical/train/a/vocals.wav"]


def not_allowed(server: VertexServer) -> None:
    server.failures.append(Failure("GET", "/b/bucket/o", 403, "no storage.objects.list access", times=1))


def in_europe(server: VertexServer) -> None:
    server.buckets["bucket"].location = "EUROPE-WEST4"


def no_image(server: VertexServer) -> None:
    server.images.clear()


def no_registry(server: VertexServer) -> None:
    server.failures.append(Failure("GET", "/repositories/", 403, "denied"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            no_bucket,
            "pipeline_root, data, push_destination: there is no bucket gs://bucket; create it with "
            "`gcloud storage buckets create gs://bucket --location=us-central1`, or name another",
        ),
        (no_music, "data: gs://bucket/music has no files; expected a database with train/ and valid/"),
        (
            not_allowed,
            "pipeline_root, data, push_destination: gs://bucket: Cloud Storage: no permission in project a-project; "
            "ask for the role roles/storage.objectAdmin (no storage.objects.list access)",
        ),
        (
            in_europe,
            "pipeline_root, data, push_destination: gs://bucket is in europe-west4, and the run in us-central1: "
            "reading would be slow and cost extra; use a bucket in us-central1, or compile with --region of the bucket",
        ),
        (
            no_image,
            "image: there is no us-central1-docker.pkg.dev/a-project/images/umx-pro:1; push it (`docker push "
            "us-central1-docker.pkg.dev/a-project/images/umx-pro:1`), or compile with another --image",
        ),
        (
            no_registry,
            "image: us-central1-docker.pkg.dev/a-project/images/umx-pro:1: Artifact Registry: no permission in project "
            "a-project; ask for the role roles/artifactregistry.reader (denied)",
        ),
    ],
)
def test_what_stands_in_the_way_is_one_line(
    server: VertexServer, vertex: Vertex, change: Callable[[VertexServer], None], expected: str
) -> None:
    change(server)
    assert vertex.check(DATA, DESTINATION) == [expected]


def test_a_project_that_is_not_there_ends_the_check(server: VertexServer) -> None:
    server.buckets.clear()
    problems = connect(server, project="b-project").check(DATA, DESTINATION)
    assert problems == ["project b-project: no such project; expected an id from `gcloud projects list`"]


@pytest.mark.parametrize(
    ("location", "placement", "region", "near"),
    [
        ("US", [], "us-central1", True),
        ("EU", [], "us-central1", False),
        ("EU", [], "europe-west4", True),
        ("EU", [], "europe-west2", False),  # London
        ("NAM4", [], "us-east1", True),
        ("NAM4", [], "us-west1", False),
        ("US", ["US-EAST1", "US-WEST1"], "us-west1", True),
        ("US", ["US-EAST1", "US-WEST1"], "us-central1", False),
        ("US-CENTRAL1", [], "us-central1", True),
    ],
)
def test_buckets_in_more_than_one_region(
    server: VertexServer, location: str, placement: list[str], region: str, near: bool
) -> None:
    server.buckets["bucket"].location, server.buckets["bucket"].placement = location, placement
    assert (connect(server, region=region).check(DATA, DESTINATION) == []) is near


def test_who_may_not_ask_where_a_bucket_is_may_still_use_it(server: VertexServer, vertex: Vertex) -> None:
    server.buckets["bucket"].location = "EU"
    server.failures.append(Failure("GET", "/b/bucket", 403, exact=True))
    assert vertex.check(DATA, DESTINATION) == []


@pytest.mark.parametrize(
    ("image", "known", "expected"),
    [
        ("us-docker.pkg.dev/a-project/images/group/umx-pro:1", "a-project/us/images/group/umx-pro:1", ""),
        ("us-docker.pkg.dev/a-project/images/umx-pro", "a-project/us/images/umx-pro:latest", ""),
        ("us-docker.pkg.dev/a-project/images/umx-pro@sha256:ab", "a-project/us/images/umx-pro@sha256:ab", ""),
        ("us-docker.pkg.dev/a-project/images/umx-pro:1@sha256:ab", "a-project/us/images/umx-pro@sha256:ab", ""),
        ("us-docker.pkg.dev/a-project/umx-pro:1", "", "is no image; expected REGION-docker.pkg.dev/PROJECT"),
        ("ghcr.io/somebody/umx-pro:1", "", ""),
    ],
)
def test_names_of_images(server: VertexServer, image: str, known: str, expected: str) -> None:
    server.images = {known}
    problems = connect(server, image=image).check(DATA, DESTINATION)
    assert problems == [] if not expected else expected in problems[0]


def test_the_trainers_image_is_looked_for_too(server: VertexServer) -> None:
    gpu = "us-central1-docker.pkg.dev/a-project/images/umx-pro:gpu"
    machines = {"Trainer": {"gpu": "NVIDIA_TESLA_T4", "gpus": 1}}
    [problem] = connect(server, gpu_image=gpu, machines=machines).check(DATA, DESTINATION)
    assert problem.startswith(f"image: there is no {gpu};")


def test_storage_may_be_somewhere_else(server: VertexServer, vertex: Vertex, monkeypatch: pytest.MonkeyPatch) -> None:
    with VertexServer().running() as elsewhere:
        elsewhere.buckets["bucket"] = server.buckets.pop("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", elsewhere.address)
        assert vertex.check(DATA, DESTINATION) == []
