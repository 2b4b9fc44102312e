"""Watching a run until it ends: what each component does, and for how long."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Protocol

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.remote import ENDED, LeftRunning, Platform, RemoteError, Run, Task
from umx_model.errors import InputError

_STYLES = {"running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "yellow"}
# What fails at once is told at once; what takes hours is not asked for every second.
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 15.0
# Hours of waiting should not end because a platform or a network is away for some minutes.
_PATIENCE = 900.0


class _Display(Protocol):
    def show(self, run: Run, note: str) -> None:
        """Show where a run is, and what is the matter with asking."""


def follow(platform: Platform, run: Run, components: Sequence[str]) -> Run:
    """Show what becomes of a run until it ends: in place on a terminal, elsewhere one line per change.

    Args:
        platform: where it is.
        run: to watch.
        components: names of all, in their order; those that have not started are shown as such.

    Returns:
        The run, ended.

    Raises:
        LeftRunning: Ctrl-C; the run goes on.
        InputError: one may no longer ask; the run may go on.
        RemoteError: the platform has failed, or has not answered, for a quarter of an hour.
    """
    try:
        if not sys.stdout.isatty():
            return _watch(platform, run, _Lines())
        screen = _Screen(components)
        with Live(get_renderable=screen.render, refresh_per_second=2):
            return _watch(platform, run, screen)
    except InputError as error:  # credentials that have lapsed, for example
        raise InputError(f"{error}; the run may go on: {run.link}") from None
    except KeyboardInterrupt:
        raise LeftRunning(f"no longer watched; the run goes on: {run.link}") from None


def _watch(platform: Platform, run: Run, display: _Display) -> Run:
    pause, note, heard = _FIRST_PAUSE, "", time.monotonic()
    while True:
        try:
            run = platform.find_run(run.id)
            note, heard = "", time.monotonic()
        except RemoteError as error:
            if time.monotonic() - heard > _PATIENCE:
                raise RemoteError(f"{error}; the run may go on: {run.link}") from None
            note = f"{error}; trying again"
        display.show(run, note)
        if run.state in ENDED:
            return run
        time.sleep(pause)
        pause = min(pause * 1.3, _LAST_PAUSE)


class _Lines:
    """One line per change."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def show(self, run: Run, note: str) -> None:
        for task in run.tasks:
            self._say(task.name, f"{task.name:<20} {task.state:<10} {_took(task) if task.ended else ''}".rstrip())
        self._say("", note)

    def _say(self, about: str, line: str) -> None:
        if line and self._said.get(about) != line:
            typer.echo(line)
        self._said[about] = line


class _Screen:
    """A table that stays where it is."""

    def __init__(self, components: Sequence[str]) -> None:
        self._components = components
        self._run: Run | None = None
        self._note = ""

    def show(self, run: Run, note: str) -> None:
        self._run, self._note = run, note

    def render(self) -> Group:
        """Return what to show now; times go on between answers."""
        run, table = self._run, Table.grid(padding=(0, 2))
        if run is None:
            return Group(table)
        for task in run.tasks:
            table.add_row(task.name, Text(task.state, _STYLES.get(task.state, "")), _took(task))
        if run.state in ENDED:
            return Group(table)
        started = {task.name for task in run.tasks}
        for name in self._components:
            if name not in started:
                table.add_row(Text(name, "dim"), Text("-", "dim"), "")
        so_far = Text(f"{run.name}: {run.state}, {elapsed(run.created, '')}")
        return Group(table, so_far, *([Text(self._note, "yellow")] if self._note else []))


def _took(task: Task) -> str:
    return elapsed(task.started, task.ended) if task.started else ""


def elapsed(start: str, end: str) -> str:
    """Return the time between two moments (ISO 8601), or since one where the end is empty, for people."""
    until = datetime.fromisoformat(end.replace("Z", "+00:00")) if end else datetime.now(timezone.utc)
    # Clocks of two machines differ.
    seconds = max(0, round((until - datetime.fromisoformat(start.replace("Z", "+00:00"))).total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes} min {seconds % 60:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
