"""Ctrl-C and SIGTERM that wait for a good moment, SIGTERM not for long.

SIGTERM is what takes a machine back: `docker stop`, Kubernetes and clouds' spot machines send it,
and pull the plug 10 to 30 seconds later.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

_log = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as shells and container platforms count: 143."""

# Seconds after SIGTERM until no more is expected of a main thread that is held up; a step or a read can take minutes.
GRACE_SECONDS = 4.0


class Terminated(SystemExit):
    """SIGTERM, as an exception that ends a program with `TERMINATED` where nothing catches it."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Interrupt:
    """Turns Ctrl-C into KeyboardInterrupt and SIGTERM into `Terminated`, at once or, where asked, deferred.

    A second signal of the kind comes through at once. Where signals are not ours to handle, outside
    the main thread or where they are ignored (Ctrl-C for a job in the background), nothing is changed.

    Python handles a signal between two of its instructions, of which one may be a training step that
    takes a minute. So a thread waits for SIGTERM too, and ends the process where the main
    thread has not reacted after `GRACE_SECONDS`.

    Attributes:
        requested: whether there was a signal that has been deferred.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number = signal.SIGINT
        self._deferring = False
        self._rescue: Callable[[], None] | None = None
        self._heard = threading.Event()  # by the main thread
        self._previous: dict[int, Any] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's
                self._previous[number] = signal.signal(number, self._handle)
        if signal.SIGTERM in self._previous:
            self._sockets = socket.socketpair()
            self._sockets[1].setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._sockets[0],), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heard.set()
        if self._sockets is not None:
            signal.set_wakeup_fd(self._previous_fd)
            self._sockets[1].close()  # ends the thread
        self._release(*self._previous)

    @contextmanager
    def deferred(self, rescue: Callable[[], None]) -> Iterator[None]:
        """Defer signals: within, `requested` is looked at now and then, and `stop` called.

        Args:
            rescue: saves, from another thread, what the held up main thread has not saved.
        """
        self._deferring, self._rescue = True, rescue
        try:
            yield
        finally:
            self._deferring, self._rescue = False, None
        if self.requested:
            self.stop()

    def acknowledge(self) -> None:
        """Say that the main thread knows, and will stop as soon as all is saved."""
        self._heard.set()

    def stop(self, number: int = 0) -> NoReturn:
        """Raise what a signal means: the one that was deferred, or the given one, which another process was sent."""
        self._heard.set()
        raise Terminated if (number or self._number) == signal.SIGTERM else KeyboardInterrupt

    @property
    def number(self) -> int:
        """The signal that has been deferred; 0 if there was none."""
        return int(self._number) if self.requested else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._number = signal.Signals(number)
        self._release(number)  # a second one comes through
        if not self._deferring:
            self.stop()
        self.requested = True

    def _release(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._previous:
                signal.signal(number, self._previous.pop(number))

    def _watch(self, signals: socket.socket) -> None:
        """Wait for SIGTERM, and then for the main thread."""
        with signals:
            terminated = 0
            while received := signals.recv(64):
                terminated += received.count(signal.SIGTERM)
                if terminated == 1:
                    threading.Thread(target=self._insist, daemon=True).start()
                elif terminated > 1:
                    os._exit(TERMINATED)

    def _insist(self) -> None:
        if self._heard.wait(GRACE_SECONDS):
            return
        try:
            if rescue := self._rescue:
                rescue()
            _log.warning("SIGTERM: the process ends while it is busy; what was done before is saved")
        except BaseException:
            _log.exception("SIGTERM: the latest steps could not be saved")
        logging.shutdown()
        os._exit(TERMINATED)
