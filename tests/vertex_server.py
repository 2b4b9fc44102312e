"""Vertex AI on loopback, as its REST API v1 answers for pipeline jobs and schedules; and, for what is looked at before
a run, buckets of Cloud Storage and images of Artifact Registry.

    with VertexServer().running() as server:
        server.buckets["bucket"] = Bucket("US-CENTRAL1", ["music/train/a/vocals.wav"])
        settings = CloudSettings(..., vertex_endpoint=server.address)
        server.failures.append(Failure("POST", "/pipelineJobs", 503, times=1))

Bodies are read with the client library's message types, and refused as Vertex AI does where a field is unknown.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from google.cloud import aiplatform_v1 as api

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_PARENT = r"/v1/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)"


@dataclass
class Bucket:
    """A bucket: where it is, and the names of what is in it."""

    location: str = "US-CENTRAL1"
    objects: list[str] = field(default_factory=list)
    placement: list[str] = field(default_factory=list)


@dataclass
class Failure:
    """An answer other than the right one, to the next `times` requests of a method whose path has a part.

    Attributes:
        status: of the answer; 0 for none at all, the connection is closed.
        reason: of Google's `ErrorInfo`.
        late: carry the request out all the same.
        exact: the path ends with the part.
    """

    method: str
    part: str
    status: int
    message: str = "it is said to be so"
    reason: str = ""
    times: int = 10**6
    late: bool = False
    exact: bool = False


class VertexServer(ThreadingHTTPServer):
    """Keeps jobs and schedules in memory.

    Attributes:
        projects: that exist.
        jobs: by resource name.
        schedules: likewise.
        buckets: by name.
        images: `PROJECT/PLACE/REPOSITORY/IMAGE:TAG` that Artifact Registry has.
        requests: method, path with query, and body of all that came.
        failures: to answer with; the first that fits counts.
        delay: seconds before each answer.
        steps: what becomes of the job each time that it is asked for: the job's state, and those of its tasks.
        page: how many items a list has at most.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.projects = {"a-project"}
        self.jobs: dict[str, api.PipelineJob] = {}
        self.schedules: dict[str, api.Schedule] = {}
        self.buckets: dict[str, Bucket] = {}
        self.images: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        self.failures: list[Failure] = []
        self.delay = 0.0
        self.steps: list[tuple[str, dict[str, str]]] = []
        self.page = 2
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[VertexServer]:
        """Answer requests while the block runs."""
        with self:
            threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
            yield self
            self.shutdown()

    def bodies(self, method: str, part: str) -> list[str]:
        """Return the bodies of requests of a method whose path has a part."""
        return [body for verb, path, body in self.requests if verb == method and part in path]

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: VertexServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = urlsplit(self.path)
        with self.server.lock:
            self.server.requests.append((self.command, self.path, body))
            failure = next((one for one in self.server.failures if self._fits(one)), None)
            if failure is not None:
                failure.times -= 1
        time.sleep(self.server.delay)
        try:
            with self.server.lock:
                if failure is None or failure.late:
                    content = self._route(parts.path, parse_qs(parts.query), body)
            if failure is not None:
                if failure.status == 0:
                    self.close_connection = True
                    return
                raise _Refused(failure.status, failure.message, failure.reason)
            self._send(200, content)
        except _Refused as refusal:
            self._send(refusal.status, json.dumps({"error": _error(refusal)}))

    do_GET = do_POST = do_PATCH = do_DELETE = _respond  # noqa: N815

    def _fits(self, failure: Failure) -> bool:
        found = self.path.endswith(failure.part) if failure.exact else failure.part in self.path
        return failure.times > 0 and failure.method == self.command and found

    def _send(self, status: int, content: str) -> None:
        encoded = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def _route(self, path: str, query: dict[str, list[str]], body: str) -> str:
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                project = found.groupdict().get("project")
                if project and project not in self.server.projects:
                    raise _Refused(403, f"Permission denied on resource project {project}.", "CONSUMER_INVALID")
                return str(answer(self.server, found, {name: values[0] for name, values in query.items()}, body))
        raise _Refused(404, f"{self.command} {path} is not served here")


