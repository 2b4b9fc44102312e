"""Progress of Beam work.

Beam copies a DoFn to wherever it runs, so a DoFn cannot hold a progress bar; it can reach this
module. In the process that shows the bar the count arrives; in a remote worker nothing happens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from umx_model.progress import ProgressBar

_bar: ProgressBar | None = None
_lock = Lock()


@contextmanager
def shown(description: str, total: int, unit: str) -> Iterator[None]:
    """Show a bar while the block runs; `advance` moves it."""
    global _bar
    with ProgressBar(description, total, unit) as _bar:
        try:
            yield
        finally:
            _bar = None


def advance(note: str = "") -> None:
    """Count one more as done."""
    with _lock:
        if _bar is not None:
            _bar.advance(1, note)
