"""Text that comes back from Beam."""

from pathlib import Path

import apache_beam as beam
import pytest

from components.beam_text import failure, raise_failures, read_lines, write_lines


@pytest.mark.parametrize("lines", [[], ["b", "a"]])
def test_reads_what_was_written(tmp_path: Path, lines: list[str]) -> None:
    with beam.Pipeline() as pipeline:
        pipeline | beam.Create(lines) | write_lines(str(tmp_path / "lines"))
    assert read_lines(str(tmp_path / "lines")) == sorted(lines)


def test_nothing_written_is_not_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lines"):
        read_lines(str(tmp_path / "lines"))


def test_failures_are_raised_as_one_line() -> None:
    raise_failures([])
    with pytest.raises(RuntimeError, match=r"^a: ValueError: one two$"):
        raise_failures([failure("a", ValueError("one\n two"))])
