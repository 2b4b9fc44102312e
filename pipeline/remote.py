"""Runs and schedules somewhere else: what Vertex AI and Kubeflow have in common.

`pipeline.vertex.Vertex` and `pipeline.kubeflow.Kubeflow` are the two platforms; `connect` in
`pipeline.remote_commands` chooses the one that a compiled pipeline is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # it takes seconds to import, which an exit code should not
    from pipeline.compiled import CompiledPipeline

State = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")


class RemoteError(Exception):
    """The platform answered that it failed, or did not answer: not the user's mistake."""


class LeftRunning(Exception):  # noqa: N818 (it is no error)
    """Ctrl-C while a run was watched, which goes on."""


@dataclass(frozen=True)
class Task:
    """A component within a run.

    Attributes:
        name: the component's.
        state: where it is.
        message: what the platform says about a failure; empty otherwise.
        started: ISO 8601 in UTC; empty where it has not.
        ended: likewise.
    """

    name: str
    state: State
    message: str = ""
    started: str = ""
    ended: str = ""


@dataclass(frozen=True)
class Run:
    """A run of the pipeline.

    Attributes:
        id: by which the platform knows it.
        name: shown to people.
        state: where it is.
        link: of its page.
        created: when it was submitted, ISO 8601 in UTC.
        ended: when it ended; empty while it has not.
        message: why it failed; empty otherwise.
        tasks: its components that have started, in the order of their start; where the platform was asked for them.
    """

    id: str
    name: str
    state: State
    link: str
    created: str
    ended: str = ""
    message: str = ""
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """A schedule of runs.

    Attributes:
        id: by which the platform knows it.
        name: chosen by the user, unique.
        cron: five fields, as the user wrote them.
        time_zone: of the cron fields, as `Europe/Berlin`.
        active: whether it starts runs; false while paused.
        next_run: ISO 8601 in UTC; empty where there is none or the platform does not say.
        link: of its page.
    """

    id: str
    name: str
    cron: str
    time_zone: str
    active: bool
    next_run: str
    link: str


class Platform(Protocol):
    """What runs pipelines. Every method raises InputError for a user's mistake and RemoteError where it fails."""

    def check(self, data: str, push_destination: str) -> list[str]:
        """Return what stands in the way of a run, one line each: project, credentials, bucket, region, image."""

    def submit(self, pipeline: CompiledPipeline, parameters: Mapping[str, Any], name: str) -> Run:
        """Start a run. Parameters that are not named have their defaults."""

    def find_run(self, run: str) -> Run:
        """Return a run by its id, with its tasks."""

    def list_runs(self, limit: int = 20) -> list[Run]:
        """Return runs of this pipeline, newest first, without tasks."""

    def create_schedule(
        self, pipeline: CompiledPipeline, parameters: Mapping[str, Any], name: str, cron: str, time_zone: str
    ) -> Schedule:
        """Start runs at the times of a cron expression: never from the cache, never while the last one goes on."""

    def list_schedules(self) -> list[Schedule]:
        """Return the schedules of this pipeline."""

    def pause_schedule(self, name: str) -> Schedule:
        """Stop starting runs; those that go on are left alone."""

    def resume_schedule(self, name: str) -> Schedule:
        """Start runs again; those that were missed are left out."""

    def update_schedule(
        self,
        name: str,
        cron: str | None,
        time_zone: str | None,
        pipeline: CompiledPipeline | None,
        parameters: Mapping[str, Any] | None,
    ) -> Schedule:
        """Change when a schedule starts runs, or (pipeline and parameters, together) of what."""

    def delete_schedule(self, name: str) -> None:
        """Remove a schedule; its runs stay."""
