"""What the commands share: exit codes and error lines, options, progress."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Optional

import click
import typer

from umx_model.errors import InputError

# What separates where no model is named.
DEFAULT_MODEL = "vocals-accompaniment"

DONE, FAILED, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name that `umx-pro models` lists, a model folder, a weights file, a checkpoint or a SavedModel.",
        metavar="NAME|DIR",
    ),
]
Niter = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=0,
        help="Iterations of expectation maximization: 1 separates better than 0 and takes longer.",
        show_default="the model's",
        rich_help_panel="Separation",
    ),
]
Softmask = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--softmask/--no-softmask",
        help="Start EM from a soft mask on the mixture instead of the network's magnitudes with the mixture's phase.",
        show_default="the model's",
        rich_help_panel="Separation",
    ),
]


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line, with one line on stderr for whatever ends it early.

    Args:
        app: its commands.
        program: its name in usage and error messages.
        arguments: those of this process if None.

    Returns:
        The exit code: 0 done, 2 the user's mistake, 1 any other failure, 130 interrupted, 143 after SIGTERM.
    """
    try:
        # The value is an exit code only where the command raised `typer.Exit`, as typer does on Ctrl-C.
        code = app(args=arguments, prog_name=program, standalone_mode=False)
        if code == INTERRUPTED:
            complain("interrupted")
        return code or DONE
    except click.Abort as stop:
        return _end(str(stop) or "interrupted", INTERRUPTED)
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        return _end("terminated; the same command with --resume continues", TERMINATED)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else program
        message = (
            error.format_message().rstrip(".").replace(" (env var: 'None')", "")
        )  # a slip of typer's with click 8.2
        return _end(f"error: {message} (see `{command} --help`)", WRONG_INPUT)
    except Exception as error:
        return report(error)[1]


def report(error: Exception) -> tuple[str, int]:
    """Tell the user of an error in one line; with `UMX_PRO_DEBUG=1` in the environment, also where it happened.

    Returns:
        What was wrong, and the exit code that says whether the user can mend it.
    """
    if os.environ.get("UMX_PRO_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, InputError):
        complain(f"error: {error}")
        return str(error), WRONG_INPUT
    message = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
    complain(f"failed: {message} (UMX_PRO_DEBUG=1 shows where)")
    return message, FAILED


def _end(message: str, code: int) -> int:
    complain(message)
    return code


def complain(message: str) -> None:
    """Print a line to stderr."""
    print(f"umx-pro: {message}", file=sys.stderr, flush=True)


def names(text: str) -> list[str]:
    """Split a comma-separated option."""
    return [name.strip() for name in text.split(",") if name.strip()]


@contextlib.contextmanager
def progress_bar(description: str, quiet: bool = False) -> Iterator[Callable[[float, float], None]]:
    """A progress bar that is told the seconds of audio done and their total, and starts with the first such call."""
    from umx_model.progress import ProgressBar

    with contextlib.ExitStack() as stack:
        bar: ProgressBar | None = None
        shown = 0.0

        def progress(done: float, total: float) -> None:
            nonlocal bar, shown
            if bar is None:
                bar = stack.enter_context(ProgressBar(description, total, "s of audio", quiet, "{:.1f}x real time"))
            bar.advance(done - shown)
            shown = done

        yield progress


def say(line: str) -> None:
    """Print a line on stdout. Where nobody reads on (`| head`), go on without: the work is still wanted."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
