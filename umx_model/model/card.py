"""Model cards: what a model is, for people (after Mitchell et al., "Model Cards for Model Reporting", 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from umx_model.profile import Profile


def model_card(
    title: str,
    profile: Profile,
    figures: Mapping[str, Mapping[str, float | None]] | None = None,
    metric: str = "SDR in dB",
    verdict: Sequence[str] = (),
    lineage: Mapping[str, object] | None = None,
) -> str:
    """Write a model's card, in Markdown.

    Args:
        title: its heading.
        profile: of the model: what it separates, how it was trained and on what.
        figures: scores in dB, figure (`SDR`, `mixture`, ...) to target to value; None or NaN for no score.
        metric: what the figures are.
        verdict: sentences that led to its release.
        lineage: more on where it comes from, name to value; None is left out.
    """
    model, train = profile.model, profile.train
    parts = [
        f"# {title}",
        f"Separates {', '.join(model.targets)} from a mixture of {', '.join(profile.mixture_targets)}: "
        f"{model.channels} channel{'s' if model.channels > 1 else ''} at {model.sample_rate} Hz.",
        "## Use",
        "    umx-pro separate --model FOLDER SONG",
        "With any TensorFlow: `serving_default(mixture: float32 [batch, samples, channels]) -> {target: float32 "
        "[batch, samples, channels]}` of the SavedModel, which a pushed version is and `umx-pro export FOLDER` writes.",
    ]
    if figures:
        parts += ["## Scores", f"{metric}.", _table(figures, model.targets)]
    if verdict:
        parts += ["## Verdict", "\n".join(f"* {sentence}" for sentence in verdict)]
    origin = {
        "data fingerprint": profile.data_fingerprint,
        "weights (SHA-256)": profile.weights_sha256,
        "epochs": len(profile.history) or None,
        **(lineage or {}),
        **{name.replace("_", " "): value for name, value in profile.made_with.items()},
        "license": profile.license,
    }
    parts += ["## Origin", _pairs(origin)]
    parts += ["## Profile", "Model:", _pairs(model.model_dump(mode="json"))]
    parts += ["Training:", _pairs(train.model_dump(mode="json"))]
    return "\n\n".join(parts) + "\n"


def _table(figures: Mapping[str, Mapping[str, float | None]], targets: Sequence[str]) -> str:
    rows = [["target", *figures], ["---"] * (1 + len(figures))]
    rows += [[target, *(_decibel(figure.get(target)) for figure in figures.values())] for target in targets]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _decibel(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _pairs(values: Mapping[str, object]) -> str:
    lines = [f"| {name} | {_text(value)} |" for name, value in values.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _text(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|")
