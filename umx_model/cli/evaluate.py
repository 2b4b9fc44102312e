"""`umx-pro evaluate`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from umx_model.cli.common import Model, Niter, progress_bar
from umx_model.errors import InputError


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help="Split of a database: DATABASE/valid or DATABASE/test.", metavar="DIR")],
    niter: Niter = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Also write all scores to this file.", metavar="FILE")
    ] = None,
) -> None:
    """Print the SDR per target of a model's estimates and of the mixtures themselves."""
    import tensorflow as tf

    from umx_model.data.track_folder import read_database
    from umx_model.evaluation.evaluate import METRIC, evaluate_sample, summarize, table, to_json
    from umx_model.inference.restore import load_separator

    if json_file is not None and not tf.io.gfile.isdir(os.path.dirname(json_file) or "."):
        raise InputError(f"--json {json_file}: there is no folder {os.path.dirname(json_file)}; make it first")
    separator = load_separator(model, niter=niter)
    root, split = os.path.split(data.rstrip("/"))
    if not tf.io.gfile.isdir(data):
        raise InputError(f"{data}: no such folder; expected one split of a database, such as DATABASE/valid")
    if tf.io.gfile.isdir(os.path.join(data, "valid")):
        raise InputError(f"{data}: a whole database; name one split of it, such as {os.path.join(data, 'valid')}")
    # All targets: those that the model does not have are part of the mixture.
    samples = read_database(root or ".", splits=[split])[split]
    scores = []
    for number, sample in enumerate(samples, 1):
        with progress_bar(f"evaluating {number}/{len(samples)} {sample.id}") as progress:
            scores.append(evaluate_sample(separator, sample, progress))
    count = f"{len(samples)} sample{'s' if len(samples) > 1 else ''}"
    print(f"{METRIC} ({count})\n{table(summarize(scores))}", flush=True)
    if json_file is not None:
        document = {"model": model, "data": data, **to_json(scores)}
        with tf.io.gfile.GFile(json_file + ".partial", "w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
        tf.io.gfile.rename(json_file + ".partial", json_file, overwrite=True)
