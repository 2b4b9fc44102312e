"""Runs the pipeline somewhere.

python pipeline_runner.py local --data DIR      on this machine
python pipeline_runner.py compile               write the file that Vertex AI or Kubeflow runs
python pipeline_runner.py submit FILE           start a run there
python pipeline_runner.py runs FILE             see what became of it
python pipeline_runner.py schedule create ...   start runs regularly
python pipeline_runner.py lineage VERSION       which data made a pushed version
python pipeline_runner.py rollback VERSION      serve an earlier version again
"""

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from pipeline import remote_commands

_GOES_ON = "; the same command continues where it stopped"

_DATA = Annotated[str | None, typer.Option(help="Database: a folder with train/ and valid/.")]
_TARGETS = Annotated[str | None, typer.Option(help="Comma-separated. [default: as found in the database]")]
_PROFILE = Annotated[str | None, typer.Option(help="Profile (JSON or YAML) or model folder to start from.")]
_CHANGES = Annotated[list[str] | None, typer.Option("--set", help="Change the profile, as train.epochs=2. Repeatable.")]
_FLOOR = Annotated[
    str | None,
    typer.Option(
        help="dB above the mixture that every target needs, or one for each, as vocals=2,drums=1. [default: 0]"
    ),
]
_WARM_START = Annotated[
    bool | None,
    typer.Option("--warm-start/--fresh-start", help="Train on from the served model. [default: fresh]"),
]
_INIT_FROM = Annotated[
    str | None,
    typer.Option(
        help="Model whose weights training starts from, with its profile where none is given: a name that `umx-pro "
        "models` lists, a model folder, or a checkpoint in one. [default: random weights]"
    ),
]
_KEEP_VERSIONS = Annotated[int | None, typer.Option(help="Versions to leave, at least 1. [default: 5]")]
_BEAM_ARG = Annotated[list[str] | None, typer.Option(help="Option for Beam. Repeatable.")]
_OUTPUT = Annotated[str | None, typer.Option(help="Folder of the runs. [default: umx-pro-output]")]
_DESTINATION = Annotated[str | None, typer.Option(help="Folder of served versions. [default: OUTPUT/serving]")]
_SETTINGS = Annotated[str | None, typer.Option(help="File with settings (YAML or JSON); options win over it.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def pipeline() -> None:
    """Train, judge and push a separator: the UMX-PRO pipeline."""


@app.command()
def local(
    data: _DATA = None,
    targets: _TARGETS = None,
    output: Annotated[
        str | None, typer.Option(help="Folder for all that the run leaves. [default: umx-pro-output]")
    ] = None,
    push_destination: _DESTINATION = None,
    profile: _PROFILE = None,
    changes: _CHANGES = None,
    floor: _FLOOR = None,
    warm_start: _WARM_START = None,
    init_from: _INIT_FROM = None,
    keep_versions: _KEEP_VERSIONS = None,
    beam_arg: _BEAM_ARG = None,
    settings: _SETTINGS = None,
) -> None:
    """Run the pipeline on this machine. Run again, it continues where it stopped and skips what is done."""
    options = {
        "data": data,
        "targets": targets,
        "output": output,
        "push_destination": push_destination,
        "profile": profile,
        "set": _assignments(changes, "--set", "train.epochs=2"),
        "floor_db": floor,
        "warm_start": warm_start,
        "init_from": init_from,
        "keep_versions": keep_versions,
        "beam_args": beam_arg or None,
    }
    # Beam's worker processes import our packages, too, wherever this was started.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parent), os.getenv("PYTHONPATH")])
    )
    # Imported here: TFX takes seconds, which --help and a wrong option should not.
    from pipeline.settings import PipelineSettings

    chosen = PipelineSettings.load(options, settings)
    from pipeline.local import describe, run_local

    typer.echo(describe(run_local(chosen, typer.echo)))


@app.command("compile")
def compile_(
    image: Annotated[str | None, typer.Option(help="Container image that components run in.")] = None,
    pipeline_root: Annotated[str | None, typer.Option(help="Folder for what runs make, as gs://BUCKET/FOLDER.")] = None,
    output: Annotated[str, typer.Option(help="File to write.")] = "umx_pro.yaml",
    platform: Annotated[str | None, typer.Option(help="vertex or kubeflow. [default: vertex]")] = None,
    project: Annotated[str | None, typer.Option(help="Google Cloud project.")] = None,
    region: Annotated[str | None, typer.Option(help="Of Vertex AI. [default: us-central1]")] = None,
    kubeflow_host: Annotated[str | None, typer.Option(help="Address of Kubeflow Pipelines.")] = None,
    data: _DATA = None,
    targets: _TARGETS = None,
    push_destination: Annotated[
        str | None, typer.Option(help="Folder of served versions. [default: PIPELINE_ROOT/serving]")
    ] = None,
    profile: _PROFILE = None,
    changes: _CHANGES = None,
    floor: _FLOOR = None,
    warm_start: _WARM_START = None,
    init_from: _INIT_FROM = None,
    keep_versions: _KEEP_VERSIONS = None,
    beam_arg: _BEAM_ARG = None,
    settings: _SETTINGS = None,
) -> None:
    """Write the file that Vertex AI or Kubeflow runs: for `submit` and `schedule`, or to upload in their pages.

    Machines, service account, Dataflow and more are in the file with settings.
    """
    options = {
        "image": image,
        "pipeline_root": pipeline_root,
        "platform": platform,
        "project": project,
        "region": region,
        "kubeflow_host": kubeflow_host,
        "data": data,
        "targets": targets,
        "push_destination": push_destination,
        "profile": profile,
        "set": _assignments(changes, "--set", "train.epochs=2"),
        "floor_db": floor,
        "warm_start": warm_start,
        "init_from": init_from,
        "keep_versions": keep_versions,
        "beam_args": beam_arg or None,
    }
    from pipeline.cloud_settings import CloudSettings

    chosen = CloudSettings.load(options, settings)
    from pipeline.compile import compile_pipeline

    compiled = compile_pipeline(chosen)
    compiled.write(output)
    typer.echo(f"Written to {output}, for {'Vertex AI' if chosen.platform == 'vertex' else 'Kubeflow'}")
    typer.echo("A run may choose:")
    for name, parameter in compiled.parameters.items():
        typer.echo(f"  {name:<17} {parameter.default!s}")


@app.command()
def lineage(
    version: Annotated[str, typer.Argument(help="Number of a pushed version, of those that were removed too.")],
    output: _OUTPUT = None,
    push_destination: _DESTINATION = None,
    settings: _SETTINGS = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, sample by sample, as JSON.")] = False,
) -> None:
    """Say which data, training and evaluation made a version, from the record of runs."""
    from pipeline.settings import Folders

    folders = Folders.find({"output": output, "push_destination": push_destination}, settings)
    from pipeline.lineage import describe, trace

    found = trace(folders, version)
    typer.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else describe(found))


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="Number of the version to serve again.")],
    output: _OUTPUT = None,
    push_destination: _DESTINATION = None,
    settings: _SETTINGS = None,
) -> None:
    """Copy an earlier version to a new highest number, which servers then load.

    The model that it replaces is withdrawn: runs do not push it again, unless it is rolled back to.
    """
    from components.pusher.versions import current_version, number
    from components.pusher.versions import rollback as roll_back
    from pipeline.settings import Folders

    folders = Folders.find({"output": output, "push_destination": push_destination}, settings)
    replaced = current_version(folders.serving_folder)
    restored = roll_back(folders.serving_folder, version)
    typer.echo(f"Version {version} is served again, as {restored}")
    if replaced is not None:
        typer.echo(f"Withdrawn: version {number(replaced)}, which runs will not push again")


