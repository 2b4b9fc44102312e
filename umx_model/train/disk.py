"""A full disk, as something that the user can mend."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from umx_model.data.remote import is_remote
from umx_model.errors import InputError

_FULL = re.compile(r"No space left on device|Disk quota exceeded")


@contextmanager
def explaining_full_disk(folder: str, needed: int) -> Iterator[None]:
    """Say which disk is full, and what to do.

    Args:
        folder: what is written to.
        needed: bytes of a checkpoint.

    Raises:
        InputError: the disk became full in here.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        if isinstance(error, InputError) or not _FULL.search(str(error)):
            raise
        full, free = folder, _free(folder)
        if free is None or (free > needed and (_free(tempfile.gettempdir()) or 0) < needed):
            full, free = tempfile.gettempdir(), _free(tempfile.gettempdir())
        raise InputError(
            f"{full}: the disk is full ({(free or 0) / 1e6:.1f} MB left; a checkpoint takes {needed / 1e6:.1f} MB, and "
            f"is written before an old one is removed); make room, then resume (--resume)"
        ) from None


def _free(folder: str) -> int | None:
    """Bytes left in a local folder's file system."""
    if is_remote(folder) or not os.path.isdir(folder):
        return None
    return shutil.disk_usage(folder).free
