"""The report of an evaluation: one HTML file with everything in it, to be read offline.

    write_report("report.html", evaluation)

The tables are plain HTML; Plotly, embedded once, draws the plots in the browser. The page, its style and what
it does when it is clicked on are in `report_page/`. Excerpts are embedded as audio and as pictures.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

import plotly.graph_objects as go
import soundfile as sf
from plotly.offline import get_plotlyjs

from umx_model.evaluation import report_figures
from umx_model.evaluation.evaluate import METRIC, columns
from umx_model.evaluation.score_files import write_text
from umx_model.evaluation.scores import SDR, Evaluation, Excerpt
from umx_model.evaluation.spectrograms import height, pictures

_MEANINGS = {
    "SDR": "signal to distortion: all that is wrong",
    "ISR": "image to spatial distortion: what filters it",
    "SIR": "signal to interference: what is left of other targets",
    "SAR": "signal to artifacts: what belongs to no target",
    "mixture": "SDR that the mixture itself gets",
    "gain": "how far the SDR is above that of the mixture",
    "baseline": "SDR of the baseline",
    "change": "how far the SDR is above that of the baseline",
    "SI-SDR": "scale-invariant SDR of the whole track",
    "MDX SDR": "SDR of the whole track as the Music Demixing Challenge counts it",
}
_SIGNED = ("gain", "change")
_SOUNDS = ("mixture", "reference", "estimate")
_FREQUENCIES = {100.0: "100 Hz", 1000.0: "1 kHz", 10000.0: "10 kHz"}


def write_report(path: str, evaluation: Evaluation) -> None:
    """Write the report of an evaluation; it appears when it is complete.

    It holds the verdict, the figures of `columns` per target, box plots per metric over the scores of tracks, a
    table of tracks and targets, the SDR of each track over time, the excerpts, and the settings.

    Args:
        path: of the HTML file, about 5 MB and 0.4 MB for each excerpt; local or remote.
        evaluation: what to show; parts that it lacks are left out.

    Raises:
        InputError: the file cannot be written.
        ValueError: there are no tracks.
    """
    if not evaluation.tracks:
        raise ValueError("no tracks to report on")
    write_text(path, _page(evaluation))


def _page(evaluation: Evaluation) -> str:
    tracks = evaluation.tracks
    files = resources.files("umx_model.evaluation") / "report_page"
    metrics = tuple(tracks[0].windows)
    summary, meanings = _summary(evaluation)
    return Template((files / "page.html").read_text("utf-8")).substitute(
        style=(files / "style.css").read_text("utf-8"),
        script=(files / "script.js").read_text("utf-8"),
        plotly=get_plotlyjs(),
        figures=_figures(evaluation, metrics),
        title=escape(evaluation.title),
        badge=_badge(evaluation.blessed),
        subtitle=escape(_subtitle(evaluation)),
        verdict=_verdict(evaluation),
        metric=escape(METRIC),
        summary=summary,
        meanings=meanings,
        boxes="".join(
            f'<figure><div class="plot" data-figure="{metric}" role="img" aria-label="{metric} of tracks per target">'
            f"</div><figcaption>{metric}, {_MEANINGS[metric]}</figcaption></figure>"
            for metric in metrics
        ),
        targets=_options(tracks[0].targets, tracks[0].targets),
        tracks=_tracks(evaluation),
        names=_options(map(str, range(len(tracks))), (track.name for track in tracks)),
        excerpts=_excerpts(evaluation),
        settings=_settings(evaluation),
    )


def _figures(evaluation: Evaluation, metrics: Iterable[str]) -> str:
    """Return the plots as a JSON document that can stand in a script element."""
    of_baseline = report_figures.by_name(evaluation.baseline)
    plots = {metric: _plot(report_figures.boxes(evaluation, metric)) for metric in metrics}
    plots["summary"] = _plot(report_figures.summary(evaluation))
    over_time = [
        _plot(report_figures.over_time(track, of_baseline.get(track.name)))["data"] for track in evaluation.tracks
    ]
    first = evaluation.tracks[0]
    plots["over-time"] = _plot(report_figures.over_time(first, of_baseline.get(first.name)))
    document = json.dumps({"plots": plots, "overTime": over_time}, separators=(",", ":"), allow_nan=False)
    return document.replace("<", "\\u003c")


def _plot(figure: go.Figure) -> dict[str, Any]:
    plot: dict[str, Any] = json.loads(figure.to_json())
    return plot


def _badge(blessed: bool | None) -> str:
    if blessed is None:
        return ""
    return '<span class="badge good">blessed</span>' if blessed else '<span class="badge bad">not blessed</span>'


def _subtitle(evaluation: Evaluation) -> str:
    count = len(evaluation.tracks)
    against = f", compared with {evaluation.baseline_title or 'a baseline'}" if evaluation.baseline else ""
    return f"{count} track{'s' if count > 1 else ''}{against}"


def _verdict(evaluation: Evaluation) -> str:
    if not evaluation.verdict:
        return ""
    kind = {None: "", True: " good", False: " bad"}[evaluation.blessed]
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in evaluation.verdict)
    return f'<ul class="verdict{kind}">{items}</ul>'


def _summary(evaluation: Evaluation) -> tuple[str, str]:
    """Return the table of targets, and what its columns mean."""
    figures = columns(evaluation.tracks, evaluation.baseline or None)
    rows = "".join(
        f'<tr><th scope="row">{escape(target)}</th>'
        + "".join(_cell(name, values.get(target, math.nan)) for name, values in figures.items())
        for target in evaluation.tracks[0].targets
    )
    heads = "".join(f'<th scope="col" title="{_MEANINGS[name]}">{name}</th>' for name in figures)
    table = (
        f'<table id="summary-table"><thead><tr><th scope="col">target</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return table, "; ".join(f"<b>{name}</b> {_MEANINGS[name]}" for name in figures)


def _tracks(evaluation: Evaluation) -> str:
    """Return the table of tracks: a row per track and target."""
    of_baseline = report_figures.by_name(evaluation.baseline)
    rows, names = [], []
    for index, track in enumerate(evaluation.tracks):
        baseline = of_baseline.get(track.name)
        by_figure = columns([track], [baseline] if baseline else None)
        if evaluation.baseline and not baseline:
            by_figure |= {"baseline": {}, "change": {}}
        by_figure["SI-SDR"] = dict(zip(track.targets, track.si_sdr.tolist(), strict=True))
        by_figure["MDX SDR"] = dict(zip(track.targets, track.mdx_sdr.tolist(), strict=True))
        names = list(by_figure)
        for target in track.targets:
            cells = "".join(_cell(name, values.get(target, math.nan)) for name, values in by_figure.items())
            rows.append(
                f'<tr data-target="{escape(target)}"><td data-value="{escape(track.name)}"><button type="button" '
                f'data-track="{index}" title="show its SDR over time">{escape(track.name)}</button></td>'
                f'<td data-value="{escape(target)}">{escape(target)}</td>{cells}</tr>'
            )
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" title="{_MEANINGS.get(name, "sort")}">{name}</button>'
        for name in ("track", "target", *names)
    )
    return f'<table id="tracks-table"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _cell(name: str, value: float) -> str:
    """Return a table cell; its value sorts, and is empty where there is none."""
    if math.isnan(value):
        return '<td class="number" data-value="">&ndash;</td>'
    rounded = round(value, 2) + 0.0  # no -0.00
    shown = f"{rounded:+.2f}" if name in _SIGNED else f"{rounded:.2f}"
    sign = (" up" if rounded > 0 else " down" if rounded < 0 else "") if name in _SIGNED else ""
    return f'<td class="number{sign}" data-value="{json.dumps(value)}">{shown}</td>'


def _excerpts(evaluation: Evaluation) -> str:
    """Return the excerpts, target by target, from the best to the worst."""
    if not evaluation.excerpts:
        return '<p class="note">There are none.</p>'
    parts = []
    for target in evaluation.tracks[0].targets:
        excerpts = [excerpt for excerpt in evaluation.excerpts if excerpt.target == target]
        if excerpts:
            parts.append(f"<h3>{escape(target)}</h3>")
        falling = sorted(excerpts, key=lambda excerpt: -excerpt.sdr)
        best = len(falling) - len(falling) // 2
        parts += [_excerpt(excerpt, "best" if rank < best else "worst") for rank, excerpt in enumerate(falling)]
    return "".join(parts)


def _excerpt(excerpt: Excerpt, kind: str) -> str:
    decoded = [sf.read(io.BytesIO(getattr(excerpt, sound)), always_2d=True) for sound in _SOUNDS]
    drawn = pictures([waveform for waveform, _ in decoded], decoded[0][1])
    marks = "".join(
        f'<span class="mark" style="bottom:{100 * height(frequency):.1f}%">{label}</span>'
        for frequency, label in _FREQUENCIES.items()
    )
    of = escape(f"{excerpt.target} of {excerpt.track}")
    clips = "".join(
        f'<figure class="clip"><figcaption>{sound}</figcaption><div class="picture">'
        f'<img alt="spectrogram: {sound}, {of}" src="{_data_uri("image/jpeg", picture)}">{marks}'
        '<span class="cursor" hidden></span></div>'
        f'<audio controls preload="metadata" aria-label="{sound}, {of}" '
        f'src="{_data_uri("audio/ogg", getattr(excerpt, sound))}"></audio></figure>'
        for sound, picture in zip(_SOUNDS, drawn, strict=True)
    )
    minutes, seconds = divmod(int(excerpt.start_seconds), 60)
    return (
        f'<article class="excerpt"><h4><span class="badge {"good" if kind == "best" else "bad"}">{kind}</span> '
        f"{escape(excerpt.track)} at {minutes}:{seconds:02d}, {SDR} {excerpt.sdr:.1f} dB</h4>"
        f'<div class="clips">{clips}</div></article>'
    )


def _settings(evaluation: Evaluation) -> str:
    shown: Mapping[str, Any] = {
        **evaluation.settings,
        "baseline": evaluation.baseline_title or ("yes" if evaluation.baseline else "none"),
        "data fingerprint": evaluation.data_fingerprint or "unknown",
    }
    return "".join(
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th><td>{escape(_setting(value))}</td></tr>'
        for name, value in shown.items()
    )


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(entry)}" for name, entry in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _options(values: Iterable[str], labels: Iterable[str]) -> str:
    return "".join(
        f'<option value="{escape(value)}">{escape(label)}</option>' for value, label in zip(values, labels, strict=True)
    )


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
