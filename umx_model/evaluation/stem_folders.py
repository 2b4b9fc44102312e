"""Two folders of stems, references and estimates, held against each other track by track.

    references/                 estimates/
      song/                       song/             a folder per track; or of one track,
        vocals.wav                  vocals.flac     the stems right in both folders
        drums.wav                   drums.flac
        bass.wav                                    part of the mixture only
                                    residual.flac   passed over

Scored are the targets that are asked for, else those of which any track has a reference and an estimate;
every track must have both. All stems of the references make up the mixture. Estimates must have the rate and
the channels of their references; one that is longer is cut, one that is shorter padded with silence.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from umx_model.data import folders
from umx_model.data.audio import AudioInfo, probe
from umx_model.data.track_folder import SPLITS, Sample, audio_files, inspect_sample
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import Evaluated, evaluate_stems, read_finite, read_stems
from umx_model.evaluation.scores import METRICS

_ONE_TRACK = ""  # name of the track whose stems are right in the folder


@dataclass(frozen=True)
class StemTrack:
    """A track of both folders.

    Attributes:
        references: all stems that its mixture is the sum of.
        estimates: the files of the targets to score.
    """

    references: Sample
    estimates: dict[str, AudioInfo]


def match_folders(
    references: str, estimates: str, targets: Sequence[str] | None = None
) -> tuple[list[StemTrack], list[str]]:
    """Find the tracks of two folders, and read the headers of their files.

    Args:
        references: folder of tracks, or of the stems of one; local or remote.
        estimates: likewise.
        targets: to be scored; None for those of which there is a reference and an estimate.

    Returns:
        The tracks, sorted by name, and one line for whatever is passed over, cut or padded.

    Raises:
        InputError: one line for each problem: there is no such folder, or nothing to score; a track has no
            estimates, or lacks a reference or an estimate; two files for one stem; files that cannot be read,
            or differ in rate or channels; references that differ in length.
    """
    true, estimated = _tracks(references), _tracks(estimates)
    if (_ONE_TRACK in true) != (_ONE_TRACK in estimated):
        one, many = (references, estimates) if _ONE_TRACK in true else (estimates, references)
        raise InputError(f"{one} holds stems, but {many} folders of stems; name the folder of one track in {many}")
    both = [name for name in true if name in estimated]
    if not both:
        raise InputError(f"{estimates}: no folder named like one of {references}, such as '{next(iter(true))}'")
    paired = {stem for name in both for stem in true[name] if stem in estimated[name]}
    scored = tuple(sorted(paired) if targets is None else targets)
    if not scored or not paired:
        names = ", ".join(sorted({stem for stems in true.values() for stem in stems}))
        raise InputError(f"{estimates}: no estimate of any stem in {references}, which holds {names}")
    problems = [
        f"{estimates}: no folder '{name}'; every track of {references} needs one" for name in true if name not in both
    ]
    tracks, notes = [], []
    for name in both:
        track, wrong = _match(references, estimates, name, true[name], estimated[name], scored)
        problems += wrong
        if track is not None:
            tracks.append(track)
            notes += _lengths(track)
    if problems:
        raise InputError("\n".join(problems))
    unheard = sorted({stem for name in both for stem in true[name]} - set(scored))
    unused = sorted({stem for name in both for stem in estimated[name]} - set(scored))
    extra = [name for name in estimated if name not in true]
    if unheard:
        notes.append(f"{references}: {', '.join(unheard)} not scored, part of the mixture only")
    if unused:
        notes.append(f"{estimates}: {', '.join(unused)} passed over")
    if extra:
        notes.append(f"{estimates}: {', '.join(extra)} passed over, not in {references}")
    return tracks, notes


def evaluate_track(
    track: StemTrack, metrics: Sequence[str] = METRICS, pair: str | None = None, excerpts: bool = True
) -> Evaluated:
    """Score the estimates of a track; see `evaluate_stems`.

    Raises:
        InputError: a file cannot be read or holds non-finite values, or see `evaluate_stems`.
    """
    sample, targets = track.references, tuple(track.estimates)
    stems = read_stems(sample, targets)
    estimates = np.zeros((sample.length, sample.channels, len(targets)), np.float32)
    for index, info in enumerate(track.estimates.values()):
        waveform = read_finite(info.path)[: sample.length]
        estimates[: len(waveform), :, index] = waveform
    return evaluate_stems(sample.id, stems, estimates, targets, sample.sample_rate, metrics, pair, excerpts)


def _tracks(root: str) -> dict[str, dict[str, list[str]]]:
    """Return the stems' file names by track, in the order of their names."""
    if not folders.is_folder(root):
        raise InputError(f"{root}: no such folder; expected stems, or a folder of stems for each track")
    entries = [name for name in folders.names(root) if folders.is_folder(root, name)]
    tracks = {name: stems for name in entries if (stems := audio_files(root, name))}
    stems = audio_files(root)
    if stems and tracks:
        raise InputError(
            f"{root}: holds stems ({', '.join(stems)}) and folders of stems ({', '.join(tracks)}); "
            "name one of these, or move the stems"
        )
    if not stems and not tracks:
        split = next((f"; name one split, {os.path.join(root, name)}" for name in SPLITS if name in entries), "")
        raise InputError(f"{root}: no stems in it, nor in its folders; expected {root}/<track>/<target>.wav{split}")
    return tracks or {_ONE_TRACK: stems}


def _match(
    references: str,
    estimates: str,
    name: str,
    true: dict[str, list[str]],
    estimated: dict[str, list[str]],
    scored: Sequence[str],
) -> tuple[StemTrack | None, list[str]]:
    """Read the headers of one track; the track is None where there are problems."""
    folder = os.path.join(estimates, name)
    sample, problems = inspect_sample(references, "", name, tuple(true), true)
    for what, where, stems in (("reference", os.path.join(references, name), true), ("estimate", folder, estimated)):
        problems += [
            f"{where}: no {what} of '{target}', which other tracks have or --targets asks for; add it, or choose "
            "other targets"
            for target in scored
            if target not in stems
        ]
    infos: dict[str, AudioInfo] = {}
    for target in scored:
        files = estimated.get(target, [])
        if len(files) > 1:
            problems.append(f"{folder}: {len(files)} files for the target '{target}' ({', '.join(files)}); keep one")
            continue
        for file in files:
            try:
                info = infos[target] = probe(os.path.join(folder, file))
            except InputError as problem:
                problems.append(str(problem))
                continue
            if sample is not None and (info.sample_rate, info.channels) != (sample.sample_rate, sample.channels):
                problems.append(
                    f"{info.path}: {info.sample_rate} Hz and {info.channels} channels, but the reference has "
                    f"{sample.sample_rate} Hz and {sample.channels}; make the estimate like it"
                )
    if sample is None or problems:
        return None, problems
    title = name or os.path.basename(os.path.abspath(references))
    return StemTrack(replace(sample, id=title), infos), []


def _lengths(track: StemTrack) -> list[str]:
    """Say which estimates are longer or shorter than their references."""
    lines = []
    for info in track.estimates.values():
        seconds = (info.samples - track.references.length) / info.sample_rate
        if seconds > 0:
            lines.append(f"{info.path}: {seconds:.3f} s longer than its reference, cut")
        elif seconds < 0:
            lines.append(f"{info.path}: {-seconds:.3f} s shorter than its reference, padded with silence")
    return lines
