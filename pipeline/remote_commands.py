"""Commands for runs and schedules on Vertex AI and Kubeflow; each takes the compiled file, which says where it goes."""

# Modules that import TensorFlow or client libraries are imported in functions: they take seconds, which --help and a
# wrong option should not.
from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from umx_model.errors import InputError

if TYPE_CHECKING:
    from pipeline.cloud_settings import CloudSettings
    from pipeline.compiled import CompiledPipeline
    from pipeline.remote import Platform, Run, Schedule

_FILE = Annotated[str, typer.Argument(metavar="FILE", help="Compiled pipeline; `compile` writes it.")]
_NAME = Annotated[str, typer.Argument(metavar="NAME", help="Of the schedule.")]
_PARAM = Annotated[
    list[str] | None, typer.Option("--param", help="Value of a parameter, as epochs=20. Repeatable. [default: FILE's]")
]
_CRON = typer.Option("--cron", help="Minute, hour, day of month, month, day of week: '0 3 * * 1' is Mondays at 3:00.")
_ZONE = typer.Option("--time-zone", help="Of these times, as Europe/Berlin.")
_NO_CHECK = Annotated[bool, typer.Option("--no-check", help="Do not look first whether folders and images are there.")]

schedule_app = typer.Typer(no_args_is_help=True, help="Start runs regularly: never while the last one still goes on.")


def register(app: typer.Typer) -> None:
    """Add the commands to a program."""
    app.command()(submit)
    app.command()(runs)
    app.add_typer(schedule_app, name="schedule")


def connect(settings: CloudSettings) -> Platform:
    """Return the platform that settings name."""
    if settings.platform == "vertex":
        from pipeline.vertex import Vertex

        return Vertex(settings)
    from pipeline.kubeflow import Kubeflow

    return Kubeflow(settings)


def submit(
    file: _FILE,
    param: _PARAM = None,
    name: Annotated[str, typer.Option(help="Of the run, for people. [default: made up]")] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Show what becomes of it; exit code 1 unless it succeeds.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    no_check: _NO_CHECK = False,
) -> None:
    """Start a run, after a look at what it needs and an estimate of what it costs."""
    pipeline, parameters = _read(file, param)
    platform = connect(pipeline.settings)
    if not no_check:
        _check(platform, pipeline, parameters)
    pipeline, parameters = _with_data_version(pipeline, parameters)
    _show_estimate(pipeline, parameters)
    if not yes:
        _ask()
    run = platform.submit(pipeline, parameters, name)
    typer.echo(f"Submitted: {run.name}\n{run.link}")
    if wait:
        from pipeline.cloud_settings import COMPONENTS
        from pipeline.following import follow

        ended = follow(platform, run, COMPONENTS)
        typer.echo(_outcome(ended))
        raise typer.Exit(0 if ended.state == "succeeded" else 1)


def runs(
    file: _FILE,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Id of one run, to see its components.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list, newest first.")] = 20,
) -> None:
    """List runs, or show one."""
    from pipeline.following import elapsed

    platform = connect(_pipeline(file).settings)
    if run is None:
        found = platform.list_runs(limit)
        lines = [(one.id, one.name, one.state, _local(one.created), elapsed(one.created, one.ended)) for one in found]
        typer.echo(_table(lines) if lines else "No runs yet; `submit` starts one")
        return
    one = platform.find_run(run)
    rows = [(task.name, task.state, elapsed(task.started, task.ended) if task.started else "") for task in one.tasks]
    so_far = f"{one.state}, {elapsed(one.created, one.ended)}, since {_local(one.created)}"
    typer.echo("\n".join([f"{one.name}: {so_far}", *([_table(rows)] if rows else []), *_reasons(one), one.link]))


@schedule_app.command("create")
def create_schedule(
    file: _FILE,
    name: _NAME,
    cron: Annotated[str, _CRON],
    time_zone: Annotated[str, _ZONE] = "UTC",
    param: _PARAM = None,
    no_check: _NO_CHECK = False,
) -> None:
    """Start runs at the times of a cron expression. Nothing comes from the cache."""
    from pipeline.cron import Cron

    Cron.parse(cron, time_zone)
    pipeline, parameters = _read(file, param)
    platform = connect(pipeline.settings)
    if not no_check:
        _check(platform, pipeline, parameters)
    created = platform.create_schedule(pipeline, parameters, name, cron, time_zone)
    _show_estimate(pipeline, parameters)
    typer.echo(_described(created))


@schedule_app.command("list")
def list_schedules(file: _FILE) -> None:
    """List the schedules of this pipeline."""
    found = connect(_pipeline(file).settings).list_schedules()
    rows = [
        (
            one.name,
            one.cron,
            one.time_zone,
            "active" if one.active else "paused",
            _local(one.next_run) if one.next_run else "",
        )
        for one in found
    ]
    typer.echo(_table(rows) if rows else "No schedules; `schedule create` makes one")


@schedule_app.command("pause")
def pause_schedule(file: _FILE, name: _NAME) -> None:
    """Start no more runs; those that go on are left alone."""
    typer.echo(_described(connect(_pipeline(file).settings).pause_schedule(name)))


@schedule_app.command("resume")
def resume_schedule(file: _FILE, name: _NAME) -> None:
    """Start runs again; those that were missed are left out."""
    typer.echo(_described(connect(_pipeline(file).settings).resume_schedule(name)))


