"""Scores as museval writes and reads them: one JSON document per track.

museval's own aggregation reads a folder of them, `FOLDER/test/TRACK.json`:

    museval.EvalStore().add_eval_dir("FOLDER")        # or MethodStore, to hold methods against each other

The schema is `musdb.schema.json` of sigsep/sigsep-mus-eval 0.4.1.
"""

from __future__ import annotations

from typing import Any

from umx_model.evaluation.scores import METRICS, TrackScores

_DECIMALS = 5  # as museval's own
# Whose figures these are equal to; museval does not look at it.
_VERSION = "0.4.1 (umx-pro)"


def museval_document(scores: TrackScores) -> dict[str, Any]:
    """Return the scores of a track in museval's schema.

    Metrics that were not computed, and windows without a score, are NaN, which `json.dumps` writes
    as museval does: as the bare word NaN. The mixture and the figures of the whole track have no place in it.
    """
    targets = [
        {"name": target, "frames": [_frame(scores, window, index) for window in range(len(scores.mixture))]}
        for index, target in enumerate(scores.targets)
    ]
    return {"targets": targets, "museval_version": _VERSION}


def _frame(scores: TrackScores, window: int, target: int) -> dict[str, Any]:
    metrics = {
        metric: round(float(scores.windows[metric][window, target]), _DECIMALS)
        if metric in scores.windows
        else float("nan")
        for metric in METRICS
    }
    return {"time": window * scores.hop_seconds, "duration": scores.window_seconds, "metrics": metrics}
