"""What progress looks like, on a terminal and elsewhere."""

import io
import re
import sys
import time

import pytest

from umx_model.cli.common import progress_bar
from umx_model.progress import ProgressBar


class Terminal(io.StringIO):
    """Something that takes itself for a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def watch(monkeypatch):
    """Make stderr a terminal; returns a function that returns the last line shown, if any."""

    def start():  # in the test itself: pytest sets stderr anew after fixtures
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "xterm")

        def last():
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
            return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1:]

        return last

    return start


def test_separating(watch):
    shown = watch()
    with progress_bar("separating 1/2 song [live].wav") as progress:
        progress(0, 60)
        time.sleep(0.5)
        progress(30, 60)  # the first news of progress tells the rate
    (line,) = shown()
    assert re.fullmatch(r"separating 1/2 song \[live\]\.wav .* 50% [345]\d\.\dx real time 00:01 left *", line)


def test_long_names_leave_room_for_the_rest(watch):
    shown = watch()
    with ProgressBar("x" * 200, total=4, unit="excerpts") as bar:
        time.sleep(0.05)
        bar.advance(2, "loss 0.5")
    (line,) = shown()
    assert re.fullmatch(r"x{40}… .* 50% [\d,.]+ excerpts/s .* left loss 0\.5 *", line)


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet(watch, monkeypatch, quiet):
    shown = watch()
    if not quiet:  # nor where nobody looks
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    with progress_bar("separating song.wav", quiet) as progress:
        progress(0, 60)
        progress(60, 60)
    assert shown() == []
