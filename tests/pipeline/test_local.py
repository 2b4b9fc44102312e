"""What a run says when it ends, and where it may write."""

import ast
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import local
from umx_model.evaluation.scores import TrackScores

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
    none = np.full((1, 1), np.nan)
    silent = TrackScores("song", ("vocals",), {"SDR": none}, none, none[0], none[0])
    scores = {"split": "valid", "tracks": [silent.to_json()], "baseline": None, "blessed": False}
    scores["objections"] = ["too quiet"]
    text = local.describe(
        local.LocalRunResult(None, "the model was not blessed", scores, "/r.html", "/model", "/log", ())
    )
    assert "nan" not in text
    assert "SDR" not in text
    assert "\n  too quiet\n" in text


def test_a_withdrawn_model_is_said_to_be() -> None:
    some = np.full((1, 1), 3.0)
    track = TrackScores("song", ("vocals",), {"SDR": some}, some - 1, some[0], some[0])
    scores = {"split": "valid", "tracks": [track.to_json()], "baseline": None, "blessed": True, "objections": []}
    reason = "version 2 with this model was withdrawn"
    text = local.describe(local.LocalRunResult(None, reason, scores, "/r.html", "/model", "/log", ()))
    assert f"\nNot pushed: {reason}\nThe model is kept in /model\n" in text
    assert "good enough" not in text
    assert "1 valid samples" in text
    assert "/r.html" in text


def test_looking_whether_a_folder_can_be_written_makes_none(tmp_path: Path) -> None:
    local._require_writable("output", os.fspath(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


WITHDRAWN = {"weights_sha256": "c", "withdrawn": [{"weights_sha256": "b", "version": "2", "time": "then"}]}


@pytest.mark.parametrize(
    ("said", "current", "lineage", "holds"),
    [
        ({"pushed": 1, "pushed_destination": "/s/2", "weights_sha256": "b"}, "/s/2", {"weights_sha256": "b"}, True),
        ({"pushed": 1, "pushed_destination": "/s/2", "weights_sha256": "b"}, "/s/3", WITHDRAWN, False),  # a rollback
        ({"pushed": 1, "pushed_destination": "/s/2", "weights_sha256": "b"}, None, {}, False),  # removed by hand
        ({"withdrawn": 1, "weights_sha256": "b"}, "/s/3", WITHDRAWN, True),
        ({"withdrawn": 1, "weights_sha256": "b"}, "/s/4", {"weights_sha256": "b"}, False),  # rolled back to
        ({"weights_sha256": "d"}, "/s/3", WITHDRAWN, True),  # not blessed
        ({"weights_sha256": "d", "overtaken": 1}, "/s/3", WITHDRAWN, False),  # to be asked again
        ({}, None, {}, True),
    ],
)
def test_what_was_pushed_or_not_holds(
    said: dict[str, Any], current: str | None, lineage: dict[str, Any], holds: bool
) -> None:
    assert local._push_holds(said, current, lineage) is holds


@pytest.mark.parametrize(
    ("model", "baseline", "served", "holds"),
    [
        ("a", "", "a", True),  # what it judged was pushed
        ("b", "a", "a", True),  # what it was held against is still served
        ("b", "a", "c", False),
        ("b", "", "a", False),  # first it was held against the mixture, and now something is served
        ("a", "", "", True),
        ("b", "a", "", False),  # nothing is served any more
        (None, None, "a", True),  # of before judgements said what of
    ],
)
def test_a_judgement_holds_while_what_it_compared_is_served(
    model: str | None, baseline: str | None, served: str, holds: bool
) -> None:
    said = {"model_weights_sha256": model, "baseline_weights_sha256": baseline}
    assert local._blessing_holds({name: value for name, value in said.items() if value}, served) is holds
