"""The outermost structure of audio files: is all of it there, and where are the samples?

libsndfile and FFmpeg read some truncated files as shorter ones without a word. What the container
says of its own size gives them away.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Literal, NamedTuple

from umx_model.data.remote import open_binary
from umx_model.errors import InputError

_LARGEST_OGG_PAGE = 65307


class _Chunks(NamedTuple):
    """How a container is divided into chunks, each with an identifier and a size before it."""

    header: struct.Struct  # identifier and size
    first: int  # where the first chunk is
    samples: bytes  # identifier of the chunk with the samples
    alignment: int
    counted: int  # how much of its own header a chunk's size includes


_RIFF = _Chunks(struct.Struct("<4sI"), 12, b"data", 2, 0)
_W64_SAMPLES = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_CONTAINERS = {
    b"RIFF": _RIFF,
    b"RIFX": _RIFF._replace(header=struct.Struct(">4sI")),
    b"RF64": _RIFF,
    b"FORM": _Chunks(struct.Struct(">4sI"), 12, b"SSND", 2, 0),
    b"riff": _Chunks(struct.Struct("<16sQ"), 40, _W64_SAMPLES, 8, 24),
}


def find_wav_data(path: str) -> tuple[int, int] | None:
    """Find the samples of a wav file.

    Args:
        path: a file that libsndfile calls WAV or WAVEX.

    Returns:
        The byte where they start and how many bytes the header says they take (0 where the program
        that wrote it did not know); None where there is no such place, or the file is big-endian.

    Raises:
        InputError: the file ends before its samples do.
    """
    magic, position, size = _find_samples(path)
    return (position, size) if magic == b"RIFF" and position else None


def check_chunks(path: str) -> None:
    """Raise InputError for a wav, rf64, w64, aiff or au file that ends before its samples do; other files pass."""
    _find_samples(path)


def _find_samples(path: str) -> tuple[bytes, int, int]:
    """Return a file's first four bytes, and where its samples are and their size; 0 for what is not known."""
    with open_binary(path) as file:
        magic = file.read(4)
        if magic in _CONTAINERS:
            position, size = _find_chunk(file, _CONTAINERS[magic])
        elif magic in (b".snd", b"dns."):
            order: Literal["big", "little"] = "big" if magic == b".snd" else "little"
            position, size = (int.from_bytes(file.read(4), order) for _ in range(2))
        else:
            position, size = 0, 0
        size = 0 if _is_unknown(size) else size
        if position + size > _size(file):
            raise _truncated(path, f"its header promises {size} bytes of audio, {_size(file) - position} found")
    return magic, position, size


def _size(file: Any) -> int:
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    return int(size)


def _find_chunk(file: Any, chunks: _Chunks) -> tuple[int, int]:
    """Return where the content of the chunk with the samples starts, and its size; zeros if there is none."""
    position, long_size = chunks.first, 0
    while position + chunks.header.size <= _size(file):
        file.seek(position)
        identifier, size = chunks.header.unpack(file.read(chunks.header.size))
        position += chunks.header.size
        if identifier == chunks.samples:
            # rf64 (EBU Tech 3306) tells a size that 32 bits cannot in a chunk of its own.
            return position, (long_size if long_size and size == 0xFFFFFFFF else size - chunks.counted)
        if identifier == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        position += max(0, size - chunks.counted)
        position += -position % chunks.alignment
    return 0, 0


def _is_unknown(size: int) -> bool:
    """Tell sizes that programs write when they stream and cannot come back to mend the header.

    Most write 0 or all ones; sox 0x7ffff000 (wav) or 0x7f000000 (aiff) rounded down to whole samples.
    """
    return size <= 0 or 0x7EFF0000 <= size <= 0x7FFFFFFF or size == 0xFFFFFFFF or size >= 2**63 - 1


def check_ogg(path: str) -> None:
    """Raise InputError for an Ogg file without its last page (RFC 3533, section 6)."""
    with open_binary(path) as file:
        file.seek(max(0, _size(file) - 2 * _LARGEST_OGG_PAGE))
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
    with open_binary(path) as file:
        file_size, position = _size(file), 0
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