def _error(refusal: _Refused) -> dict[str, Any]:
    details = []
    if refusal.reason:
        info = "type.googleapis.com/google.rpc.ErrorInfo"
        details = [{"@type": info, "reason": refusal.reason, "domain": "googleapis.com", "metadata": {}}]
    status = _STATUS[refusal.status]
    return {"code": refusal.status, "message": str(refusal), "status": status, "details": details}


def _parse(kind: Any, body: str) -> Any:
    try:
        return kind.from_json(body, ignore_unknown_fields=False)
    except Exception as error:
        raise _Refused(400, f"Invalid JSON payload received. {error}") from None


def _now() -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}.{time.time_ns() % 10**9 // 1000:06d}Z"


def _check_job(job: Any) -> None:
    spec = dict(type(job).to_dict(job)["pipeline_spec"])
    definitions = spec["root"]["inputDefinitions"]["parameters"]
    unknown = set(job.runtime_config.parameter_values) - set(definitions)
    if unknown:
        raise _Refused(400, f"Unknown parameters: {sorted(unknown)}")
    if not job.runtime_config.gcs_output_directory.startswith("gs://"):
        raise _Refused(400, "runtime_config.gcs_output_directory must be a Cloud Storage path")


def _create_job(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    job = _parse(api.PipelineJob, body)
    _check_job(job)
    job.name = f"{found[0].removeprefix('/v1/')}/{query['pipelineJobId']}"
    if job.name in server.jobs:
        raise _Refused(409, f"{job.name} already exists")
    job.state = "PIPELINE_STATE_PENDING"
    job.create_time = _now()
    server.jobs[job.name] = job
    return api.PipelineJob.to_json(job)


def _get_job(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    job = _known(server.jobs, found)
    if server.steps:
        state, tasks = server.steps.pop(0) if len(server.steps) > 1 else server.steps[0]
        job.state = f"PIPELINE_STATE_{state}"
        earlier = {detail.task_name: detail for detail in job.job_detail.task_details}
        # Vertex AI counts the pipeline itself as a task, too.
        job.job_detail.task_details = [
            _task(name, state, earlier.get(name)) for name, state in {job.display_name: "RUNNING", **tasks}.items()
        ]
        if state in ("SUCCEEDED", "FAILED", "CANCELLED"):
            job.end_time = _now()
        if state == "FAILED":
            job.error.message = "The DAG failed because some tasks failed."
    return api.PipelineJob.to_json(job)


def _task(name: str, state: str, earlier: Any) -> Any:
    detail = earlier or api.PipelineTaskDetail(task_name=name, create_time=_now(), start_time=_now())
    detail.state = state
    if state in ("SUCCEEDED", "FAILED", "SKIPPED") and not detail.end_time:
        detail.end_time = _now()
    if state == "FAILED":
        detail.error.message = "The replica workerpool0-0 exited with a non-zero status of 1."
    return detail


def _list_jobs(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    labels = dict(re.findall(r'labels\.(\S+)="([^"]*)"', query.get("filter", "")))
    jobs = [job for job in server.jobs.values() if labels.items() <= dict(job.labels).items()]
    jobs.sort(key=lambda job: job.create_time)
    if query.get("orderBy") == "create_time desc":
        jobs.reverse()  # those of one moment, too
    return _page(server, api.ListPipelineJobsResponse, "pipeline_jobs", jobs, query)


def _create_schedule(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    schedule = _parse(api.Schedule, body)
    _check_schedule(schedule)
    schedule.name = f"{found[0].removeprefix('/v1/')}/{1000 + len(server.schedules)}"
    schedule.state = "ACTIVE"
    schedule.create_time = schedule.next_run_time = _now()
    server.schedules[schedule.name] = schedule
    return api.Schedule.to_json(schedule)


def _check_schedule(schedule: Any) -> None:
    if not re.fullmatch(r"((CRON_)?TZ=\S+ )?(\S+ ){4}\S+", schedule.cron):
        raise _Refused(400, f"Invalid cron: {schedule.cron}")
    if schedule.max_concurrent_run_count < 1:
        raise _Refused(400, "max_concurrent_run_count must be positive")
    _check_job(schedule.create_pipeline_job_request.pipeline_job)


def _list_schedules(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    return _page(server, api.ListSchedulesResponse, "schedules", list(server.schedules.values()), query)


def _get_schedule(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    return api.Schedule.to_json(_known(server.schedules, found))


def _pause(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    _known(server.schedules, found).state = "PAUSED"
    return "{}"


def _resume(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    if _parse(api.ResumeScheduleRequest, body).catch_up:
        raise _Refused(400, "this would start all that was missed")
    _known(server.schedules, found).state = "ACTIVE"
    return "{}"


def _update(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    known, changed = _known(server.schedules, found), _parse(api.Schedule, body)
    for path in query["updateMask"].split(","):
        name = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", path)
        setattr(known, name, getattr(changed, name))
    _check_schedule(known)
    return api.Schedule.to_json(known)


def _delete(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    name = _known(server.schedules, found).name
    # It goes a moment later.
    threading.Timer(0.3, server.schedules.pop, [name, None]).start()
    return json.dumps({"name": f"{name.rsplit('/', 2)[0]}/operations/7", "done": False})


def _bucket(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    bucket = _known_bucket(server, found)
    content: dict[str, Any] = {"kind": "storage#bucket", "name": found["bucket"], "location": bucket.location}
    if bucket.placement:
        content["customPlacementConfig"] = {"dataLocations": bucket.placement}
    return json.dumps(content)


def _objects(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    names = [name for name in _known_bucket(server, found).objects if name.startswith(query.get("prefix", ""))]
    content: dict[str, Any] = {"kind": "storage#objects"}
    if names:
        content["items"] = [{"name": name} for name in names[: int(query.get("maxResults", "1000"))]]
    return json.dumps(content)


def _image(server: VertexServer, found: re.Match[str], query: dict[str, str], body: str) -> str:
    name = f"{found['project']}/{found['region']}/{found['repository']}/{unquote(found['image'])}{found['version']}"
    tag = name.replace("/tags/", ":").replace("/versions/", "@")
    if tag not in server.images:
        raise _Refused(404, "Requested entity was not found.")
    return json.dumps({"name": found[0].removeprefix("/v1/")})


def _known(resources: dict[str, Any], found: re.Match[str]) -> Any:
    name = found["name"]
    if name not in resources:
        raise _Refused(404, f"{name} is not found.")
    return resources[name]


def _known_bucket(server: VertexServer, found: re.Match[str]) -> Bucket:
    if found["bucket"] not in server.buckets:
        raise _Refused(404, "The specified bucket does not exist.")
    return server.buckets[found["bucket"]]


def _page(server: VertexServer, kind: Any, items: str, resources: list[Any], query: dict[str, str]) -> str:
    start = int(query.get("pageToken", "0"))
    end = start + min(server.page, int(query.get("pageSize", "100")))
    token = str(end) if end < len(resources) else ""
    return str(kind.to_json(kind(**{items: resources[start:end], "next_page_token": token})))


_JOB = rf"/v1/(?P<name>{_PARENT.removeprefix('/v1/')}/pipelineJobs/[^/:]+)"
_SCHEDULE = rf"/v1/(?P<name>{_PARENT.removeprefix('/v1/')}/schedules/[^/:]+)"
_ROUTES = (
    ("POST", rf"{_PARENT}/pipelineJobs", _create_job),
    ("GET", rf"{_PARENT}/pipelineJobs", _list_jobs),
    ("GET", _JOB, _get_job),
    ("POST", rf"{_PARENT}/schedules", _create_schedule),
    ("GET", rf"{_PARENT}/schedules", _list_schedules),
    ("GET", _SCHEDULE, _get_schedule),
    ("PATCH", _SCHEDULE, _update),
    ("DELETE", _SCHEDULE, _delete),
    ("POST", rf"{_SCHEDULE}:pause", _pause),
    ("POST", rf"{_SCHEDULE}:resume", _resume),
    ("GET", r"/storage/v1/b/(?P<bucket>[^/]+)", _bucket),
    ("GET", r"/storage/v1/b/(?P<bucket>[^/]+)/o", _objects),
    (
        "GET",
        rf"{_PARENT}/repositories/(?P<repository>[^/]+)/packages/(?P<image>[^/]+)(?P<version>/(tags|versions)/[^/]+)",
        _image,
    ),
)
