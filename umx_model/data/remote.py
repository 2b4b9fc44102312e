"""Files on other file systems (`gs://`, `s3://`), for libraries that want a file object."""

from __future__ import annotations

import io
import os
from typing import Any

import tensorflow as tf


def is_remote(path: str) -> bool:
    """Tell paths that only `tf.io.gfile` opens."""
    return "://" in path


class RemoteFile(io.RawIOBase):
    """What libsndfile and FFmpeg need of a file, over `tf.io.gfile`.

    libsndfile calls these methods through C, which swallows exceptions, so the first one is kept
    in `error` for the caller to raise.
    """

    def __init__(self, path: str) -> None:
        self._file = tf.io.gfile.GFile(path, "rb")
        self._size = self._file.size()
        self.error: Exception | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as there are, up to the buffer's size; none after a failure."""
        try:
            data = self._file.read(len(buffer))
        except tf.errors.OpError as problem:
            self.error = self.error or problem
            return 0
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._size}[whence]
        self._file.seek(base + offset)
        return base + offset

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._file.tell()
