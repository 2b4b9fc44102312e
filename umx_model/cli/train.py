"""`umx-pro train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import click
import typer

from umx_model.cli.common import names
from umx_model.errors import InputError

if TYPE_CHECKING:
    from umx_model.profile import Profile


def train(
    data: Annotated[str, typer.Option(help="Database: folder with train/ and valid/.", metavar="DIR")],
    output: Annotated[str, typer.Option(help="Model folder to write.", metavar="DIR")],
    profile: Annotated[
        str | None,
        typer.Argument(help="Profile, a JSON file.", metavar="[PROFILE]", show_default="Open-Unmix's recipe"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUTPUT's last checkpoint.")] = False,
    targets: Annotated[
        str | None,
        typer.Option(help="What to separate, comma-separated.", metavar="A,B", show_default="the profile's, or DATA's"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: train.epochs=2.", metavar="NAME=VALUE")
    ] = None,
) -> None:
    """Train a model on a database of stems."""
    from umx_model.train.trainer import train as run

    changes = dict(_setting(text) for text in settings or [])
    if targets:
        changes["model.targets"] = targets
    start = _starting_profile(profile, data, output, resume, names(targets) if targets else None)
    try:
        run(start.updated(changes), data, output, resume=resume)
    except KeyboardInterrupt:
        raise click.Abort("interrupted; the same command with --resume continues") from None
    print(f"model: {output}\nuse:   umx-pro separate --model {output} FILES...", flush=True)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: expected NAME=VALUE, such as train.epochs=2")
    return name.strip(), value.strip()


def _starting_profile(path: str | None, data: str, output: str, resume: bool, targets: list[str] | None) -> Profile:
    """The profile that was asked for; or that of the run to resume; or the defaults for the targets."""
    from umx_model.data.track_folder import found_targets
    from umx_model.profile import Profile

    def find_targets() -> Sequence[str]:
        return targets or found_targets(data)

    if path is None and resume:
        return Profile.read(output)
    return Profile.read(path, find_targets) if path is not None else Profile.parse({}, find_targets=find_targets)
