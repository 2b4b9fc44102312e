"""Ctrl-C that waits for a good moment."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class DeferredInterrupt:
    """Holds Ctrl-C back until the loop is at a point from which it can be resumed.

    A second Ctrl-C comes through at once. Where signals are not ours to handle, outside the main
    thread or where Ctrl-C is ignored (a job in the background), nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> DeferredInterrupt:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            try:
                self._previous = signal.signal(signal.SIGINT, self._handle)
            except ValueError:
                self._previous = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        if self.requested and kind is None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._release()

    def _release(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
