"""Runs and schedules on Vertex AI Pipelines.

The client library's `PipelineJob.submit` would first look for the pipeline root's bucket, for minutes where it cannot
be reached, and create it where it is missing; here buckets are looked at by `check`, and the library's messages are
sent by its service clients.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from functools import cached_property, partial
from typing import Any

from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import Conflict, GatewayTimeout, NotFound
from google.auth.credentials import Credentials
from google.cloud import aiplatform_v1 as api
from google.protobuf.field_mask_pb2 import FieldMask  # type: ignore[import-untyped]

from pipeline.cloud_settings import CloudSettings
from pipeline.compiled import CompiledPipeline
from pipeline.cron import Cron, split_vertex
from pipeline.google_cloud import VERTEX, GoogleCloud
from pipeline.remote import RemoteError, Run, Schedule, State, Task
from pipeline.vertex_checks import bucket_problems, image_problems, place_problems
from umx_model.errors import InputError

# Runs and schedules of others in the same project do not carry it.
_LABEL = {"pipeline": "umx-pro"}
_CONSOLE = "https://console.cloud.google.com/vertex-ai"
_RUN_STATES: dict[str, State] = {
    "PIPELINE_STATE_UNSPECIFIED": "waiting",
    "PIPELINE_STATE_QUEUED": "waiting",
    "PIPELINE_STATE_PENDING": "waiting",
    "PIPELINE_STATE_RUNNING": "running",
    "PIPELINE_STATE_CANCELLING": "running",
    "PIPELINE_STATE_PAUSED": "waiting",
    "PIPELINE_STATE_SUCCEEDED": "succeeded",
    "PIPELINE_STATE_FAILED": "failed",
    "PIPELINE_STATE_CANCELLED": "cancelled",
}
_TASK_STATES: dict[str, State] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "SKIPPED": "succeeded",  # because an earlier run did the same
    "CANCEL_PENDING": "running",
    "CANCELLING": "running",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
}
_LISTED = ["name", "display_name", "state", "create_time", "end_time", "error", "labels"]


class Vertex:
    """Vertex AI, as `pipeline.remote.Platform` wants it.

    Args:
        settings: where: project, region, `vertex_endpoint`.
        credentials: of whoever asks; those of the environment if None, and none where `vertex_endpoint` is `http://`.
        timeout: seconds that an answer may take.
        patience: seconds for which a call is repeated while Vertex AI is overloaded or broken.
    """

    def __init__(
        self,
        settings: CloudSettings,
        credentials: Credentials | None = None,
        *,
        timeout: float = 30,
        patience: float = 30,
    ) -> None:
        if not settings.project:
            raise InputError("project: none named; compile with --project, the id of a Google Cloud project")
        self._settings = settings
        self._endpoint = settings.vertex_endpoint or f"{settings.region}-aiplatform.googleapis.com"
        local = self._endpoint if self._endpoint.startswith("http://") else ""
        self._cloud = GoogleCloud(settings.project, local, credentials, timeout, patience)
        self._call = partial(self._cloud.call, VERTEX)
        self._parent = f"projects/{settings.project}/locations/{settings.region}"
        self._nowhere = (
            f"Vertex AI: there is no project {settings.project} with region {settings.region}; "
            f"compile with --project and --region as `gcloud projects list` and Vertex AI's list of regions name them"
        )

    def check(self, data: str, push_destination: str) -> list[str]:
        """Return what stands in the way of a run, one line each: project, credentials, bucket, region, image."""
        problems = list(place_problems(data, push_destination))
        try:
            self.list_runs(1)
        except InputError as problem:
            return [*problems, str(problem)]  # nothing else will be allowed, either
        problems += bucket_problems(self._cloud, self._settings, data, push_destination)
        return [*problems, *image_problems(self._cloud, self._settings)]

    def submit(self, pipeline: CompiledPipeline, parameters: Mapping[str, Any], name: str) -> Run:
        """Start a run. Parameters that are not named have their defaults."""
        # Of our own making, so that Vertex AI takes a repeated request for the same one.
        now = datetime.now(timezone.utc).strftime("%Y%m%d%H%M%S")
        job_id = f"{pipeline.name}-{now}-{secrets.token_hex(2)}"
        job = self._job(pipeline.spec, parameters)
        job.display_name = name or job_id
        request = {"parent": self._parent, "pipeline_job": job, "pipeline_job_id": job_id}
        try:
            return self._run(self._call(self._create, request=request, missing=self._nowhere))
        except RemoteError as error:
            raise RemoteError(f"{error}; `runs` shows whether {job_id} was started all the same") from None

    def find_run(self, run: str) -> Run:
        """Return a run by its id, with its tasks."""
        missing = f"run {run}: there is none in {self._parent}; `runs` without one lists them"
        if not re.fullmatch("[a-z0-9-]+", run):
            raise InputError(missing)
        name = f"{self._parent}/pipelineJobs/{run}"
        return self._run(self._call(self._jobs.get_pipeline_job, name=name, missing=missing))

    def list_runs(self, limit: int = 20) -> list[Run]:
        """Return runs of this pipeline, newest first, without tasks."""
        request = {
            "parent": self._parent,
            "filter": " AND ".join(f'labels.{key}="{value}"' for key, value in _LABEL.items()),
            "order_by": "create_time desc",
            "page_size": min(limit, 100),
            "read_mask": FieldMask(paths=_LISTED),
        }
        return self._call(self._list_jobs, request=request, limit=limit, missing=self._nowhere)

    def create_schedule(
        self, pipeline: CompiledPipeline, parameters: Mapping[str, Any], name: str, cron: str, time_zone: str
    ) -> Schedule:
        """Start runs at the times of a cron expression: never from the cache, never while the last one goes on."""
        times = Cron.parse(cron, time_zone).to_vertex()
        if any(known.display_name == name for known in self._known_schedules()):
            raise InputError(
                f"schedule {name}: exists already; change it with `schedule update`, or choose another name"
            )
        schedule = api.Schedule(
            display_name=name,
            cron=times,
            max_concurrent_run_count=1,
            allow_queueing=False,
            create_pipeline_job_request=self._scheduled(pipeline, parameters),
        )
        request = {"parent": self._parent, "schedule": schedule}
        # Vertex AI would make a second one of the same name if a request that it carried out were repeated.
        created = self._call(self._schedules.create_schedule, request=request, missing=self._nowhere, repeat=False)
        return self._schedule(created)

    def list_schedules(self) -> list[Schedule]:
        """Return the schedules of this pipeline."""
        return [self._schedule(schedule) for schedule in self._known_schedules()]

    def pause_schedule(self, name: str) -> Schedule:
        """Stop starting runs; those that go on are left alone."""
        resource = self._find_schedule(name).name
        self._call(self._schedules.pause_schedule, name=resource)
        return self._schedule(self._call(self._schedules.get_schedule, name=resource))

    def resume_schedule(self, name: str) -> Schedule:
        """Start runs again; those that were missed are left out."""
        resource = self._find_schedule(name).name
        self._call(self._schedules.resume_schedule, request={"name": resource, "catch_up": False})
        return self._schedule(self._call(self._schedules.get_schedule, name=resource))

    def update_schedule(
        self,
        name: str,
        cron: str | None,
        time_zone: str | None,
        pipeline: CompiledPipeline | None,
        parameters: Mapping[str, Any] | None,
    ) -> Schedule:
        """Change when a schedule starts runs, or (pipeline and parameters, together) of what."""
        known = self._find_schedule(name)
        changed = api.Schedule(name=known.name)
        paths = []
        if cron is not None or time_zone is not None:
            fields, zone = split_vertex(known.cron)
            changed.cron = Cron.parse(
                fields if cron is None else cron, zone if time_zone is None else time_zone
            ).to_vertex()
            paths.append("cron")
        if pipeline is not None:
            changed.create_pipeline_job_request = self._scheduled(pipeline, parameters or {})
            paths.append("create_pipeline_job_request")
        request = {"schedule": changed, "update_mask": FieldMask(paths=paths)}
        return self._schedule(self._call(self._schedules.update_schedule, request=request))

    def delete_schedule(self, name: str) -> None:
        """Remove a schedule; its runs stay."""
        self._call(self._delete, name=self._find_schedule(name).name)

    @cached_property
    def _jobs(self) -> api.PipelineServiceClient:
        return api.PipelineServiceClient(**self._connection)

    @cached_property
    def _schedules(self) -> api.ScheduleServiceClient:
        return api.ScheduleServiceClient(**self._connection)

    @property
    def _connection(self) -> dict[str, Any]:
        return {
            "credentials": self._cloud.credentials,
            "transport": "rest",
            "client_options": ClientOptions(api_endpoint=self._endpoint),
        }

    def _create(self, request: dict[str, Any], timeout: float) -> api.PipelineJob:
        try:
            return self._jobs.create_pipeline_job(request=request, timeout=timeout)
        except Conflict:  # an earlier attempt got through, though its answer did not
            name = f"{request['parent']}/pipelineJobs/{request['pipeline_job_id']}"
            return self._jobs.get_pipeline_job(name=name, timeout=timeout)

    def _list_jobs(self, request: dict[str, Any], limit: int, timeout: float) -> list[Run]:
        found = self._jobs.list_pipeline_jobs(request=request, timeout=timeout)
        return [self._run(job) for job in itertools.islice(found, limit)]

    def _delete(self, name: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._schedules.delete_schedule(name=name, timeout=timeout)
            # The operation that this returns would be looked for at an address of the console's (`/ui/...`).
            while time.monotonic() < deadline:
                self._schedules.get_schedule(name=name, timeout=timeout)
                time.sleep(0.5)
        except NotFound:
            return
        raise GatewayTimeout(f"the schedule is still there after {timeout:g} s")

    def _known_schedules(self) -> list[api.Schedule]:
        return self._call(self._list_schedules, missing=self._nowhere)

    def _list_schedules(self, timeout: float) -> list[api.Schedule]:
        # Their filter knows no labels.
        found = self._schedules.list_schedules(request={"parent": self._parent, "page_size": 100}, timeout=timeout)
        return [
            schedule
            for schedule in found
            if _LABEL.items() <= dict(schedule.create_pipeline_job_request.pipeline_job.labels).items()
        ]

    def _find_schedule(self, name: str) -> api.Schedule:
        schedules = self._known_schedules()
        for schedule in schedules:
            if schedule.display_name == name:
                return schedule
        there_are = ", ".join(sorted(schedule.display_name for schedule in schedules)) or "none"
        raise InputError(f"schedule {name}: there is none of this name in {self._parent}; there are {there_are}")

    def _job(self, spec: dict[str, Any], parameters: Mapping[str, Any]) -> api.PipelineJob:
        config = {"gcs_output_directory": self._settings.pipeline_root, "parameter_values": dict(parameters)}
        return api.PipelineJob(
            pipeline_spec=spec,
            runtime_config=config,
            labels=_LABEL,
            service_account=self._settings.service_account,
        )

    def _scheduled(self, pipeline: CompiledPipeline, parameters: Mapping[str, Any]) -> api.CreatePipelineJobRequest:
        """Return what a schedule asks for each time: a run in which nothing comes from the cache."""
        root = pipeline.spec["root"]
        uncached = {"cachingOptions": {"enableCache": False}}
        tasks = {name: {**task, **uncached} for name, task in root["dag"]["tasks"].items()}
        spec = {**pipeline.spec, "root": {**root, "dag": {**root["dag"], "tasks": tasks}}}
        return api.CreatePipelineJobRequest(parent=self._parent, pipeline_job=self._job(spec, parameters))

    def _run(self, job: api.PipelineJob) -> Run:
        job_id = job.name.rsplit("/", 1)[-1]
        return Run(
            id=job_id,
            name=job.display_name,
            state=_RUN_STATES[job.state.name],
            link=self._link(f"runs/{job_id}"),
            created=_time(job.create_time),
            ended=_time(job.end_time),
            message=_line(job.error.message),
            tasks=tuple(_tasks(job)),
        )

    def _schedule(self, schedule: api.Schedule) -> Schedule:
        schedule_id = schedule.name.rsplit("/", 1)[-1]
        fields, zone = split_vertex(schedule.cron)
        active = schedule.state.name == "ACTIVE"
        return Schedule(
            id=schedule_id,
            name=schedule.display_name,
            cron=fields,
            time_zone=zone,
            active=active,
            next_run=_time(schedule.next_run_time) if active else "",
            link=self._link(f"schedules/{schedule_id}"),
        )

    def _link(self, page: str) -> str:
        settings = self._settings
        return f"{_CONSOLE}/locations/{settings.region}/pipelines/{page}?project={settings.project}"


def _tasks(job: api.PipelineJob) -> Iterator[Task]:
    """Yield the components that have started; Vertex AI counts the pipeline itself, and what it adds, among tasks."""
    components = dict(job.pipeline_spec or {}).get("root", {}).get("dag", {}).get("tasks", {})
    details = [detail for detail in job.job_detail.task_details if detail.task_name in components]
    latest = {detail.task_name: detail for detail in sorted(details, key=lambda detail: _time(detail.create_time))}
    for name, detail in latest.items():
        state = _TASK_STATES.get(detail.state.name)
        if state is not None:
            yield Task(name, state, _line(detail.error.message), _time(detail.start_time), _time(detail.end_time))


def _time(moment: datetime | None) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""


def _line(text: str) -> str:
    return " ".join(text.split())
