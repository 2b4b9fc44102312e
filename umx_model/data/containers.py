"""The outermost structure of wav, Ogg and MP4 files: is all of it there, and where are the samples?

libsndfile and FFmpeg read some truncated files as shorter ones without a word. What the container
says of its own size gives them away.
"""

from __future__ import annotations

import struct

import tensorflow as tf

from umx_model.errors import InputError

# Sizes that a program writes into a wav header when it streams and cannot come back to mend it.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)

_LARGEST_OGG_PAGE = 65307


def find_wav_data(path: str) -> tuple[int, int] | None:
    """Find the samples of a wav file.

    Args:
        path: a file that libsndfile calls WAV or WAVEX.

    Returns:
        The byte where they start and how many bytes the header says they take (0 where the program
        that wrote it did not know); None where there is no such place.

    Raises:
        InputError: the file ends before its samples do.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        file_size, position = file.size(), 12
        if file.read(4) != b"RIFF":
            return None
        while position + 8 <= file_size:
            file.seek(position)
            identifier, size = struct.unpack("<4sI", file.read(8))
            position += 8
            if identifier == b"data":
                size = 0 if size in _UNKNOWN_SIZES else size
                if position + size > file_size:
                    raise _truncated(path, f"its header promises {size} bytes of audio, {file_size - position} found")
                return position, size
            position += size + size % 2
    return None


def check_ogg(path: str) -> None:
    """Raise InputError for an Ogg file without its last page (RFC 3533, section 6)."""
    with tf.io.gfile.GFile(path, "rb") as file:
        file.seek(max(0, file.size() - 2 * _LARGEST_OGG_PAGE))
        tail = file.read()
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27 + 255]
    complete = (
        page >= 0 and len(header) > 27 and page + 27 + header[26] + sum(header[27 : 27 + header[26]]) <= len(tail)
    )
    if not complete or not header[5] & 4:
        raise _truncated(path, "its end-of-stream page is missing")


def check_mp4(path: str) -> None:
    """Raise InputError for an MP4 or QuickTime file whose last box is cut; other files pass (ISO 14496-12)."""
    with tf.io.gfile.GFile(path, "rb") as file:
        file_size, position = file.size(), 0
        while position + 16 <= file_size:
            file.seek(position)
            size, kind, long_size = struct.unpack(">I4sQ", file.read(16))
            if position == 0 and kind != b"ftyp":
                return
            size = {0: file_size - position, 1: long_size}.get(size, size)
            if position + size > file_size:
                name = kind.decode("latin1")
                raise _truncated(path, f"its '{name}' box promises {size} bytes, {file_size - position} found")
            position += max(size, 8)


def _truncated(path: str, evidence: str) -> InputError:
    return InputError(f"{path}: truncated: {evidence}; replace the file")