def _assignments(changes: list[str] | None, option: str, example: str) -> dict[str, Any] | None:
    from umx_model.errors import InputError

    wrong = [change for change in changes or [] if "=" not in change]
    if wrong:
        raise InputError("\n".join(f"{option} {change}: expected NAME=VALUE, as in {example}" for change in wrong))
    return dict(change.split("=", 1) for change in changes) if changes else None


remote_commands.register(app)


def main() -> int:
    """Run the command line; returns the exit code: 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM, else 1."""
    from pipeline.remote import LeftRunning, RemoteError
    from umx_model.errors import InputError

    # Of the others, Ctrl-C leaves nothing behind, or they say themselves what goes on without them.
    interrupted = "interrupted" + (_GOES_ON if "local" in sys.argv[1:2] else "")
    try:
        # The value is an exit code where a command ended early: after --help, or Ctrl-C, which typer swallows.
        code = app(prog_name="pipeline_runner.py", standalone_mode=False) or 0
        return _end(interrupted, code) if code == 130 else code
    except (KeyboardInterrupt, click.Abort):
        return _end(interrupted, 130)
    except SystemExit as stop:
        if stop.code != 143:  # SIGTERM
            raise
        return _end("terminated" + _GOES_ON, 143)
    except click.UsageError as error:
        # What is replaced is a slip of typer's with click 8.2.
        message = error.format_message().rstrip(".").replace(" (env var: 'None')", "")
        return _end(f"error: {message} (see --help)", 2) if message else 2  # no command: help has been printed
    except InputError as error:
        return _end(f"error: {error}", 2)
    except RemoteError as error:
        return _end(f"failed: {error}", 1)
    except LeftRunning as notice:
        return _end(str(notice), 130)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return _end(f"failed: {reason} (UMX_PRO_DEBUG=1 shows where)", 1)


def _end(message: str, code: int) -> int:
    if os.environ.get("UMX_PRO_DEBUG") == "1":
        traceback.print_exc()
    print(f"umx-pro: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
