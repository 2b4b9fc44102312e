"""Kubeflow over the wire: the real kfp client against a server on loopback that answers as Kubeflow Pipelines does."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp.client import Client
from kubeflow_server import Failure, KubeflowServer, read

from pipeline.kubeflow import Kubeflow
from pipeline.remote import RemoteError
from tests.pipeline.compiled_pipelines import compiled, settings
from umx_model.errors import InputError

DATA, DESTINATION = "gs://bucket/music", "gs://bucket/root/serving"


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without what this machine's user may have set up for kfp."""
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))


@pytest.fixture
def server() -> Iterator[KubeflowServer]:
    with KubeflowServer().running() as server:
        yield server


@pytest.fixture
def kubeflow(server: KubeflowServer) -> Kubeflow:
    return connect(server.address)


def connect(address: str, timeout: float = 10, patience: float = 0.3, **changes: Any) -> Kubeflow:
    chosen = settings(platform="kubeflow", kubeflow_host=address, **changes)
    return Kubeflow(chosen, timeout=timeout, patience=patience)


def sent(server: KubeflowServer, part: str, kind: str) -> Any:
    """Return the last body that was posted there, as the client library's message."""
    return read(kind, server.bodies("POST", part)[-1])


def plan(kubeflow: Kubeflow, name: str = "weekly", cron: str = "0 3 * * MON", zone: str = "UTC") -> Any:
    return kubeflow.create_schedule(compiled(), {"epochs": 3}, name, cron, zone)


def test_a_run_is_asked_for_as_kubeflow_wants_it(server: KubeflowServer) -> None:
    pipeline = compiled().with_cache(index=True)
    kubeflow = connect(server.address, namespace="music", service_account="runner")
    run = kubeflow.submit(pipeline, {"epochs": 3, "warm_start": True, "floor_db": "1.5"}, "mine")
    asked = sent(server, "/runs", "V2beta1Run")
    assert (asked.display_name, asked.service_account) == ("mine", "runner")
    assert asked.runtime_config.parameters == {"epochs": 3, "warm_start": True, "floor_db": "1.5"}
    assert asked.runtime_config.pipeline_root == "gs://bucket/root"
    assert asked.pipeline_spec["root"]["dag"]["tasks"]["SampleGen"]["cachingOptions"] == {"enableCache": True}
    assert asked.pipeline_spec["pipelineInfo"] == {"name": "umx-pro"}
    [experiment] = server.experiments.values()
    assert (experiment["display_name"], experiment["namespace"]) == ("umx-pro", "music")
    assert asked.experiment_id == experiment["experiment_id"]

    assert (run.state, run.name, run.ended) == ("waiting", "mine", "")
    assert run.link == f"{server.address}/#/runs/details/{run.id}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run.created)
    assert kubeflow.find_run(run.id) == run


def test_what_only_kubernetes_knows_goes_along(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {}}}}}
    kubeflow.submit(dataclasses.replace(compiled(), platform_spec=platform), {}, "")
    asked = sent(server, "/runs", "V2beta1Run")
    assert asked.display_name.startswith("umx-pro-2")
    assert "kubernetes" in asked.pipeline_spec["platform_spec"]["platforms"]
    assert asked.pipeline_spec["pipeline_spec"]["pipelineInfo"] == {"name": "umx-pro"}


def test_nothing_is_printed(kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.submit(compiled(), {}, "")
    assert capsys.readouterr().out == ""


def test_what_becomes_of_a_run(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    run = kubeflow.submit(compiled(), {}, "mine")
    moments = [f"2026-01-05T03:0{minute}:00Z" for minute in range(4)]
    server.runs[run.id] |= {
        "state": "FAILED",
        "finished_at": moments[3],
        "error": {"code": 2, "message": "it\nfailed"},
        "run_details": {
            "task_details": [
                {"display_name": "root", "state": "FAILED", "start_time": moments[0]},
                {"display_name": "SampleGen-driver", "state": "SUCCEEDED", "start_time": moments[0]},
                {"display_name": "Trainer", "state": "FAILED", "create_time": moments[2], "start_time": moments[2]}
                | {"end_time": moments[3], "error": {"message": "no GPU"}},
                {"display_name": "SampleGen", "state": "SUCCEEDED", "create_time": moments[0]}
                | {"start_time": moments[0], "end_time": moments[1]},
                {"display_name": "Pusher", "state": "PENDING", "create_time": moments[0]},
            ]
        },
    }
    found = kubeflow.find_run(run.id)
    assert (found.state, found.ended, found.message) == ("failed", moments[3], "it failed")
    assert [dataclasses.astuple(task) for task in found.tasks] == [
        ("SampleGen", "succeeded", "", moments[0], moments[1]),
        ("Trainer", "failed", "no GPU", moments[2], moments[3]),
    ]
    assert kubeflow.list_runs()[0].tasks == ()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("RUNNING", "running"), ("SUCCEEDED", "succeeded"), ("CANCELED", "cancelled"), ("CANCELING", "running")],
)
def test_states(server: KubeflowServer, kubeflow: Kubeflow, theirs: str, ours: str) -> None:
    run = kubeflow.submit(compiled(), {}, "mine")
    server.runs[run.id]["state"] = theirs
    assert kubeflow.find_run(run.id).state == ours


