"""`umx-pro check-data`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from umx_model.cli.common import WRONG_INPUT, names, say
from umx_model.errors import InputError

if TYPE_CHECKING:
    from umx_model.data.drift import Drift
    from umx_model.data.report import CheckedSample, DatabaseReport

EXAMPLES = """
Examples:

umx-pro check-data music

umx-pro check-data gs://bucket/music --json music.json

umx-pro check-data music --compare music.json
"""


def check_data(
    data: Annotated[
        str, typer.Argument(help="Database: a folder with train/ and valid/, local, gs:// or https://.", metavar="DIR")
    ],
    targets: Annotated[
        str | None,
        typer.Option(
            help="What every sample must hold, comma-separated.", metavar="A,B", show_default="what most samples hold"
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Also say how DIR differs from this older database, or from the report that --json wrote of it.",
            metavar="DIR|FILE",
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help="Write all that was measured to this file; - for stdout.", metavar="FILE|-"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 for warnings too.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar and no table: problems and warnings only.")
    ] = False,
) -> None:
    """Find all that is wrong with a database of stems, in one pass over all of its audio.

    \b
    Problems, for which training would refuse it: splits, samples or targets that
    are missing; files that are damaged or cannot be read; stems of a sample that
    differ in length, rate or channels; samples that differ in rate or channels
    from the others; values that are NaN or infinite.

    \b
    Warnings, worth knowing: the same audio twice, above all in train and valid;
    clipping (three equal values or more in a row at full scale); a sharp edge of
    the spectrum, which a lossy original leaves; silence; DC offset; sums of
    targets beyond full scale; samples shorter than an excerpt.

    \b
    With --compare, also how loudness, peak, silence, bandwidth, length and
    formats have drifted (differences beyond chance and large enough to matter),
    and which samples were added, removed or changed.

    \b
    Exit codes
      0     no problems
      1     failed
      2     problems, or the folder cannot be used; with --strict also warnings
      130   stopped by Ctrl-C
    """
    from umx_model.data.drift import compare as hold_against
    from umx_model.data.report import check_database

    _check_json_file(json_file)
    try:
        older = None if compare is None else _older(compare, quiet)
        report = check_database(data.rstrip("/") or "/", names(targets) if targets else None, quiet)
    except KeyboardInterrupt:
        raise click.Abort("interrupted") from None
    drift = None if older is None else hold_against(report, older)
    if json_file != "-":
        _print(report, drift, quiet)
    if json_file is not None:
        _write_json(json_file, report, drift)
    warnings = report.warnings or (drift is not None and drift.warnings)
    if report.problems or (strict and warnings):
        raise typer.Exit(WRONG_INPUT)


def _older(path: str, quiet: bool) -> DatabaseReport:
    """The report of the database to compare with: read, or made now."""
    import tensorflow as tf

    from umx_model.data.report import DatabaseReport, check_database

    if tf.io.gfile.isdir(path):
        return check_database(path, quiet=quiet)
    try:
        with tf.io.gfile.GFile(path) as file:
            document = json.loads(file.read())
    except tf.errors.OpError:
        raise InputError(f"--compare {path}: no such database, nor a report of one") from None
    except ValueError:
        document = None
    return DatabaseReport.from_json(document, f"--compare {path}")


def _check_json_file(path: str | None) -> None:
    import tensorflow as tf

    if path not in (None, "-") and not tf.io.gfile.isdir(os.path.dirname(path or "") or "."):
        raise InputError(f"--json {path}: there is no folder {os.path.dirname(path or '')}; make it first")


def _write_json(path: str, report: DatabaseReport, drift: Drift | None) -> None:
    import dataclasses

    import tensorflow as tf

    document: dict[str, Any] = report.to_json()
    if drift is not None:
        document["drift"] = dataclasses.asdict(drift)
    text = json.dumps(document, indent=1)
    if path == "-":
        say(text)
        return
    with tf.io.gfile.GFile(path + ".partial", "w") as file:
        file.write(text + "\n")
    tf.io.gfile.rename(path + ".partial", path, overwrite=True)


def _print(report: DatabaseReport, drift: Drift | None, quiet: bool) -> None:
    if not quiet:
        say(_table(report) + "\n")
    if drift is not None:
        if not quiet:
            say(_drift_table(drift) + "\n")
        for title, samples in (("added", drift.added), ("removed", drift.removed), ("changed", drift.changed)):
            _list(title, samples)
        _list("drift", drift.warnings)
    _list("warnings", report.warnings)
    _list("problems", report.problems)
    if not report.problems:
        say("no problems" + ("" if report.warnings else ", nothing to warn of"))


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        say("\n".join([f"{title} ({len(lines)}):", *(f"  {line}" for line in lines)]))


def _table(report: DatabaseReport) -> str:
    """What the audio is like, a line per split and target."""
    rows: list[tuple[str, ...]] = [
        ("split", "target", "samples", "hours", "loudness dB", "peak dB", "silent", "bandwidth", "clip", "cut")
    ]
    for split in dict.fromkeys(sample.split for sample in report.samples):
        samples = [sample for sample in report.samples if sample.split == split]
        rows += [row for target in report.targets if (row := _row(split, target, samples))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, "loudness: lowest, median, highest; peak and bandwidth: highest, median"])


def _row(split: str, target: str, samples: Sequence[CheckedSample]) -> tuple[str, ...] | None:
    import numpy as np

    found = [sample.statistics[target] for sample in samples if target in sample.statistics]
    if not found:
        return None
    loudness = sorted(one.loudness_db for one in found)
    hours = sum(sample.seconds for sample in samples if target in sample.statistics) / 3600
    return (
        split,
        target,
        str(len(found)),
        f"{hours:.2f}",
        f"{loudness[0]:.0f} {float(np.median(loudness)):.0f} {loudness[-1]:.0f}",
        f"{20 * np.log10(max(one.peak for one in found) + 1e-6):.1f}",
        f"{float(np.mean([one.silence_fraction for one in found])):.0%}",
        f"{float(np.median([one.bandwidth_hz for one in found])) / 1000:.1f} kHz",
        str(sum(one.clipping > 0 for one in found)),
        str(sum(one.cutoff_hz > 0 for one in found)),
    )


def _drift_table(drift: Drift) -> str:
    width = max(len(one.what) for one in drift.differences) if drift.differences else 0
    lines = [f"{'':{width}}  {'median':>7}  {'was':>7}  {'moved':>7}       {'D':>4}  {'chance':>6}"]
    for one in drift.differences:
        figures = "  ".join(f"{value:7.1f}" for value in (one.new, one.old, one.moved))
        chance = f"{one.critical:6.2f}" if one.critical < 1 else "  few "
        drifted = "  drifted" if one.drifted else ""
        lines.append(f"{one.what:{width}}  {figures} {one.unit:<3}  {one.distance:5.2f}  {chance}{drifted}".rstrip())
    return "\n".join(lines)
