"""Runs and schedules on Kubeflow Pipelines 2."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from operator import methodcaller
from typing import Any

import kfp
import yaml  # type: ignore[import-untyped]
from kfp_server_api import V2beta1RecurringRun, V2beta1Run  # type: ignore[import-untyped]

from pipeline.cloud_settings import COMPONENTS, CloudSettings
from pipeline.compiled import CompiledPipeline
from pipeline.cron import Cron
from pipeline.kubeflow_calls import Calls, NotThere
from pipeline.remote import RemoteError, Run, Schedule, State, Task
from umx_model.errors import InputError

_STATES: dict[str, State] = {
    "RUNTIME_STATE_UNSPECIFIED": "waiting",
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "SKIPPED": "succeeded",  # because an earlier run did the same
    "FAILED": "failed",
    "CANCELING": "running",
    "CANCELED": "cancelled",
    "PAUSED": "waiting",
}
_PLACES = ("gs://", "s3://", "/")
_PAGE = 100


class Kubeflow:
    """Kubeflow Pipelines, as `pipeline.remote.Platform` wants it.

    Credentials are those that kfp finds: a token in the file that `KF_PIPELINES_SA_TOKEN_PATH` names, which is a
    pod's own if it is not set; `KF_PIPELINES_IAP_OAUTH2_CLIENT_ID` behind Google's proxy, with
    `KF_PIPELINES_APP_OAUTH2_CLIENT_ID` and `KF_PIPELINES_APP_OAUTH2_CLIENT_SECRET`; or a cookie or a header in
    `~/.config/kfp/context.json`. Where `kubeflow_host` is empty, `KF_PIPELINES_ENDPOINT` counts.

    Args:
        settings: where: `kubeflow_host`, namespace, experiment.
        timeout: seconds that an answer may take.
        patience: seconds for which a call is repeated while Kubeflow is overloaded or broken.
    """

    def __init__(self, settings: CloudSettings, *, timeout: float = 30, patience: float = 30) -> None:
        self._settings = settings
        self._calls = Calls(settings, timeout, patience)
        self._call = self._calls.call

    def check(self, data: str, push_destination: str) -> list[str]:
        """Return what stands in the way of a run, one line each.

        Folders are not looked at: who may read them is the cluster's credentials' affair, which are not ours.
        """
        problems = []
        if not push_destination.startswith(_PLACES):
            problems.append(
                f"push_destination: {push_destination} is no place that components can write to; expected gs://..., "
                "s3://... or a mounted path, as /mnt/..."
            )
        if not data.startswith((*_PLACES, "https://", "http://")):
            problems.append(f"data: {data} is no place that components can read; expected gs://... or a mounted path")
        try:
            self._call(lambda client: client.healthzs.get_healthz())
            self._find_experiment()
        except InputError as problem:
            problems.append(str(problem))
        return problems

    def submit(self, pipeline: CompiledPipeline, parameters: Mapping[str, Any], name: str) -> Run:
        """Start a run. Parameters that are not named have their defaults."""
        experiment = self._make_experiment()
        now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        with _package(pipeline.text()) as package:
            # Kubeflow would start a second one if a request that it carried out were repeated.
            created = self._call(
                lambda client: client.run_pipeline(
                    experiment,
                    name or f"{pipeline.name}-{now}",
                    package,
                    params=dict(parameters),
                    pipeline_root=self._settings.pipeline_root,
                    service_account=self._settings.service_account or None,
                ),
                repeat=False,
            )
        return self._run(created)

    def find_run(self, run: str) -> Run:
        """Return a run by its id, with its tasks."""
        missing = f"run {run}: there is none on {self._calls.host}; `runs` without one lists them"
        if not re.fullmatch(r"[A-Za-z0-9-]+", run):
            raise InputError(missing)
        return self._run(self._call(lambda client: client.get_run(run), missing=missing), with_tasks=True)

    def list_runs(self, limit: int = 20) -> list[Run]:
        """Return runs of this pipeline, newest first, without tasks."""
        runs = self._pages("list_runs", "runs", "created_at desc", min(limit, _PAGE))
        return [self._run(run) for run in itertools.islice(runs, limit)]

    def create_schedule(
        self, pipeline: CompiledPipeline, parameters: Mapping[str, Any], name: str, cron: str, time_zone: str
    ) -> Schedule:
        """Start runs at the times of a cron expression: never from the cache, never while the last one goes on."""
        self._times(cron, time_zone)
        # Kubeflow allows several of one name.
        if any(known.display_name == name for known in self._known_schedules()):
            raise InputError(
                f"schedule {name}: exists already; change it with `schedule update`, or choose another name"
            )
        return self._schedule(self._create(pipeline.text(), parameters, name, cron, time_zone, enabled=True))

    def list_schedules(self) -> list[Schedule]:
        """Return the schedules of this pipeline."""
        return [self._schedule(schedule) for schedule in self._known_schedules()]

    def pause_schedule(self, name: str) -> Schedule:
        """Stop starting runs; those that go on are left alone."""
        schedule = self._find_schedule(name).recurring_run_id
        self._call(lambda client: client.disable_recurring_run(schedule))
        return self._schedule(self._call(lambda client: client.get_recurring_run(schedule)))

    def resume_schedule(self, name: str) -> Schedule:
        """Start runs again; those that were missed are left out."""
        schedule = self._find_schedule(name).recurring_run_id
        self._call(lambda client: client.enable_recurring_run(schedule))
        return self._schedule(self._call(lambda client: client.get_recurring_run(schedule)))

    def update_schedule(
        self,
        name: str,
        cron: str | None,
        time_zone: str | None,
        pipeline: CompiledPipeline | None,
        parameters: Mapping[str, Any] | None,
    ) -> Schedule:
        """Change when a schedule starts runs, or (pipeline and parameters, together) of what."""
        found = self._find_schedule(name).recurring_run_id
        old = self._call(lambda client: client.get_recurring_run(found))
        fields, zone = _written(old)
        fields, zone = fields if cron is None else cron, zone if time_zone is None else time_zone
        self._times(fields, zone)
        if pipeline is not None:
            text, values = pipeline.text(), parameters or {}
        else:
            text, values = self._text(old), (old.runtime_config.parameters if old.runtime_config else None) or {}
        # Kubeflow cannot change one. The new one starts nothing until the old one is gone, so that whatever fails on
        # the way, there are never two that start runs.
        new = self._create(text, values, name, fields, zone, enabled=False)
        self._replace(name, old, new)
        return self._schedule(self._call(lambda client: client.get_recurring_run(new.recurring_run_id)))

    def delete_schedule(self, name: str) -> None:
        """Remove a schedule; its runs stay."""
        self._delete(self._find_schedule(name).recurring_run_id)

    def _replace(self, name: str, old: V2beta1RecurringRun, new: V2beta1RecurringRun) -> None:
        """Put a schedule that is not enabled into another's place."""
        try:
            self._delete(old.recurring_run_id)
        except (InputError, RemoteError) as error:
            try:
                kept = any(known.recurring_run_id == old.recurring_run_id for known in self._known_schedules())
                if kept:
                    self._delete(new.recurring_run_id)
            except (InputError, RemoteError):
                raise type(error)(
                    f"{error}; schedule {name}: there may be a second one of this name now, paused; "
                    "delete that on Kubeflow's pages"
                ) from None
            if kept:
                raise
        if not _is_active(old):
            return
        try:
            self._call(lambda client: client.enable_recurring_run(new.recurring_run_id))
        except (InputError, RemoteError) as error:
            raise type(error)(
                f"{error}; schedule {name}: changed, but paused; start it with `schedule resume`"
            ) from None

    def _delete(self, schedule: str) -> None:
        with contextlib.suppress(NotThere):
            self._call(lambda client: client.delete_recurring_run(schedule))

    def _create(
        self, text: str, parameters: Mapping[str, Any], name: str, cron: str, time_zone: str, *, enabled: bool
    ) -> V2beta1RecurringRun:
        experiment = self._make_experiment()
        with _package(text) as package:
            return self._call(
                lambda client: client.create_recurring_run(
                    experiment,
                    name,
                    # Kubeflow knows one time zone for all (getLocation in
                    # backend/src/crd/controller/scheduledworkflow/util/const.go); this says what was asked for.
                    description=json.dumps({"cron": cron, "time_zone": time_zone}),
                    cron_expression=self._times(cron, time_zone),
                    max_concurrency=1,
                    no_catchup=True,
                    params=dict(parameters),
                    pipeline_package_path=package,
                    enabled=enabled,
                    pipeline_root=self._settings.pipeline_root,
                    enable_caching=False,
                    service_account=self._settings.service_account or None,
                ),
                repeat=False,
            )

    def _times(self, cron: str, time_zone: str) -> str:
        return Cron.parse(cron, time_zone).to_kubeflow(self._settings.kubeflow_time_zone)

    def _text(self, schedule: V2beta1RecurringRun) -> str:
        """Return what a schedule runs, as a file."""
        found = schedule.pipeline_spec or {}
        documents = [found["pipeline_spec"], found.get("platform_spec")] if "pipeline_spec" in found else [found]
        if not documents[0]:
            raise InputError(
                f"schedule {schedule.display_name}: runs a pipeline that was uploaded; "
                "add --pipeline to run the file's from now on"
            )
        return str(yaml.safe_dump_all([document for document in documents if document]))

    def _find_experiment(self) -> str | None:
        """Return the experiment's id; None if there is none yet."""

        def find(client: kfp.Client) -> str | None:
            try:
                return str(client.get_experiment(experiment_name=self._settings.experiment).experiment_id)
            except ValueError:  # there is none
                return None

        return self._call(find)

    def _make_experiment(self) -> str:
        # The client looks for it first.
        made = self._call(lambda client: client.create_experiment(self._settings.experiment))
        return str(made.experiment_id)

    def _pages(self, method: str, content: str, order: str, size: int) -> Iterator[Any]:
        experiment = self._find_experiment()
        options = {"page_size": size, "sort_by": order, "experiment_id": experiment}
        token = ""
        while experiment is not None:
            page = self._call(methodcaller(method, page_token=token, **options))
            yield from getattr(page, content) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def _known_schedules(self) -> list[V2beta1RecurringRun]:
        return list(self._pages("list_recurring_runs", "recurring_runs", "created_at desc", _PAGE))

    def _find_schedule(self, name: str) -> V2beta1RecurringRun:
        schedules = self._known_schedules()
        named = sorted((one for one in schedules if one.display_name == name), key=_is_active, reverse=True)
        if named:
            return named[0]
        there_are = ", ".join(sorted(schedule.display_name for schedule in schedules)) or "none"
        raise InputError(
            f"schedule {name}: there is none of this name in the experiment {self._settings.experiment}; "
            f"there are {there_are}"
        )

    def _run(self, run: V2beta1Run, *, with_tasks: bool = False) -> Run:
        return Run(
            id=run.run_id,
            name=run.display_name,
            state=_STATES.get(run.state, "waiting"),
            link=f"{self._calls.host}/#/runs/details/{run.run_id}",
            created=_time(run.created_at),
            ended=_time(run.finished_at),
            message=_message(run.error),
            tasks=tuple(_tasks(run)) if with_tasks else (),
        )

    def _schedule(self, schedule: V2beta1RecurringRun) -> Schedule:
        cron, zone = _written(schedule)
        active = _is_active(schedule)
        next_run = ""
        with contextlib.suppress(InputError):  # somebody wrote something else in Kubeflow's pages
            times = Cron.parse(cron, zone).next_times(1) if active else []
            next_run = _time(times[0]) if times else ""
        return Schedule(
            id=schedule.recurring_run_id,
            name=schedule.display_name,
            cron=cron,
            time_zone=zone,
            active=active,
            next_run=next_run,
            link=f"{self._calls.host}/#/recurringrun/details/{schedule.recurring_run_id}",
        )


