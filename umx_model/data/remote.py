"""Files on other file systems (`gs://`, `s3://`, `https://`): ranges of bytes, and files for libraries.

TensorFlow fetches no more than it is asked for, since `umx_model/__init__.py` turns its own reading
ahead off, so how much is asked for at a time is decided here.
"""

from __future__ import annotations

import http.client
import io
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import Any, BinaryIO, TypeVar

import tensorflow as tf
from tensorflow_io.python.ops import core_ops

T = TypeVar("T")

_ANSWER_SECONDS = 60

# Bytes asked for at a time: few after a jump, since decoders look around when they seek, then ever more.
_LEAST, _MOST = 2**14, 2**18
_MOST_AT_ONCE = 2**22

# Seconds to wait after each failed attempt. TensorFlow's own gs:// tries for longer before it fails once.
_PAUSES = (0.5, 2.0, 8.0)

# Trying again does not help against these.
_LASTING = (
    *(tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError),
    *(tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.OutOfRangeError),
)


def is_remote(path: str) -> bool:
    """Tell paths that only `tf.io.gfile` opens."""
    return "://" in path


def is_web(path: str) -> bool:
    """Tell addresses of web servers, which list no folders."""
    return path.startswith(("http://", "https://"))


def web_address(path: str) -> str:
    """Return a path as servers want it: spaces and letters beyond ASCII encoded."""
    return urllib.parse.quote(path, safe="%/:?&=@+,;~!$'()*[]") if is_web(path) else path


def web_headers(path: str) -> Message:
    """Ask a web server about a file. TensorFlow's own way of asking is to download it.

    Raises:
        tf.errors.OpError: there is no such file (`NotFoundError`), or no answer.
    """
    return _persistently(lambda: _ask(path))


def _ask(path: str) -> Message:
    try:
        request = urllib.request.Request(web_address(path), method="HEAD")
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return answer.headers
    except urllib.error.HTTPError as problem:
        lasting = tf.errors.NotFoundError if problem.code in (404, 410) else tf.errors.PermissionDeniedError
        kind = lasting if problem.code < 500 else tf.errors.UnavailableError
        raise kind(None, None, f"the server answers {problem.code} {problem.reason}") from None
    except (OSError, http.client.HTTPException) as problem:
        raise tf.errors.UnavailableError(None, None, str(problem)) from None


def file_size(path: str) -> int:
    """Return the length of a remote file in bytes.

    Raises:
        tf.errors.OpError: there is no such file, or no answer.
    """

    if is_web(path):
        return int(web_headers(path)["Content-Length"] or 0)
    return _persistently(lambda: int(tf.io.gfile.stat(path).length))


def open_binary(path: str) -> BinaryIO | RemoteFile:
    """Open any file for reading in pieces; may raise `OSError` or `tf.errors.OpError`."""
    return RemoteFile(path) if is_remote(path) else open(path, "rb")


def read_range(path: str, start: int, length: int) -> bytes:
    """Fetch just these bytes of a remote file, trying again where the network or the server fails.

    Raises:
        tf.errors.OpError: it cannot be read, or (`OutOfRangeError`) ends before.
    """
    address = web_address(path)
    return _persistently(lambda: core_ops.io_file_read(address, start, length, compression="").numpy())


def _persistently(attempt: Callable[[], T]) -> T:
    for pause in _PAUSES:
        try:
            return attempt()
        except _LASTING:
            raise
        except tf.errors.OpError:
            time.sleep(pause)
    return attempt()


class RemoteFile(io.RawIOBase):
    """A remote file as a file object that reads ahead moderately.

    Attributes:
        path: as given.

    Raises:
        tf.errors.OpError: it cannot be opened, or read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._size = file_size(path)
        self._position = 0
        self._head = b""  # the first bytes, which decoders come back to
        self._window, self._window_start = b"", 0
        self._ahead = _LEAST
        self._expected = 0

    def expect_share(self, share: float) -> None:
        """Say that about this share of the file is going to be read in a row, so that it is fetched at once."""
        self._expected = min(round(share * self._size), _MOST_AT_ONCE)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as there are, up to the buffer's size."""
        wanted = min(len(buffer), self._size - self._position)
        done = 0
        while done < wanted:
            piece = self._held(wanted - done) or self._fetch(wanted - done)
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def _held(self, wanted: int) -> bytes:
        for start, held in ((self._window_start, self._window), (0, self._head)):
            if start <= self._position < start + len(held):
                first = self._position - start
                return held[first : first + wanted]
        return b""

    def _fetch(self, wanted: int) -> bytes:
        on = self._position == self._window_start + len(self._window)
        self._ahead = min(2 * self._ahead, _MOST) if on and self._window else _LEAST
        length = min(max(wanted, self._ahead, self._expected), self._size - self._position)
        self._expected = 0
        self._window, self._window_start = read_range(self.path, self._position, length), self._position
        if self._position == 0:
            self._head = self._window
        return self._window[:wanted]


class RemoteFileForC(RemoteFile):
    """A remote file for libraries that call it through C, which swallows exceptions.

    Attributes:
        error: the first failure, after which there is nothing more to read; for the caller to raise.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.error: tf.errors.OpError | None = None

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as there are, up to the buffer's size; none after a failure."""
        try:
            return super().readinto(buffer) if self.error is None else 0
        except tf.errors.OpError as problem:
            self.error = problem
            return 0
