"""`umx-pro models`: which models there are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from umx_model.cli.common import DEFAULT_MODEL, WRONG_INPUT, report
from umx_model.errors import InputError

if TYPE_CHECKING:
    from umx_model.profile import Profile

HEADER = ("name", "targets", "size", "licence", "SDR in dB", "folder")


def models(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            help="Model folders, and folders that hold some.", metavar="[FOLDERS]...", show_default="the known models"
        ),
    ] = None,
) -> None:
    """List the models that `--model` knows by name.

    These are the ones that come with the program, and those in the folders of the environment variable
    UMX_PRO_MODELS (separated as in PATH). With FOLDERS, lists the models in those instead.
    """
    import tensorflow as tf

    from umx_model.pretrained import find_models, known_models
    from umx_model.profile import Profile

    found: list[tuple[str, str]] = []
    for folder in folders or []:
        if not tf.io.gfile.isdir(folder):
            raise InputError(f"{folder}: no such folder; expected a model folder, or one that holds some")
        models = find_models(folder)
        if not models:
            raise InputError(f"{folder}: no model in it; a model is a folder with profile.json and model.weights.h5")
        found += models.items()
    if not folders:
        found = list(known_models().items())
    rows: list[tuple[str, ...]] = [HEADER]
    wrong = 0
    for name, folder in found:
        try:
            rows.append(_row(name, folder, Profile.read(folder)))
        except InputError as error:
            report(error)
            wrong += 1
    if len(rows) > 1:
        print(_table(rows))
    if not folders:
        print(f"`umx-pro separate` uses {DEFAULT_MODEL} where --model names no other.")
    if wrong:
        raise typer.Exit(WRONG_INPUT)


def _row(name: str, folder: str, profile: Profile) -> tuple[str, ...]:
    import tensorflow as tf

    from umx_model.model.folder import WEIGHTS

    weights = os.path.join(folder, WEIGHTS)
    if not tf.io.gfile.exists(weights):
        raise InputError(f"{folder}: no {WEIGHTS} in it; train it to the end, or get it again")
    return (
        name,
        ", ".join(profile.model.targets),
        f"{tf.io.gfile.stat(weights).length / 1e6:.1f} MB",
        profile.license or "not stated",
        ", ".join(f"{target} {score:.1f}" for target, score in profile.scores.items()) or "not measured",
        folder,
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