def test_runs_are_listed_newest_first_without_those_of_others(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    assert kubeflow.list_runs() == []
    connect(server.address, experiment="another").submit(compiled(), {}, "theirs")
    for number in range(5):
        kubeflow.submit(compiled(), {}, f"run-{number}")
    assert [run.name for run in kubeflow.list_runs()] == [f"run-{number}" for number in (4, 3, 2, 1, 0)]
    assert [run.name for run in kubeflow.list_runs(3)] == ["run-4", "run-3", "run-2"]


def test_a_schedule_is_asked_for_as_kubeflow_wants_it(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    schedule = kubeflow.create_schedule(
        compiled().with_cache(index=True), {"epochs": 3}, "weekly", "0 3 * * MON", "Asia/Tokyo"
    )
    asked = sent(server, "/recurringruns", "V2beta1RecurringRun")
    assert (asked.display_name, asked.mode, asked.no_catchup, int(asked.max_concurrency)) == (
        "weekly",
        "ENABLE",
        True,
        1,
    )
    assert asked.trigger.cron_schedule.cron == "0 0 18 * * 0"
    assert asked.runtime_config.parameters == {"epochs": 3}
    assert asked.pipeline_spec["root"]["dag"]["tasks"]["SampleGen"]["cachingOptions"] == {}

    assert (schedule.name, schedule.cron, schedule.time_zone) == ("weekly", "0 3 * * MON", "Asia/Tokyo")
    assert schedule.active
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT18:00:00Z", schedule.next_run)
    assert schedule.link == f"{server.address}/#/recurringrun/details/{schedule.id}"
    assert kubeflow.list_schedules() == [schedule]


def test_the_installation_may_be_in_another_time_zone(server: KubeflowServer) -> None:
    plan(connect(server.address, kubeflow_time_zone="Europe/Berlin"), zone="Europe/Berlin")
    assert sent(server, "/recurringruns", "V2beta1RecurringRun").trigger.cron_schedule.cron == "0 0 3 * * 1"


def test_names_of_schedules_are_unique(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    for name in ("a", "b", "weekly"):
        plan(kubeflow, name)
    with pytest.raises(InputError, match="^schedule weekly: exists already; change it with `schedule update`"):
        plan(kubeflow)
    assert len(server.schedules) == 3


@pytest.mark.parametrize(("cron", "zone"), [("0 3 * *", "UTC"), ("0 3 * * *", "Mars"), ("0 3 * * *", "Europe/Berlin")])
def test_times_that_cannot_be_kept_are_refused_before_anything_is_sent(
    server: KubeflowServer, kubeflow: Kubeflow, cron: str, zone: str
) -> None:
    with pytest.raises(InputError):
        plan(kubeflow, cron=cron, zone=zone)
    assert not server.requests


def test_pause_and_resume(kubeflow: Kubeflow) -> None:
    schedule = plan(kubeflow)
    paused = kubeflow.pause_schedule("weekly")
    assert paused == dataclasses.replace(schedule, active=False, next_run="")
    assert kubeflow.list_schedules() == [paused]
    assert kubeflow.resume_schedule("weekly") == schedule


def test_delete(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    plan(kubeflow)
    kubeflow.delete_schedule("weekly")
    assert not server.schedules


@pytest.mark.parametrize("method", ["pause_schedule", "resume_schedule", "delete_schedule"])
def test_no_such_schedule(kubeflow: Kubeflow, method: str) -> None:
    plan(kubeflow, "daily")
    with pytest.raises(InputError, match="^schedule weekly: there is none of this name in .*umx-pro; there are daily$"):
        getattr(kubeflow, method)("weekly")


def test_an_update_of_the_times_keeps_what_runs(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    plan(kubeflow, zone="Asia/Tokyo")
    changed = kubeflow.update_schedule("weekly", "30 4 * * *", None, None, None)
    assert (changed.cron, changed.time_zone, changed.active) == ("30 4 * * *", "Asia/Tokyo", True)
    [first, second] = [read("V2beta1RecurringRun", body) for body in server.bodies("POST", "/recurringruns")[:2]]
    assert second.mode == "DISABLE"
    assert second.pipeline_spec == first.pipeline_spec
    assert second.runtime_config == first.runtime_config
    assert (second.max_concurrency, second.no_catchup) == (first.max_concurrency, True)
    assert list(server.schedules) == [changed.id]


def test_an_update_of_what_runs_keeps_the_times(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    before = plan(kubeflow)
    changed = kubeflow.update_schedule("weekly", None, None, compiled(image="other:2"), {"epochs": 7})
    assert (changed.cron, changed.time_zone) == (before.cron, before.time_zone)
    [schedule] = server.schedules.values()
    assert schedule["runtime_config"]["parameters"] == {"epochs": 7}
    assert "other:2" in json.dumps(schedule["pipeline_spec"])


def test_an_update_keeps_what_only_kubernetes_knows(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {}}}}}
    kubeflow.create_schedule(dataclasses.replace(compiled(), platform_spec=platform), {}, "weekly", "0 3 * * 1", "UTC")
    [before] = [schedule["pipeline_spec"] for schedule in server.schedules.values()]
    kubeflow.update_schedule("weekly", "0 4 * * 1", None, None, None)
    assert [schedule["pipeline_spec"] for schedule in server.schedules.values()] == [before]


def test_a_paused_schedule_stays_paused_when_it_is_updated(kubeflow: Kubeflow) -> None:
    plan(kubeflow)
    kubeflow.pause_schedule("weekly")
    assert not kubeflow.update_schedule("weekly", "30 4 * * *", None, None, None).active


@pytest.mark.parametrize(
    ("failure", "left"),
    [
        (Failure("POST", "/recurringruns", 500), "0 3 * * MON"),
        (Failure("DELETE", "/recurringruns", 500, times=1), "0 3 * * MON"),
        (Failure("DELETE", "/recurringruns", 500), "0 3 * * MON"),
    ],
)
def test_an_update_that_fails_leaves_one_active_schedule(
    server: KubeflowServer, kubeflow: Kubeflow, failure: Failure, left: str
) -> None:
    plan(kubeflow)
    server.failures.append(failure)
    with pytest.raises(RemoteError, match="it is said to be so"):
        kubeflow.update_schedule("weekly", "30 4 * * *", None, None, None)
    assert [schedule.cron for schedule in kubeflow.list_schedules() if schedule.active] == [left]
    assert len(server.schedules) == (2 if failure.method == "DELETE" and failure.times > 1 else 1)


def test_an_update_goes_on_where_only_the_answer_was_lost(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    plan(kubeflow)
    server.failures.append(Failure("DELETE", "/recurringruns", 500, late=True))
    changed = kubeflow.update_schedule("weekly", "30 4 * * *", None, None, None)
    assert changed.active
    assert list(server.schedules) == [changed.id]


def test_an_update_that_cannot_be_enabled_says_so(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    plan(kubeflow)
    server.failures.append(Failure("POST", ":enable", 500))
    with pytest.raises(RemoteError, match="changed, but paused; start it with `schedule resume`$"):
        kubeflow.update_schedule("weekly", "30 4 * * *", None, None, None)


def test_a_schedule_from_kubeflows_pages_is_shown(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    plan(kubeflow)
    [schedule] = server.schedules.values()
    schedule["description"] = "mine"
    assert [(one.cron, one.time_zone) for one in kubeflow.list_schedules()] == [("0 3 * * 1", "UTC")]
    schedule["trigger"] = {"periodic_schedule": {"interval_second": "3600"}}
    assert [(one.cron, one.next_run) for one in kubeflow.list_schedules()] == [("by interval", "")]


ERRORS: list[tuple[Failure, type[Exception], str]] = [
    (Failure("GET", "", 401), InputError, "asks for credentials, or does not accept these: set KF_PIPELINES_SA_TOKEN"),
    (Failure("GET", "", 403), InputError, r"no permission in the namespace kubeflow; .* \(it is said to be so\)$"),
    (Failure("GET", "", 200, page=True), InputError, "answers with a web page, perhaps a login; .*context.json$"),
    (Failure("GET", "", 404, page=True), InputError, "is not Kubeflow Pipelines 2; expected its address"),
    (Failure("GET", "", 409), InputError, "there is one of this name"),
    (Failure("GET", "", 400), InputError, "^Kubeflow refuses: it is said to be so$"),
    (Failure("GET", "", 429), RemoteError, "too many requests; try again later"),
    (Failure("GET", "", 500), RemoteError, "^Kubeflow failed: it is said to be so; try again later$"),
    (Failure("GET", "", 503), RemoteError, "^Kubeflow failed: it is said to be so; try again later$"),
    (Failure("GET", "", 0), RemoteError, "cannot be reached; check the address"),
]


@pytest.mark.parametrize(("failure", "kind", "message"), ERRORS, ids=[str(error[0].status) for error in ERRORS])
@pytest.mark.parametrize(
    "call",
    [lambda kubeflow: kubeflow.list_runs(), lambda kubeflow: kubeflow.list_schedules(), plan],
    ids=["runs", "schedules", "create"],
)
def test_each_failure_is_one_line(
    server: KubeflowServer,
    kubeflow: Kubeflow,
    failure: Failure,
    kind: type[Exception],
    message: str,
    call: Callable[[Kubeflow], Any],
) -> None:
    server.failures.append(dataclasses.replace(failure))
    with pytest.raises(kind, match=message) as caught:
        call(kubeflow)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_what_is_overloaded_is_asked_again(server: KubeflowServer, kubeflow: Kubeflow, status: int) -> None:
    server.failures.append(Failure("GET", "/experiments", status, times=1))
    assert kubeflow.list_runs() == []
    assert len(server.requests) == 2


def test_a_run_is_not_started_twice(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    server.failures.append(Failure("POST", "/runs", 503, times=1, late=True))
    with pytest.raises(RemoteError, match="look first whether it was done all the same$"):
        kubeflow.submit(compiled(), {}, "mine")
    assert len(server.runs) == 1
    server.failures.append(Failure("POST", "/runs", 429, times=1))
    kubeflow.submit(compiled(), {}, "mine")
    assert len(server.runs) == 2


def test_a_deletion_that_was_carried_out_may_be_repeated(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    plan(kubeflow)
    server.failures.append(Failure("DELETE", "", 503, times=1, late=True))
    kubeflow.delete_schedule("weekly")
    assert not server.schedules


def test_slow_answers(server: KubeflowServer) -> None:
    server.delay = 3
    started = time.monotonic()
    with pytest.raises(RemoteError, match="did not answer within 0.2 s; check the address"):
        connect(server.address, timeout=0.2).list_runs()
    assert time.monotonic() - started < 2
    assert len(server.requests) == 1


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RemoteError, match=f"^Kubeflow: {address} cannot be reached; check the address"):
            connect(address).list_runs()


def test_no_secure_connection(server: KubeflowServer) -> None:
    address = server.address.replace("http://", "https://")
    with pytest.raises(RemoteError, match=f"^Kubeflow: no secure connection to {address}; check its certificate"):
        connect(address).list_runs()


def test_no_address() -> None:
    with pytest.raises(InputError, match="^kubeflow_host: none named; compile with --kubeflow-host"):
        connect("")


def test_the_address_of_the_environment(server: KubeflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.address)
    assert connect("").list_runs() == []


def test_no_such_run(kubeflow: Kubeflow) -> None:
    for run in ("0123", "a/b", ".."):
        with pytest.raises(InputError, match=f"^run {run}: there is none on http.*; `runs` without one lists them$"):
            kubeflow.find_run(run)


def test_a_token_in_a_file(server: KubeflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.authorization = "Bearer secret"
    with pytest.raises(InputError, match="asks for credentials"):
        connect(server.address).list_runs()
    token = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    with pytest.raises(InputError, match=f"^KF_PIPELINES_SA_TOKEN_PATH: {token} cannot be read"):
        connect(server.address).list_runs()
    token.write_text("secret")
    assert connect(server.address).list_runs() == []


def test_a_cookie(server: KubeflowServer, tmp_path: Path) -> None:
    server.cookie = "authservice_session=secret"
    with pytest.raises(InputError, match="asks for credentials"):
        connect(server.address).list_runs()
    (tmp_path / "context.json").write_text(json.dumps({"client_authentication_cookie": server.cookie}))
    assert connect(server.address).list_runs() == []


def test_a_check_finds_nothing_wrong(server: KubeflowServer, kubeflow: Kubeflow) -> None:
    assert kubeflow.check(DATA, DESTINATION) == []
    assert not server.experiments
    assert kubeflow.check("/mnt/music", "/mnt/serving") == []


def test_a_check_says_what_is_wrong(server: KubeflowServer) -> None:
    server.failures.append(Failure("GET", "/experiments", 403))
    destination, data, permission = connect(server.address).check("music", "serving")
    assert destination.startswith("push_destination: serving is no place")
    assert data.startswith("data: music is no place that components can read; expected")
    assert permission.startswith("Kubeflow: no permission in the namespace kubeflow")
