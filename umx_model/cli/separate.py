"""`umx-pro separate`: files and folders in, stems out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umx_model.cli.common import (
    DEFAULT_MODEL,
    FAILED,
    WRONG_INPUT,
    Niter,
    Softmask,
    names,
    progress_bar,
    report,
    say,
)
from umx_model.cli.sources import Source, check_outputs, find_sources, readable
from umx_model.errors import InputError

if TYPE_CHECKING:
    from umx_model.inference.files import SeparatedFile

EXAMPLES = """
Examples:

umx-pro separate song.mp3

umx-pro separate --targets accompaniment --format flac album/ -o karaoke

umx-pro separate --model five-targets --aggregate rhythm=bass+drums song.wav

umx-pro separate --model MODEL --bit-depth 32f --name "{target}/{track}.{ext}" *.wav
"""


class StemFormat(str, Enum):
    """File formats that stems can be written in."""

    wav = "wav"
    flac = "flac"
    ogg = "ogg"
    mp3 = "mp3"


class BitDepth(str, Enum):
    """Sample formats that stems can be written with."""

    int16 = "16"
    int24 = "24"
    float32 = "32f"


class Clipping(str, Enum):
    """What is done when a stem would clip."""

    scale = "scale"
    refuse = "refuse"


class Device(str, Enum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


def separate(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Audio files (wav, flac, ogg, opus, mp3, m4a and what else libsndfile or FFmpeg decodes), videos, and "
            "folders, which are searched for audio files with all folders in them.",
            metavar="FILES_OR_FOLDERS...",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A name that `umx-pro models` lists, a model folder, a weights file, a checkpoint or a SavedModel.",
            metavar="NAME|DIR",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder to write to; made if missing.", metavar="DIR")
    ] = "separated",
    targets: Annotated[
        str | None,
        typer.Option(
            help="Write only these of the model's targets, comma-separated.",
            metavar="A,B",
            show_default="all",
            rich_help_panel="Stems",
        ),
    ] = None,
    two_stems: Annotated[
        str | None,
        typer.Option(
            help="Write this target and all the rest as `no_<target>`: `vocals` for karaoke.",
            metavar="TARGET",
            rich_help_panel="Stems",
        ),
    ] = None,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual",
            help="Also write `residual`, what the other stems leave of the input.",
            rich_help_panel="Stems",
        ),
    ] = False,
    aggregates: Annotated[
        list[str] | None,
        typer.Option(
            "--aggregate",
            help="Write a sum of targets as one stem in their place: `accompaniment=bass+drums+other`. Repeatable.",
            metavar="NAME=A+B",
            rich_help_panel="Stems",
        ),
    ] = None,
    stem_format: Annotated[
        StemFormat, typer.Option("--format", help="File format.", rich_help_panel="Files")
    ] = StemFormat.wav,
    bit_depth: Annotated[
        BitDepth | None,
        typer.Option(
            help="Bits per sample: 16 or 24 in flac, 32f (float, which cannot clip) in wav too.",
            show_default="16",
            rich_help_panel="Files",
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            help="Where each stem goes in the output folder. {track} is the input's name without its extension, "
            "{target} the stem's, {ext} the format's. Inputs found in a folder keep their sub-folder, before this.",
            metavar="TEMPLATE",
            rich_help_panel="Files",
        ),
    ] = "{track}/{target}.{ext}",
    clipping: Annotated[
        Clipping,
        typer.Option(
            help="If a stem is louder than the file format can hold: `scale` all stems of the input by one common "
            "gain, and say so, or `refuse` that input.",
            rich_help_panel="Files",
        ),
    ] = Clipping.scale,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace stems that exist.", rich_help_panel="Files")
    ] = False,
    niter: Niter = None,
    softmask: Softmask = None,
    chunk_seconds: Annotated[
        float | None,
        typer.Option(
            help="Audio that the network hears at once. Less takes less memory; too little costs quality.",
            metavar="S",
            show_default="automatic",
            rich_help_panel="Separation",
        ),
    ] = None,
    device: Annotated[
        Device,
        typer.Option(help="Where to run: `auto` takes a GPU if there is one.", rich_help_panel="Separation"),
    ] = Device.auto,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel="Messages")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object per input and line: path, stems, gain, audio_seconds, seconds and "
            "real_time_factor (audio_seconds / seconds); or path, error and exit_code.",
            rich_help_panel="Messages",
        ),
    ] = False,
) -> None:
    """Separate music into stems.

    Writes one file per target, OUTPUT/<input's name>/<target>.<format>, with the sample rate, the channels and
    the exact length of the input; together they sum to it. Audio of any length takes about the same memory.

    An input that fails does not stop the others and leaves nothing half-written. The exit code is 0 if all were
    separated, 2 if some were not and their error lines say how to mend that, 1 for any other failure, 130 for Ctrl-C.
    """
    sums = _aggregates(aggregates or [])
    sources = find_sources(inputs, output)

    from umx_model.inference.files import stem_paths, subtype
    from umx_model.inference.restore import CHUNK_SECONDS, load_separator
    from umx_model.inference.stems import StemSelection
    from umx_model.pretrained import known_models

    if model is None:
        model = known_models()[DEFAULT_MODEL]  # not what has this name in the working folder
    selection = StemSelection(names(targets) if targets is not None else None, two_stems, residual, sums)
    subtype(stem_format.value, bit_depth.value if bit_depth else None)  # may be refused before the model is read
    _choose_device(device)
    separator = load_separator(
        model, niter=niter, softmask=softmask, chunk_seconds=CHUNK_SECONDS if chunk_seconds is None else chunk_seconds
    )
    stems = selection.names(separator.targets)
    folders = {source.path: os.path.join(output, source.folder) if source.folder else output for source in sources}
    check_outputs(
        (source.path, stem_paths(source.path, folders[source.path], stems, stem_format.value, name).values())
        for source in sources
        if source.problem is None
    )
    failures = set()
    for number, source in enumerate(sources, 1):
        try:
            if source.problem is not None:
                raise InputError(source.problem)
            with progress_bar(_title(number, sources), quiet) as progress:
                done = separator.separate_file(
                    source.path,
                    folders[source.path],
                    selection,
                    stem_format=stem_format.value,
                    bit_depth=bit_depth.value if bit_depth else None,
                    name=name,
                    clipping=clipping.value,
                    overwrite=overwrite,
                    progress=progress,
                )
        except Exception as error:
            message, code = report(error)
            failures.add(code)
            if as_json:
                _print_json({"path": readable(source.path), "error": message, "exit_code": code})
        else:
            if as_json:
                _print_json(_facts(done))
            elif not quiet:
                say(_summary(done))
    if failures:
        raise typer.Exit(FAILED if FAILED in failures else WRONG_INPUT)


def _aggregates(options: Sequence[str]) -> dict[str, list[str]]:
    """Read `NAME=A+B` options."""
    aggregates: dict[str, list[str]] = {}
    for text in options:
        name, _, parts = (part.strip() for part in text.partition("="))
        targets = [part.strip() for part in parts.split("+")]
        if not name or not all(targets):
            raise InputError(f"--aggregate {text}: expected NAME=TARGET+TARGET, such as accompaniment=bass+drums+other")
        if name in aggregates:
            raise InputError(f"--aggregate {text}: {name} is given twice; choose another name")
        aggregates[name] = targets
    return aggregates


def _choose_device(device: Device) -> None:
    import tensorflow as tf

    if device is Device.cpu:
        tf.config.set_visible_devices([], "GPU")
    elif device is Device.gpu and not tf.config.list_physical_devices("GPU"):
        raise InputError(
            "--device gpu: TensorFlow finds no GPU here; use --device cpu, or install tensorflow[and-cuda] and a driver"
        )


def _title(number: int, sources: Sequence[Source]) -> str:
    count = f"{number}/{len(sources)} " if len(sources) > 1 else ""
    return f"separating {count}{os.path.basename(sources[number - 1].path)}"


def _facts(done: SeparatedFile) -> dict[str, Any]:
    return {
        "path": done.path,
        "stems": done.stems,
        "gain": done.gain,
        "audio_seconds": done.audio_seconds,
        "seconds": done.seconds,
        "real_time_factor": done.audio_seconds / done.seconds,
    }


def _print_json(content: dict[str, Any]) -> None:
    say(json.dumps(content))


def _summary(done: SeparatedFile) -> str:
    """Say in one line what was written, how fast, and at which gain."""
    folders = {os.path.dirname(file) for file in done.stems.values()}
    if len(folders) == 1:
        written = f"{folders.pop()}: " + ", ".join(os.path.basename(file) for file in done.stems.values())
    else:
        written = ", ".join(done.stems.values())
    speed = f"{done.audio_seconds:.1f} s in {done.seconds:.1f} s, {done.audio_seconds / done.seconds:.1f}x real time"
    gain = f"; all scaled by {20 * math.log10(done.gain):.1f} dB, or some would clip" if done.gain != 1 else ""
    return f"{done.path} -> {written} ({speed}){gain}"