@schedule_app.command("update")
def update_schedule(
    file: _FILE,
    name: _NAME,
    cron: Annotated[str | None, _CRON] = None,
    time_zone: Annotated[str | None, _ZONE] = None,
    param: _PARAM = None,
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Run what FILE is now. --param implies it.")] = False,
    no_check: _NO_CHECK = False,
) -> None:
    """Change when runs start, or what runs. Parameters that are not named get FILE's defaults."""
    replaced = pipeline or bool(param)
    if cron is None and time_zone is None and not replaced:
        raise InputError("schedule update: nothing to change; give --cron, --time-zone, --param or --pipeline")
    compiled, parameters = _read(file, param)
    platform = connect(compiled.settings)
    if replaced and not no_check:
        _check(platform, compiled, parameters)
    changed = platform.update_schedule(
        name, cron, time_zone, compiled if replaced else None, parameters if replaced else None
    )
    typer.echo(_described(changed))


@schedule_app.command("delete")
def delete_schedule(file: _FILE, name: _NAME) -> None:
    """Remove a schedule; its runs stay."""
    connect(_pipeline(file).settings).delete_schedule(name)
    typer.echo(f"Deleted: {name}")


def _pipeline(file: str) -> CompiledPipeline:
    from pipeline.compiled import CompiledPipeline

    return CompiledPipeline.read(file)


def _read(file: str, texts: list[str] | None) -> tuple[CompiledPipeline, dict[str, Any]]:
    """Return the pipeline, and values for its parameters that a run can work with."""
    wrong = [text for text in texts or [] if "=" not in text]
    if wrong:
        raise InputError("\n".join(f"--param {text}: expected NAME=VALUE, as in epochs=20" for text in wrong))
    pipeline = _pipeline(file)
    values = pipeline.parse(dict(text.split("=", 1) for text in texts or []))
    _check_values(pipeline, values)
    return pipeline, values


def _check_values(pipeline: CompiledPipeline, values: Mapping[str, Any]) -> None:
    """Refuse what the components would refuse, hours later."""
    from pydantic import ValidationError

    from umx_model.evaluation.gate import GateRule, check_floors
    from umx_model.profile import explain

    problems = [
        f"--param {name}=: expected a folder" for name in ("data", "push_destination") if values.get(name, name) == ""
    ]
    profile = pipeline.settings.profile
    for name, setting in (
        ("targets", "model.targets"),
        ("epochs", "train.epochs"),
        ("batch_size", "train.batch_size"),
        ("excerpt_seconds", "train.excerpt_seconds"),
    ):
        if name in values:
            try:
                profile = profile.updated({setting: values[name]})
            except InputError as error:
                problems.append(f"--param {name}={values[name]}: {str(error).removeprefix('settings: ')}")
    floor = _value(pipeline, values, "floor_db")
    try:
        check_floors(GateRule(floor_db=floor), profile.model.targets)
    except ValidationError as error:
        problems.append(f"--param floor_db={floor}: {explain(error)}")
    except ValueError as error:
        problems.append(f"--param floor_db={floor}: {error}")
    if problems:
        raise InputError("\n".join(problems))


def _value(pipeline: CompiledPipeline, values: Mapping[str, Any], name: str) -> Any:
    return values.get(name, pipeline.parameters[name].default)


def _check(platform: Platform, pipeline: CompiledPipeline, values: Mapping[str, Any]) -> None:
    data, destination = (_value(pipeline, values, name) for name in ("data", "push_destination"))
    problems = platform.check(data, destination)
    if problems:
        raise InputError("\n".join(problems))


def _with_data_version(pipeline: CompiledPipeline, values: dict[str, Any]) -> tuple[CompiledPipeline, dict[str, Any]]:
    """Name the state of the database, with which what an earlier run read of it can be used again."""
    import tensorflow as tf

    from umx_model.data.track_folder import database_fingerprint

    if "data_version" not in values:
        data = _value(pipeline, values, "data")
        try:
            # What a path means in a container is not known here.
            version = database_fingerprint(data) if "://" in data else ""
        except (InputError, OSError, tf.errors.OpError):
            version = ""
        if not version:
            typer.echo(f"{data} cannot be read from here, so the run reads all of it, changed or not")
        values = values | {"data_version": version}
    return (pipeline.with_cache(index=True) if values["data_version"] else pipeline), values


def _show_estimate(pipeline: CompiledPipeline, values: Mapping[str, Any]) -> None:
    from pipeline.estimate import estimate

    typer.echo("\n".join(estimate(pipeline, values).lines()))


def _ask() -> None:
    if not sys.stdin.isatty():
        raise InputError("submit: nobody is there to say yes; give --yes to start the run without the question")
    try:
        agreed = typer.confirm("Start the run?")
    except click.Abort:
        agreed = False
    if not agreed:
        typer.echo("Not submitted")
        raise typer.Exit(1)


def _outcome(run: Run) -> str:
    from pipeline.following import elapsed

    return "\n".join([f"{run.name}: {run.state} after {elapsed(run.created, run.ended)}", *_reasons(run)])


def _reasons(run: Run) -> list[str]:
    reasons = [f"{task.name}: {task.message}" for task in run.tasks if task.message]
    return reasons or ([run.message] if run.message else [])


def _described(schedule: Schedule) -> str:
    from pipeline.cron import Cron

    lines = [f"{schedule.name}: {schedule.cron} ({schedule.time_zone}), {'active' if schedule.active else 'paused'}"]
    if schedule.active:
        with contextlib.suppress(InputError):  # somebody wrote something else in the platform's pages
            times = Cron.parse(schedule.cron, schedule.time_zone).next_times(3)
            lines.append(f"next: {', '.join(time.strftime('%a %Y-%m-%d %H:%M %Z') for time in times)}")
    return "\n".join([*lines, schedule.link])


def _local(moment: str) -> str:
    """Return a time (ISO 8601, UTC) as clocks here show it."""
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M")


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
