"""`umx-pro evaluate`: how good estimates are, of a model on a database or in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from umx_model.cli.common import Niter, Softmask, complain, names, say
from umx_model.errors import InputError

if TYPE_CHECKING:
    from umx_model.evaluation.evaluate import Evaluated
    from umx_model.evaluation.scores import Evaluation, Excerpt, TrackScores
    from umx_model.inference.separator import Separator

EXAMPLES = """
Examples:

umx-pro evaluate --model MODEL --data music/test --report report.html

umx-pro evaluate --model NEW --baseline OLD --data music/test --pair vocals

umx-pro evaluate --references music/test --estimates separated --json scores
"""

_PATH_HELP = "A name that `umx-pro models` lists, a model folder, a weights file, a checkpoint or a SavedModel."


def evaluate(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=_PATH_HELP, metavar="NAME|DIR", rich_help_panel="A model on a database"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Split of a database: DATABASE/valid or DATABASE/test.",
            metavar="DIR",
            rich_help_panel="A model on a database",
        ),
    ] = None,
    niter: Niter = None,
    softmask: Softmask = None,
    references: Annotated[
        str | None,
        typer.Option(
            help="Folder of tracks, each a folder with one file per stem; or the stems of one track.",
            metavar="DIR",
            rich_help_panel="Estimates in a folder",
        ),
    ] = None,
    estimates: Annotated[
        str | None,
        typer.Option(
            help="The same of what is to be scored, with the same names.",
            metavar="DIR",
            rich_help_panel="Estimates in a folder",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Score these only, comma-separated.",
            metavar="A,B",
            show_default="all in both folders",
            rich_help_panel="Estimates in a folder",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Also score this, and compare: another model, or another folder of estimates.", metavar="NAME|DIR"
        ),
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option(
            help="Score this target and the sum of all others as a pair, as is usual for vocals and accompaniment.",
            metavar="TARGET",
        ),
    ] = None,
    json_path: Annotated[
        str | None,
        typer.Option(
            "--json",
            help="Write all scores: to one file if this ends in .json, else to a folder with DIR/SPLIT/TRACK.json "
            "as museval reads it (of the split test).",
            metavar="FILE|DIR",
            rich_help_panel="Output",
        ),
    ] = None,
    csv_path: Annotated[
        str | None,
        typer.Option(
            "--csv", help="Write a row per track and target to this file.", metavar="FILE", rich_help_panel="Output"
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            help="Write a report with plots and excerpts to listen to, one HTML file.",
            metavar="FILE",
            rich_help_panel="Output",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.", rich_help_panel="Output")] = False,
) -> None:
    """Score estimates: those of a model on a database, or those in a folder.

    \b
    Prints a table with a line per target, in dB, each figure the median over
    tracks of the median over windows of 1 s (BSSEval v4, as museval computes it):
      SDR, ISR, SIR, SAR    all distortion; spatial; interference; artifacts
      mixture, gain         SDR of the mixture itself, and how far SDR is above it
      baseline, change      SDR of the baseline, and how far SDR is above it

    \b
    Stems that do not match
      reference without an estimate, or a target that the model does not have:
          not scored, part of the mixture only
      estimate without a reference:  passed over
      a track that lacks estimates, or a target that others have:  refused
      estimate longer or shorter than the reference:  cut, or padded with silence
      other sample rate or channels than the reference:  refused
      a file named mixture:  passed over; the mixture is the sum of the references

    \b
    Silence: a window in which any reference or estimate is silent has no score,
    for any target, as in museval; tracks without a score are left out of medians.

    \b
    Exit codes
      0     scored
      1     failed
      2     a file or folder cannot be used, or options do not go together
      130   stopped by Ctrl-C; nothing is written
    """
    of_model = {"--model": model, "--data": data, "--niter": niter, "--softmask": softmask}
    of_folders = {"--references": references, "--estimates": estimates, "--targets": targets}
    _check_options(of_model, of_folders)
    _check_outputs(json_path, csv_path, report)
    if model is not None and data is not None:
        settings = {"niter": niter, "softmask": softmask}
        evaluation, split = _evaluate_model(model, data, baseline, settings, pair, report is not None, quiet)
    elif references is not None and estimates is not None:
        chosen = names(targets) if targets is not None else None
        evaluation, split = _evaluate_folders(references, estimates, baseline, chosen, pair, report is not None, quiet)
    else:
        raise InputError("nothing to evaluate: give --model and --data, or --references and --estimates")
    _print(evaluation)
    _write(evaluation, split, json_path, csv_path, report)


class _Job(NamedTuple):
    """A track to score: `work` takes a function to call with the seconds of audio done and their total."""

    of_baseline: bool
    track: str
    seconds: float
    work: Callable[[Callable[[float, float], None]], Evaluated]


def _evaluate_model(
    model: str,
    data: str,
    baseline: str | None,
    settings: dict[str, Any],
    pair: str | None,
    excerpts: bool,
    quiet: bool,
) -> tuple[Evaluation, str]:
    """Score a model on a split of a database; returns the name of the split, too."""
    from umx_model.data.folders import is_folder
    from umx_model.data.track_folder import Sample, database_fingerprint, read_database
    from umx_model.evaluation.evaluate import evaluate_sample
    from umx_model.evaluation.scores import Evaluation
    from umx_model.inference.restore import load_separator

    separators = [load_separator(name, **settings) for name in (model, baseline) if name is not None]
    root, split = _parent_and_name(data)
    if not is_folder(root, split):
        raise InputError(f"{data}: no such folder; expected one split of a database, such as DATABASE/valid")
    if is_folder(root, split, "valid"):
        raise InputError(f"{data}: a whole database; name one split of it, such as {os.path.join(data, 'valid')}")

    def work(
        separator: Separator, sample: Sample, excerpts: bool, progress: Callable[[float, float], None]
    ) -> Evaluated:
        return evaluate_sample(separator, sample, progress, pair=pair, excerpts=excerpts)

    jobs = [
        _Job(number == 1, sample.id, sample.length / sample.sample_rate,
             partial(work, separator, sample, excerpts and number == 0))
        # All targets: those that the model does not have are part of the mixture.
        for sample in read_database(root, splits=[split])[split]
        for number, separator in enumerate(separators)
    ]  # fmt: skip
    tracks, of_baseline, found = _run(jobs, quiet)
    profile = separators[0].profile
    for name, default in (("niter", profile.niter), ("softmask", profile.softmask)):
        settings[name] = default if settings[name] is None else settings[name]
    return Evaluation(
        title=model,
        tracks=tracks,
        baseline=of_baseline or None,
        baseline_title=baseline,
        excerpts=found,
        settings={"model": model, "data": data, **settings, "pair": pair},
        data_fingerprint=database_fingerprint(root, [split]),
    ), split


def _evaluate_folders(
    references: str,
    estimates: str,
    baseline: str | None,
    targets: Sequence[str] | None,
    pair: str | None,
    excerpts: bool,
    quiet: bool,
) -> tuple[Evaluation, str]:
    """Score estimates in a folder; returns the split that the references seem to be, too."""
    from umx_model.data.track_folder import database_fingerprint
    from umx_model.evaluation.scores import Evaluation
    from umx_model.evaluation.stem_folders import StemTrack, evaluate_track, match_folders

    def work(track: StemTrack, excerpts: bool, progress: Callable[[float, float], None]) -> Evaluated:
        return evaluate_track(track, pair=pair, excerpts=excerpts)

    jobs, notes = [], []
    for number, folder in enumerate((estimates, baseline)):
        if folder is not None:
            matched, its_notes = match_folders(references, folder, targets)
            notes += its_notes
            for track in matched:
                sample = track.references
                seconds = sample.length / sample.sample_rate
                jobs.append(_Job(number == 1, sample.id, seconds, partial(work, track, excerpts and number == 0)))
    for note in dict.fromkeys(notes):
        complain(f"note: {note}")
    tracks, of_baseline, found = _run(jobs, quiet)
    root, split = _parent_and_name(references)
    return Evaluation(
        title=estimates,
        tracks=tracks,
        baseline=of_baseline or None,
        baseline_title=baseline,
        excerpts=found,
        settings={"references": references, "estimates": estimates, "pair": pair},
        data_fingerprint=database_fingerprint(root, [split]),
    ), split


def _parent_and_name(folder: str) -> tuple[str, str]:
    """Take a folder apart, also one that is given as `.`."""
    from umx_model.data.remote import is_remote

    return os.path.split(folder.rstrip("/") if is_remote(folder) else os.path.abspath(folder))


def _run(jobs: Sequence[_Job], quiet: bool) -> tuple[list[TrackScores], list[TrackScores], list[Excerpt]]:
    """Score all tracks; returns the scores, those of the baseline, and excerpts."""
    from umx_model.evaluation.excerpts import choose_excerpts
    from umx_model.progress import ProgressBar

    tracks: list[TrackScores] = []
    of_baseline: list[TrackScores] = []
    excerpts: list[Excerpt] = []
    with ProgressBar("evaluating", sum(job.seconds for job in jobs), "s of audio", quiet, "{:.1f}x real time") as bar:
        for number, job in enumerate(jobs, 1):
            note, shown = f"{number}/{len(jobs)} {job.track}", 0.0

            def progress(done: float, total: float, note: str = note) -> None:
                nonlocal shown
                bar.advance(done - shown, note)
                shown = done

            progress(0.0, job.seconds)
            scores, found = job.work(progress)
            progress(job.seconds, job.seconds)
            (of_baseline if job.of_baseline else tracks).append(scores)
            excerpts = choose_excerpts([*excerpts, *found])
    return tracks, of_baseline, excerpts


def _print(evaluation: Evaluation) -> None:
    import numpy as np

    from umx_model.evaluation.evaluate import METRIC, table

    count = len(evaluation.tracks)
    say(f"{METRIC} ({count} sample{'s' if count > 1 else ''})\n{table(evaluation.tracks, evaluation.baseline)}")
    for track in evaluation.tracks:
        silent = [target for target, score in track.score().items() if np.isnan(score)]
        if silent:
            complain(
                f"note: {track.name}: no score for {', '.join(silent)}, as no window has sound in all references and "
                "estimates; left out of the medians"
            )


def _write(evaluation: Evaluation, split: str, json_path: str | None, csv_path: str | None, report: str | None) -> None:
    from umx_model.data.track_folder import SPLITS
    from umx_model.evaluation.score_files import write_csv, write_json, write_museval_folder

    if json_path is not None and json_path.endswith(".json"):
        write_json(json_path, evaluation)
    elif json_path is not None:
        write_museval_folder(json_path, evaluation, split if split in SPLITS else "test")
    if csv_path is not None:
        write_csv(csv_path, evaluation)
    if report is not None:
        from umx_model.evaluation.report import write_report

        write_report(report, evaluation)


def _check_options(of_model: dict[str, Any], of_folders: dict[str, Any]) -> None:
    """Refuse options of both kinds, or one that needs another."""
    for group, others in ((of_model, of_folders), (of_folders, of_model)):
        given = [name for name, value in group.items() if value is not None]
        clash = [name for name, value in others.items() if value is not None]
        missing = [name for name in list(group)[:2] if group[name] is None]
        if given and clash:
            raise InputError(f"{given[0]} and {clash[0]} do not go together; see `umx-pro evaluate --help`")
        if given and missing:
            raise InputError(f"{given[0]} needs {missing[0]}, too; see `umx-pro evaluate --help`")


def _check_outputs(json_path: str | None, csv_path: str | None, report: str | None) -> None:
    """Refuse before hours of work what could not be written after them."""
    import tensorflow as tf

    from umx_model.evaluation.score_files import require_writable

    for option, path in (("--json", json_path), ("--csv", csv_path), ("--report", report)):
        if path is None:
            continue
        if not path:
            raise InputError(f"{option}: expected a path, found nothing")
        folder = os.path.dirname(path.rstrip("/"))
        if not tf.io.gfile.isdir(folder or "."):
            raise InputError(f"{option} {path}: there is no folder {folder}; make it first")
        as_folder = option == "--json" and not path.endswith(".json")
        if tf.io.gfile.exists(path) and tf.io.gfile.isdir(path) != as_folder:
            found, wanted = ("a file", "a folder, or a file ending in .json") if as_folder else ("a folder", "a file")
            raise InputError(f"{option} {path}: is {found}; name {wanted}")
        require_writable(path)
