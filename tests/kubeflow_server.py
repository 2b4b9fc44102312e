"""Kubeflow Pipelines on loopback, as its REST API v2beta1 answers for experiments, runs and recurring runs.

    with KubeflowServer().running() as server:
        settings = CloudSettings(..., kubeflow_host=server.address)
        server.failures.append(Failure("POST", "/runs", 503, times=1))

What it answers is that of backend/src/apiserver in https://github.com/kubeflow/pipelines: `server` for what is
refused, `server/api_converter.go` for what comes back, `common/util/error.go` for errors.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api

# HTTP's status to that of gRPC, as grpc-gateway has them.
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 503: 14}
_LOGIN_PAGE = "<!doctype html><title>Log in to Your Account</title>"
_API = "/pipeline/apis/v2beta1"


@dataclass
class Failure:
    """An answer other than the right one, to the next `times` requests of a method whose path has a part.

    Attributes:
        status: of the answer; 0 for none at all, the connection is closed.
        page: answer with a web page.
        late: carry the request out all the same.
    """

    method: str
    part: str
    status: int
    message: str = "it is said to be so"
    times: int = 10**6
    page: bool = False
    late: bool = False


class KubeflowServer(ThreadingHTTPServer):
    """Keeps experiments, runs and recurring runs in memory.

    Attributes:
        experiments: by id, as the API has them; likewise runs and schedules.
        requests: method, path with query, and body of all that came.
        authorization: header that requests need; none if empty.
        cookie: likewise.
        failures: to answer with; the first that fits counts.
        delay: seconds before each answer.
        page: how many items a list has at most.
        state: of new runs.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/pipeline"
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.authorization = self.cookie = ""
        self.failures: list[Failure] = []
        self.delay = 0.0
        self.page = 2
        self.state = "PENDING"
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[KubeflowServer]:
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


def read(kind: str, body: str) -> Any:
    """Read a body as a message of the client library, which must know all of its fields."""

    class Response:
        data = body

    message = api.ApiClient().deserialize(Response, kind)
    unknown = set(json.loads(body)) - set(message.attribute_map.values())
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    return message


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: KubeflowServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        server = self.server
        with server.lock:
            server.requests.append((self.command, self.path, body))
            fits = (
                one for one in server.failures if one.times and one.method == self.command and one.part in self.path
            )
            failure = next(fits, None)
            if failure is not None:
                failure.times -= 1
        time.sleep(server.delay)
        try:
            with server.lock:
                if failure is None or failure.late:
                    content = self._route(body)
            if failure is None:
                self._send(200, json.dumps(content))
            elif failure.status == 0:
                self.close_connection = True
            elif failure.page:
                self._send(failure.status, _LOGIN_PAGE, "text/html; charset=utf-8")
            else:
                raise _Refused(failure.status, failure.message)
        except _Refused as refusal:
            message, code = str(refusal), _CODES[refusal.status]
            details = [{"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": message}]
            error = {"error": message, "code": code, "message": message, "details": details}
            self._send(refusal.status, json.dumps(error))

    do_GET = do_POST = do_DELETE = _respond  # noqa: N815

    def _send(self, status: int, content: str, kind: str = "application/json") -> None:
        encoded = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def _route(self, body: str) -> dict[str, Any]:
        server = self.server
        for wanted, header in ((server.authorization, "Authorization"), (server.cookie, "Cookie")):
            if wanted and self.headers.get(header) != wanted:
                raise _Refused(401, "Request header error: there is no user identity header.")
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(_API + pattern, parts.path)
            if found and method == self.command:
                answered: dict[str, Any] = answer(server, found, query, body)
                return answered
        raise _Refused(404, "Not Found")


def _parse(kind: str, body: str) -> dict[str, Any]:
    try:
        read(kind, body)
    except Exception as error:
        raise _Refused(400, f"proto: syntax error: {error}") from None
    parsed: dict[str, Any] = json.loads(body)
    return parsed


