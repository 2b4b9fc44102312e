"""The plots of a report, as Plotly figures.

A colour stands for what is scored everywhere: the estimates, the baseline, the mixture. Backgrounds, text and
grid lines get theirs from the page, which is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from umx_model.evaluation.scores import SDR, Evaluation, Figures, TrackScores, summarize, summarize_mixture

ESTIMATES, BASELINE, MIXTURE = "estimates", "baseline", "mixture"

# Each of them is legible on white and on near-black.
_COLOURS = {ESTIMATES: "#3b82c4", BASELINE: "#d07a1f", MIXTURE: "#868b94"}
_MOST_POINTS = 60  # beside a box; of more tracks only the outliers are drawn
_ROW = 130  # pixels


def summary(evaluation: Evaluation) -> go.Figure:
    """Draw the SDR of a database per target: of the mixture, the baseline and the estimates."""
    tracks = evaluation.tracks
    scores = {MIXTURE: summarize_mixture(tracks), ESTIMATES: summarize(tracks)}
    if evaluation.baseline:
        scores[BASELINE] = summarize(evaluation.baseline)
    figure = go.Figure()
    for target in tracks[0].targets:
        ends = [scores[MIXTURE][target], scores[ESTIMATES][target]]
        line = {"color": _COLOURS[MIXTURE], "width": 2}
        figure.add_scatter(x=ends, y=[target] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    for name in (MIXTURE, BASELINE, ESTIMATES):
        if name in scores:
            figure.add_scatter(
                x=[_rounded(scores[name].get(target, math.nan)) for target in tracks[0].targets],
                y=list(tracks[0].targets),
                name=name,
                mode="markers",
                marker={"color": _COLOURS[name], "size": 13, "symbol": "diamond" if name == BASELINE else "circle"},
                hovertemplate=f"{name}, %{{y}}: %{{x:.2f}} dB<extra></extra>",
            )
    figure.update_xaxes(title="SDR in dB")
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return _styled(figure, 110 + 42 * len(tracks[0].targets))


def boxes(evaluation: Evaluation, metric: str) -> go.Figure:
    """Draw how the scores of tracks are distributed, per target."""
    scores = {ESTIMATES: [(track.name, track.score(metric)) for track in evaluation.tracks]}
    of_baseline = [track for track in evaluation.baseline or () if metric in track.windows]
    if of_baseline:
        scores[BASELINE] = [(track.name, track.score(metric)) for track in of_baseline]
    if metric == SDR:
        scores[MIXTURE] = [(track.name, track.mixture_score()) for track in evaluation.tracks]
    targets = evaluation.tracks[0].targets
    figure = go.Figure()
    for name in (MIXTURE, BASELINE, ESTIMATES):
        if name in scores:
            points = [(target, track, of[target]) for target in targets for track, of in scores[name] if target in of]
            figure.add_box(
                x=[target for target, _, _ in points],
                y=[_rounded(score) for _, _, score in points],
                text=[track for _, track, _ in points],
                name=name,
                marker={"color": _COLOURS[name], "size": 4},
                line={"width": 1.5},
                boxpoints="all" if len(scores[name]) <= _MOST_POINTS else "outliers",
                jitter=0.5,
                pointpos=0,
                hovertemplate=f"%{{text}}, %{{x}}: %{{y:.2f}} dB<extra>{name}</extra>",
            )
    figure.update_layout(boxmode="group", boxgap=0.25)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(title=f"{metric} in dB")
    return _styled(figure, 340)


def over_time(track: TrackScores, baseline: TrackScores | None) -> go.Figure:
    """Draw the SDR of the windows of a track, one target below the other."""
    figure = make_subplots(len(track.targets), 1, shared_xaxes=True, vertical_spacing=0.06 / len(track.targets))
    for row, target in enumerate(track.targets, 1):
        lines = {MIXTURE: track.mixture[:, row - 1], ESTIMATES: track.windows[SDR][:, row - 1]}
        if baseline is not None and target in baseline.targets:
            lines[BASELINE] = baseline.windows[SDR][:, baseline.targets.index(target)]
        for name in (MIXTURE, BASELINE, ESTIMATES):
            if name in lines:
                figure.add_scatter(
                    x0=track.window_seconds / 2,
                    dx=track.hop_seconds,
                    y=_all_rounded(lines[name]),
                    name=name,
                    legendgroup=name,
                    showlegend=row == 1,
                    mode="lines+markers",
                    line={"color": _COLOURS[name], "width": 1.5, "dash": "dot" if name == MIXTURE else "solid"},
                    marker={"size": 3},
                    hovertemplate=f"{name}: %{{y:.2f}} dB at %{{x:.1f}} s<extra></extra>",
                    row=row,
                    col=1,
                )
        figure.update_yaxes(title=target, row=row, col=1)
    figure.update_xaxes(title="time in s", row=len(track.targets), col=1)
    return _styled(figure, 110 + _ROW * len(track.targets))


def by_name(tracks: Sequence[TrackScores] | None) -> Mapping[str, TrackScores]:
    """Return tracks by their names."""
    return {track.name: track for track in tracks or ()}


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 60, "r": 15, "t": 40, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    return figure.update_yaxes(automargin=True, zeroline=True)


def _all_rounded(figures: Figures) -> list[float | None]:
    return [_rounded(value) for value in figures.tolist()]


def _rounded(decibels: float) -> float | None:
    """Return what a plot can show; None leaves a gap."""
    return round(decibels, 2) if np.isfinite(decibels) else None
