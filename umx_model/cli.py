"""The command `umx-pro`: separate, train, evaluate.

What a user can mend ends with `umx-pro: error: ...` and exit code 2, other failures with one line and
1, Ctrl-C with 130. `UMX_PRO_DEBUG=1` adds the traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Optional

import click
import typer

from umx_model.errors import InputError

# Everything else of the package needs TensorFlow, which takes seconds to import, so commands import
# what they use: `umx-pro --help` and usage errors answer at once.
if TYPE_CHECKING:
    from umx_model.profile import Profile

app = typer.Typer(
    help="Separates music into its sources.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Niter = Annotated[Optional[int], typer.Option(min=0, help="EM iterations.", show_default="the model's")]  # noqa: UP045


class StemFormat(str, Enum):
    """File formats that stems can be written in."""

    wav = "wav"
    flac = "flac"
    ogg = "ogg"


class BitDepth(str, Enum):
    """Sample formats that stems can be written with."""

    int16 = "16"
    int24 = "24"
    float32 = "32f"


@app.command()
def separate(
    files: Annotated[list[str], typer.Argument(help="Audio or video files.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder, weights file, checkpoint or SavedModel.", metavar="DIR")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write to.", metavar="DIR")] = "separated",
    niter: Niter = None,
    targets: Annotated[
        str | None, typer.Option(help="Write only these, comma-separated.", metavar="A,B", show_default="all")
    ] = None,
    stem_format: Annotated[StemFormat, typer.Option("--format", help="File format of the stems.")] = StemFormat.wav,
    bit_depth: Annotated[
        BitDepth | None,
        typer.Option(help="Bits per sample; flac has 16 and 24; 32f (float) never clips.", show_default="16"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace stems that exist.")] = False,
) -> None:
    """Separate FILES into OUTPUT/<file's name>/<target>.<format>."""
    if model is None:
        raise InputError(
            "no model given: add --model DIR with a model folder (of `umx-pro train`), a weights file, "
            "a checkpoint or a SavedModel (of the pipeline)"
        )
    from umx_model.inference.files import check_targets, subtype, track_name
    from umx_model.inference.restore import load_separator

    depth = bit_depth.value if bit_depth else None
    subtype(stem_format.value, depth)
    sources: dict[str, str] = {}
    for file in files:
        other = sources.setdefault(track_name(file), file)
        if other != file:
            raise InputError(
                f"{other} and {file} would both be written to {os.path.join(output, track_name(file))}; "
                "separate them into different output folders"
            )
    separator = load_separator(model, niter=niter)
    chosen = check_targets(_names(targets) if targets else None, separator.targets)
    failed = 0
    for file in sources.values():
        try:
            with _progress(f"separating {os.path.basename(file)}") as progress:
                written = separator.separate_file(
                    file, output, stem_format.value, depth, chosen, overwrite=overwrite, progress=progress
                )
        except InputError as error:
            _complain(f"error: {error}")
            failed += 1
        else:
            names = ", ".join(os.path.basename(name) for name in written.values())
            print(f"{file} -> {os.path.join(output, track_name(file))}: {names}", flush=True)
    if failed:
        raise typer.Exit(2)


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Database: folder with train/ and valid/.", metavar="DIR")],
    output: Annotated[str, typer.Option(help="Model folder to write.", metavar="DIR")],
    profile: Annotated[
        str | None,
        typer.Argument(help="Profile, a JSON file.", metavar="[PROFILE]", show_default="Open-Unmix's recipe"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUTPUT's last checkpoint.")] = False,
    targets: Annotated[
        str | None,
        typer.Option(help="What to separate, comma-separated.", metavar="A,B", show_default="the profile's, or DATA's"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: train.epochs=2.", metavar="NAME=VALUE")
    ] = None,
) -> None:
    """Train a model on a database of stems."""
    from umx_model.train.trainer import train as run

    changes = dict(_setting(text) for text in settings or [])
    if targets:
        changes["model.targets"] = targets
    start = _starting_profile(profile, data, output, resume, _names(targets) if targets else None)
    try:
        run(start.updated(changes), data, output, resume=resume)
    except KeyboardInterrupt:
        raise click.Abort("interrupted; the same command with --resume continues") from None
    print(f"model: {output}\nuse:   umx-pro separate --model {output} FILES...", flush=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Model folder, weights file, checkpoint or SavedModel.", metavar="DIR")],
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
    samples = read_database(root or ".", separator.targets, splits=[split])[split]
    scores = []
    for number, sample in enumerate(samples, 1):
        with _progress(f"evaluating {number}/{len(samples)} {sample.id}") as progress:
            scores.append(evaluate_sample(separator, sample, progress))
    count = f"{len(samples)} sample{'s' if len(samples) > 1 else ''}"
    print(f"{METRIC} ({count})\n{table(summarize(scores))}", flush=True)
    if json_file is not None:
        document = {"model": model, "data": data, **to_json(scores)}
        with tf.io.gfile.GFile(json_file + ".partial", "w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
        tf.io.gfile.rename(json_file + ".partial", json_file, overwrite=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 2 the user's mistake, 1 any other failure, 130 interrupted."""
    try:
        # The value is an exit code only where the command raised `typer.Exit`, as typer does on Ctrl-C.
        code = app(args=arguments, prog_name="umx-pro", standalone_mode=False)
        if code == 130:
            _complain("interrupted")
    except click.Abort as stop:
        code = _end(str(stop) or "interrupted", 130)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "umx-pro"
        message = (
            error.format_message().rstrip(".").replace(" (env var: 'None')", "")
        )  # a slip of typer's with click 8.2
        code = _end(f"error: {message} (see `{command} --help`)", 2)
    except InputError as error:
        code = _end(f"error: {error}", 2)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        code = _end(f"failed: {type(error).__name__}: {reason} (UMX_PRO_DEBUG=1 shows where)", 1)
    sys.exit(code)


def _end(message: str, code: int) -> int:
    if os.environ.get("UMX_PRO_DEBUG") == "1":
        traceback.print_exc()
    _complain(message)
    return code


def _complain(message: str) -> None:
    print(f"umx-pro: {message}", file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: expected NAME=VALUE, such as train.epochs=2")
    return name.strip(), value.strip()


def _starting_profile(path: str | None, data: str, output: str, resume: bool, targets: list[str] | None) -> Profile:
    """The profile that was asked for; or that of the run to resume; or the defaults for the targets."""
    from umx_model.data.track_folder import found_targets
    from umx_model.profile import Profile

    def find_targets() -> Sequence[str]:
        return targets or found_targets(data)

    if path is None and resume:
        return Profile.read(output)
    return Profile.read(path, find_targets) if path is not None else Profile.parse({}, find_targets=find_targets)


@contextlib.contextmanager
def _progress(description: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar in seconds of audio that starts when the total is known."""
    from umx_model.progress import ProgressBar

    with contextlib.ExitStack() as stack:
        bar: ProgressBar | None = None
        shown = 0.0

        def progress(done: float, total: float) -> None:
            nonlocal bar, shown
            if bar is None:
                bar = stack.enter_context(ProgressBar(description, total, "s of audio"))
            bar.advance(done - shown)
            shown = done

        yield progress