@contextlib.contextmanager
def _package(text: str) -> Iterator[str]:
    """Put a pipeline where the client reads it: into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pipeline.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        yield path


def _tasks(run: V2beta1Run) -> Iterator[Task]:
    """Yield the components that have started; Kubeflow counts its drivers and the pipeline among tasks, too."""
    details = [
        detail
        for detail in (run.run_details.task_details if run.run_details else None) or ()
        if detail.display_name in COMPONENTS and _STATES.get(detail.state, "waiting") != "waiting"
    ]
    latest = {detail.display_name: detail for detail in sorted(details, key=lambda detail: _time(detail.create_time))}
    for name, detail in latest.items():
        started, ended = _time(detail.start_time), _time(detail.end_time)
        yield Task(name, _STATES[detail.state], _message(detail.error), started, ended)


def _written(schedule: V2beta1RecurringRun) -> tuple[str, str]:
    """Return when a schedule starts runs, as its user wrote it: the five fields, and the time zone."""
    try:
        description = json.loads(schedule.description or "")
        return str(description["cron"]), str(description["time_zone"])
    except (KeyError, TypeError, ValueError):  # made in Kubeflow's pages
        trigger = schedule.trigger
        if trigger and trigger.cron_schedule:
            return str(trigger.cron_schedule.cron).partition(" ")[2], "UTC"
        return "by interval", "UTC"


def _is_active(schedule: V2beta1RecurringRun) -> bool:
    # The status comes later, from the controller: backend/src/apiserver/server/api_converter.go.
    return bool(schedule.mode == "ENABLE")


def _time(moment: datetime | None) -> str:
    # What has not happened yet was in 1970.
    if moment is None or moment.year <= 1970:
        return ""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _message(error: Any) -> str:
    return " ".join(((error.message if error else "") or "").split())
