"""What a run says when it ends, and where it may write."""

import ast
import os
import shlex
import sys
from pathlib import Path

import pytest

from pipeline import local

_BEAMS_WORDS = (
    "Traceback (most recent call last):\n  File \"x.py\", line 1\nRuntimeError: out of luck [while running 'A']\n"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(_BEAMS_WORDS), "RuntimeError: out of luck [while running 'A']"),
        (ValueError("one\ntwo"), "ValueError: one"),
        (KeyError(), "KeyError"),
    ],
)
def test_first_line(error: Exception, expected: str) -> None:
    assert local._first_line(error) == expected


def test_usage_can_be_pasted_into_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "an env" / "bin" / "python3.10"))
    folder = '/it\'s "here"/1'
    _, separate, code = (shlex.split(line) for line in local.usage(folder).splitlines())
    assert separate == [str(tmp_path / "an env" / "bin" / "umx-pro"), "separate", "--model", folder, "SONG"]
    assert code[:2] == [str(tmp_path / "an env" / "bin" / "python"), "-c"]
    constants = [node.value for node in ast.walk(ast.parse(code[2])) if isinstance(node, ast.Constant)]
    assert sorted(constants) == sorted([folder, "SONG"])

    monkeypatch.chdir(tmp_path)
    assert "  'an env/bin/umx-pro' separate" in local.usage(folder)
    monkeypatch.chdir(tmp_path / "..")
    assert f"  '{tmp_path.name}/an env/bin/umx-pro' separate" in local.usage(folder)


def test_silence_is_no_table() -> None:
    figures = {"mixture": None, "estimates": None, "gain": None}
    scores = {"split": "valid", "targets": {"vocals": figures}, "samples": [{}], "objections": ["too quiet"]}
    text = local.describe(local.LocalRunResult(None, scores, "/model", "/log", ()))
    assert "nan" not in text
    assert "\n  too quiet\n" in text


def test_looking_whether_a_folder_can_be_written_makes_none(tmp_path: Path) -> None:
    local._require_writable("output", os.fspath(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []
