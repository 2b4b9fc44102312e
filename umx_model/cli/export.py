"""`umx-pro export`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from umx_model.cli.common import Niter, Softmask


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A name that `umx-pro models` lists, a model folder, a weights file or a checkpoint.",
            metavar="NAME|DIR",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write; must be new.", metavar="DIR")],
    niter: Niter = None,
    softmask: Softmask = None,
    tflite: Annotated[
        bool, typer.Option("--tflite", help="Also write the network alone as OUTPUT/spectral_filter.tflite.")
    ] = False,
) -> None:
    """Export a model as a SavedModel, for TensorFlow and TensorFlow Serving without this program.

    Its signature serving_default takes a mixture [batch, samples, channels] and returns every target in the
    same shape; the signature spectral_filter is the network alone, magnitudes in and out.
    """
    from umx_model.model import export as exporting
    from umx_model.model.folder import read_model
    from umx_model.pretrained import locate_model, mention_licence

    path = locate_model(model)
    mention_licence(path)
    found, profile = read_model(path, niter=niter, softmask=softmask)
    exporting.export(found, profile, output, tflite=tflite)
    print(f"SavedModel: {output}, {', '.join(profile.model.targets)}", flush=True)
    if tflite:
        print(f"TFLite:     {os.path.join(output, exporting.TFLITE)}", flush=True)