def _now() -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}.{time.time_ns() % 10**9 // 1000:06d}Z"


def _healthz(*_: Any) -> dict[str, Any]:
    return {"multi_user": True}


def _create_experiment(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    experiment = _parse("V2beta1Experiment", body)
    name = experiment["display_name"]
    if any(known["display_name"] == name for known in server.experiments.values()):
        raise _Refused(409, f"Already exist error: Failed to create a new experiment. The name {name} already exists.")
    return _add(server.experiments, experiment, "experiment_id")


def _list_experiments(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    [predicate] = json.loads(query["filter"])["predicates"]
    assert (predicate["operation"], predicate["key"]) == (1, "display_name")  # EQUALS
    named = [one for one in server.experiments.values() if one["display_name"] == predicate["stringValue"]]
    return {"experiments": [one for one in named if one.get("namespace") == query["namespace"]]}


def _check(server: KubeflowServer, asked: dict[str, Any]) -> None:
    if asked["experiment_id"] not in server.experiments:
        raise _Refused(404, f"Experiment {asked['experiment_id']} not found.")
    spec = asked["pipeline_spec"].get("pipeline_spec", asked["pipeline_spec"])
    unknown = set(asked["runtime_config"].get("parameters", {})) - set(spec["root"]["inputDefinitions"]["parameters"])
    if unknown:
        raise _Refused(400, f"Invalid input error: unknown parameters {sorted(unknown)}")


def _create_run(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    run = _parse("V2beta1Run", body)
    _check(server, run)
    # What has not ended yet did so in 1970.
    return _add(server.runs, {**run, "state": server.state, "finished_at": "1970-01-01T00:00:00Z"}, "run_id")


def _create_schedule(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    schedule = _parse("V2beta1RecurringRun", body)
    _check(server, schedule)
    cron = schedule["trigger"]["cron_schedule"]["cron"]
    if len(cron.split()) != 6:
        raise _Refused(400, f"Invalid input error: Schedule cron is not a supported format: {cron}")
    if not 1 <= int(schedule["max_concurrency"]) <= 10:
        raise _Refused(400, "Invalid input error: The max concurrency of the job must be in range [1, 10].")
    # The controller has not seen it yet.
    return _add(server.schedules, {**schedule, "status": "STATUS_UNSPECIFIED"}, "recurring_run_id")


def _add(known: dict[str, dict[str, Any]], item: dict[str, Any], key: str) -> dict[str, Any]:
    item = {**item, key: str(uuid.uuid4()), "created_at": _now()}
    known[item[key]] = item
    return item


def _get_run(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    return _known(server.runs, found[1], "Run")


def _get_schedule(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    return _known(server.schedules, found[1], "Job")


def _set_mode(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    schedule = _known(server.schedules, found[1], "Job")
    schedule["mode"] = found[2].upper()
    schedule["status"] = f"{found[2].upper()}D"
    return {}


def _delete_schedule(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    _known(server.schedules, found[1], "Job")
    del server.schedules[found[1]]
    return {}


def _known(known: dict[str, dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    if name not in known:
        raise _Refused(404, f"Failed to get a {kind}: ResourceNotFoundError: {kind} {name} not found.")
    return known[name]


def _list_runs(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    return _page(server, "runs", server.runs, query)


def _list_schedules(server: KubeflowServer, found: re.Match[str], query: dict[str, str], body: str) -> Any:
    return _page(server, "recurringRuns", server.schedules, query)


def _page(server: KubeflowServer, name: str, known: dict[str, dict[str, Any]], query: dict[str, str]) -> Any:
    items = [item for item in known.values() if item["experiment_id"] == query["experiment_id"]]
    items.sort(key=lambda item: str(item["created_at"]), reverse=query.get("sort_by") == "created_at desc")
    first = int(query.get("page_token") or 0)
    size = min(server.page, int(query["page_size"]))
    page: dict[str, Any] = {name: items[first : first + size], "total_size": len(items)}
    return page | ({"next_page_token": str(first + size)} if first + size < len(items) else {})


_ROUTES = (
    ("GET", "/healthz", _healthz),
    ("POST", "/experiments", _create_experiment),
    ("GET", "/experiments", _list_experiments),
    ("POST", "/runs", _create_run),
    ("GET", "/runs", _list_runs),
    ("GET", "/runs/([^/:]+)", _get_run),
    ("POST", "/recurringruns", _create_schedule),
    ("GET", "/recurringruns", _list_schedules),
    ("GET", "/recurringruns/([^/:]+)", _get_schedule),
    ("DELETE", "/recurringruns/([^/:]+)", _delete_schedule),
    ("POST", "/recurringruns/([^/:]+):(enable|disable)", _set_mode),
)
