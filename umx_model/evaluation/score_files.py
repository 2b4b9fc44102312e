"""Evaluations as files for other programs: JSON, whole or per track, and CSV. Files appear when they are complete."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from typing import Any

import tensorflow as tf

from umx_model.errors import InputError
from umx_model.evaluation.evaluate import METRIC, columns
from umx_model.evaluation.museval_json import museval_document
from umx_model.evaluation.scores import METRICS, SDR, Evaluation, TrackScores

_DECIMALS = 5
_PARTIAL = ".partial"


def write_museval_folder(folder: str, evaluation: Evaluation, split: str) -> None:
    """Write `FOLDER/SPLIT/TRACK.json` for each track, in museval's schema; museval reads the split `test`."""
    tf.io.gfile.makedirs(os.path.join(folder, split))
    for track in evaluation.tracks:
        document = json.dumps(museval_document(track), indent=2) + "\n"
        write_text(os.path.join(folder, split, f"{track.name}.json"), document)


def write_json(path: str, evaluation: Evaluation) -> None:
    """Write everything about an evaluation but its excerpts as one JSON document; what has no score is null.

    Keys: metric, title, settings, data_fingerprint; targets, with the figures of `columns`; tracks, each with
    name, scores (dB per target), museval (its document in museval's schema); and baseline, its title and the
    same for its tracks.
    """
    document: dict[str, Any] = {
        "metric": METRIC,
        "title": evaluation.title,
        "settings": evaluation.settings,
        "data_fingerprint": evaluation.data_fingerprint,
        "targets": _by_target(columns(evaluation.tracks, evaluation.baseline)),
        "tracks": [_track(track) for track in evaluation.tracks],
    }
    if evaluation.baseline is not None:
        document["baseline"] = {
            "title": evaluation.baseline_title,
            "tracks": [_track(track) for track in evaluation.baseline],
        }
    write_text(path, json.dumps(_nulls(document), indent=2, allow_nan=False) + "\n")


def write_csv(path: str, evaluation: Evaluation) -> None:
    """Write a row per track and target: its scores in dB, an empty cell for none.

    Columns: track, target, SDR, ISR, SIR, SAR (median over windows), mixture_SDR, gain (SDR above that), SI_SDR and
    MDX_SDR (of the whole track); with a baseline also baseline_SDR and change (SDR above that).
    """
    baseline = {track.name: track.score() for track in evaluation.baseline or ()}
    rows = []
    for track in evaluation.tracks:
        for target, figures in _scores(track).items():
            row: dict[str, Any] = {"track": track.name, "target": target}
            row |= {metric: figures.get(metric, math.nan) for metric in METRICS}
            row |= {"mixture_SDR": figures["mixture"], "gain": figures[SDR] - figures["mixture"]}
            row |= {"SI_SDR": figures["SI_SDR"], "MDX_SDR": figures["MDX_SDR"]}
            if evaluation.baseline is not None:
                other = baseline.get(track.name, {}).get(target, math.nan)
                row |= {"baseline_SDR": other, "change": figures[SDR] - other}
            rows.append({name: "" if (rounded := _nulls(value)) is None else rounded for name, value in row.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _track(track: TrackScores) -> dict[str, Any]:
    return {"name": track.name, "scores": _scores(track), "museval": museval_document(track)}


def _scores(track: TrackScores) -> dict[str, dict[str, float]]:
    """Return the scores of a track, target to figure to dB."""
    by_figure = {metric: track.score(metric) for metric in track.windows}
    by_figure["mixture"] = track.mixture_score()
    by_figure["SI_SDR"] = dict(zip(track.targets, track.si_sdr.tolist(), strict=True))
    by_figure["MDX_SDR"] = dict(zip(track.targets, track.mdx_sdr.tolist(), strict=True))
    return _by_target(by_figure)


def _by_target(by_figure: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    targets = next(iter(by_figure.values()))
    return {target: {name: values.get(target, math.nan) for name, values in by_figure.items()} for target in targets}


def _nulls(value: Any) -> Any:
    """Return what JSON can hold: figures rounded, null for none."""
    if isinstance(value, dict):
        return {key: _nulls(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_nulls(entry) for entry in value]
    if isinstance(value, float):
        return round(value, _DECIMALS) if math.isfinite(value) else None
    return value


def write_text(path: str, text: str) -> None:
    """Write a text file, local or remote, over an older one; it appears when it is complete.

    Raises:
        InputError: it cannot be written.
    """
    partial = path + _PARTIAL
    try:
        try:
            with tf.io.gfile.GFile(partial, "w") as file:
                file.write(text)
            tf.io.gfile.rename(partial, path, overwrite=True)
        except BaseException:
            if tf.io.gfile.exists(partial):
                tf.io.gfile.remove(partial)
            raise
    except (OSError, tf.errors.OpError) as error:
        raise _refusal(path, error) from None


def require_writable(path: str) -> None:
    """Refuse a file or folder that cannot be written, before there is something to write.

    Raises:
        InputError: nothing can be written beside it.
    """
    probe = path.rstrip("/") + _PARTIAL
    try:
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("")
        tf.io.gfile.remove(probe)
    except (OSError, tf.errors.OpError) as error:
        raise _refusal(path, error) from None


def _refusal(path: str, error: Exception) -> InputError:
    reason = getattr(error, "message", None) or str(error)
    return InputError(f"{path}: cannot be written ({reason.splitlines()[0]}); choose another place")
