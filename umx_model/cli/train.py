"""`umx-pro train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from umx_model.cli.common import names
from umx_model.cli.settings import print_settings
from umx_model.errors import InputError

if TYPE_CHECKING:
    from umx_model.profile import Profile

EXAMPLES = """
Examples:

umx-pro train --data music --output model

umx-pro train --data music --output model --resume

umx-pro train my.json --data music --output small --set model.hidden_size=256 --set train.epochs=20

umx-pro train --data music --target vocals --output vocals

umx-pro train --data music --init-from vocals-accompaniment --output mine

umx-pro train --data gs://bucket/music --output model --backup gs://bucket/model --resume
"""

_WHAT, _WHERE, _ON = "What is learned", "Where from and where to", "Stopping and going on"


def _list_settings(asked: bool) -> None:
    if asked:
        print_settings()
        raise typer.Exit


def train(
    data: Annotated[
        str,
        typer.Option(
            help="Database: a folder with train/ and valid/, local, gs:// or https://. `umx-pro check-data DIR` says "
            "what is wrong with one.",
            metavar="DIR",
            rich_help_panel=_WHERE,
        ),
    ],
    output: Annotated[str, typer.Option(help="Model folder to write.", metavar="DIR", rich_help_panel=_WHERE)],
    profile: Annotated[
        str | None,
        typer.Argument(
            help="Profile: a JSON file with what differs from the defaults, or a model folder.",
            metavar="[PROFILE]",
            show_default="Open-Unmix's recipe",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="What the samples hold and the model is to separate, comma-separated.",
            metavar="A,B",
            show_default="the profile's, or DATA's",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Learn this one of the targets alone, out of the mixture of all. `umx-pro join` makes one model of "
            "several such.",
            metavar="NAME",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting of the profile: train.epochs=20. Repeatable.",
            metavar="NAME=VALUE",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    list_settings: Annotated[
        bool,
        typer.Option(
            "--settings",
            help="List all settings with their defaults and what they mean, and exit.",
            is_eager=True,
            callback=_list_settings,
            rich_help_panel=_WHAT,
        ),
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Start from the weights of this model, with its profile where none is given: a name that `umx-pro "
            "models` lists, a model folder, or a checkpoint in one.",
            metavar="NAME|PATH",
            show_default="random weights",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from OUTPUT's newest checkpoint (with --backup also from its copy), or start where there "
            "is none. Without PROFILE, with the settings it had.",
            rich_help_panel=_ON,
        ),
    ] = False,
    backup: Annotated[
        str | None,
        typer.Option(
            help="Keep a copy of OUTPUT in this folder of a bucket, in the background. A bucket that is slow or away "
            "never slows training.",
            metavar="gs://BUCKET/DIR",
            rich_help_panel=_ON,
        ),
    ] = None,
) -> None:
    """Train a model on a database of stems.

    \b
    DATA holds train/ and valid/, these one folder per sample, and that one file
    per target (vocals.wav, drums.flac). Training reads excerpts straight from
    the files, augments them, and sums them to mixtures. All GPUs take part.

    \b
    OUTPUT gets
      profile.json       every setting, the losses of each epoch, versions
      checkpoints/       what --resume continues from
      logs/              curves, sound, pictures: tensorboard --logdir OUTPUT/logs
      model.weights.h5   at the end: the weights of the best validation loss
      saved_model/       at the end: the same for any TensorFlow
    `umx-pro separate --model OUTPUT` uses the best weights so far at any time.

    \b
    Training ends after train.epochs, after train.patience epochs that were no
    better, or after train.max_minutes. Whatever stops it before (Ctrl-C, SIGTERM,
    a crash, the plug), the same command with --resume continues it, as if
    nothing had happened.

    \b
    Exit codes
      0     trained
      1     failed
      2     something that you can mend; one line says what
      130   stopped by Ctrl-C, with a checkpoint
      143   stopped by SIGTERM, with a checkpoint
    """
    from umx_model.pretrained import locate_model, mention_licence
    from umx_model.train.trainer import train as run

    changes: dict[str, Any] = dict(_setting(text) for text in settings or [])
    if targets:
        changes["model.targets"] = targets
    start_from = None if init_from is None else locate_model(init_from)
    if start_from is not None:
        mention_licence(start_from)
    start = _starting_profile(profile, data, output, backup, resume, start_from, names(targets) if targets else None)
    wanted = start.updated(changes)
    if target:
        wanted = _alone(wanted, names(target))
    try:
        run(wanted, data, output, resume=resume, backup=backup, start_from=start_from)
    except KeyboardInterrupt:
        raise click.Abort("interrupted; the same command with --resume continues") from None
    print(f"model: {output}\nuse:   umx-pro separate --model {output} FILES...", flush=True)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: expected NAME=VALUE, such as train.epochs=2")
    return name.strip(), value.strip()


def _alone(profile: Profile, wanted: Sequence[str]) -> Profile:
    """The profile of a model of some targets, which hears the mixture of all."""
    everything = profile.mixture_targets
    unknown = [target for target in wanted if target not in everything]
    if unknown:
        raise InputError(f"--target: there is no {', '.join(unknown)}; the samples hold {', '.join(everything)}")
    mixture = None if set(wanted) == set(everything) else list(everything)
    return profile.updated({"model.targets": list(wanted), "train.mixture_targets": mixture})


def _starting_profile(
    path: str | None,
    data: str,
    output: str,
    backup: str | None,
    resume: bool,
    start_from: str | None,
    targets: list[str] | None,
) -> Profile:
    """The profile that was asked for; or that of the run to resume, or to start from; or the defaults."""
    import tensorflow as tf

    from umx_model.data.track_folder import found_targets
    from umx_model.model.folder import read_profile
    from umx_model.profile import FILE_NAME, Profile

    def find_targets() -> Sequence[str]:
        return targets or found_targets(data)

    if path is not None:
        return Profile.read(path, find_targets)
    for folder in (output, backup) if resume else ():
        if folder and tf.io.gfile.exists(os.path.join(folder, FILE_NAME)):
            return Profile.read(folder)
    if start_from is not None:
        return read_profile(start_from)
    return Profile.parse({}, find_targets=find_targets)
