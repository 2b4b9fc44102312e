"""Progress of long work on stderr: rate and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class _Rate(ProgressColumn):
    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else task.fields["rate"].format(speed))


class ProgressBar:
    """A progress bar for one piece of work.

        with ProgressBar("training", total=640, unit="excerpts") as bar:
            bar.advance(16, "loss 0.123")

    Args:
        description: what is being done.
        total: amount of work, in `unit`; None where it is not known.
        unit: plural noun of what is counted.
        quiet: show nothing. Nothing is shown either where stderr is not a terminal.
        rate: how to show the units per second; `{:,.1f} <unit>/s` if None.
    """

    def __init__(
        self, description: str, total: float | None, unit: str, quiet: bool = False, rate: str | None = None
    ) -> None:
        self._progress = Progress(
            # File names may look like markup, and be long.
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or sys.stderr is None or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(description, total=total, rate=rate or f"{{:,.1f}} {unit}/s", note="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        # The rate is measured between updates, of which this is the first: it is known from the next one on.
        self._progress.update(self._task, advance=1e-9)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._progress.disable:  # stop() ends with a line break even then
            self._progress.stop()

    def advance(self, amount: float, note: str = "") -> None:
        """Count `amount` more as done and show `note` at the end of the line."""
        self._progress.update(self._task, advance=amount, note=note)
