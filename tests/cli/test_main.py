"""The command `umx-pro` as a whole: help, exit codes, and that its parts fit together."""

import json
import os
import signal
import subprocess
import sys
import time

import helpers
import numpy as np
import pytest
import soundfile as sf

from umx_model import cli
from umx_model.inference.separator import Separator
from umx_model.profile import Profile

RATE = 8000


def test_help_answers_at_once(umx_pro):
    code, out, _ = umx_pro("--help")
    assert code == 0
    for command in ("separate", "train", "evaluate", "models"):
        assert command in out
        assert umx_pro(command, "--help")[0] == 0


def test_interrupt(model, songs):
    """A real Ctrl-C in the middle of the work: one line, 130, and no trace."""
    sf.write("long.wav", np.zeros((600 * RATE, 2), np.int16), RATE)
    code = "import sys; from umx_model.cli import main; main(sys.argv[1:])"
    arguments = ["separate", "one.wav", "long.wav", "--model", model, "-o", "out", "--niter", "3"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(cli.__file__)))}
    del environment["TF_CPP_MIN_LOG_LEVEL"]  # set for tests; users start without
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 120
        while not (os.path.isdir("out/long") and partial_folders()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert partial_folders()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err.strip()) == (130, "umx-pro: interrupted")
    assert out.startswith("one.wav -> out/one: ")
    assert os.listdir("out") == ["one"]
    assert sorted(os.listdir("out/one")) == ["bass.wav", "drums.wav", "vocals.wav"]


def partial_folders():
    return [name for name in os.listdir("out") if name.endswith(".partial")]


def test_other_failures_are_one_line(umx_pro, model, songs, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Separator, "separate_file", fail)
    code, _, err = umx_pro("separate", "one.wav", "--model", model)
    assert code == 1
    assert err == "umx-pro: failed: OSError: [Errno 5] Input/output error (UMX_PRO_DEBUG=1 shows where)\n"
    monkeypatch.setenv("UMX_PRO_DEBUG", "1")
    code, _, err = umx_pro("separate", "one.wav", "--model", model)
    assert code == 1
    assert "Traceback" in err


def test_train_separate_evaluate(umx_pro, songs, settings):
    """The commands fit together, with targets found in the database."""
    database = helpers.make_database(songs / "database", {"train": 2, "valid": 2}, seconds=2.0, sample_rate=RATE)
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    code, out, err = umx_pro("train", "--data", database, "--output", "model", *changes)
    assert (code, err) == (0, "")
    assert out.endswith("model: model\nuse:   umx-pro separate --model model FILES...\n")
    assert Profile.read("model").model.targets == ("drums", "vocals")
    assert len(Profile.read("model").history) == 1

    code, out, err = umx_pro("train", "--data", database, "--output", "model", "--resume", "--set", "train.epochs=2")
    assert (code, err) == (0, "")
    assert len(Profile.read("model").history) == 2

    assert umx_pro("separate", "one.wav", "--model", "model/saved_model", "-o", "out")[0] == 0

    code, out, err = umx_pro("evaluate", "--model", "model", "--data", database / "valid", "--json", "scores.json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "BSSEval v4 in dB: median over samples of the median over 1 s windows (2 samples)"
    assert lines[1].split() == ["target", "SDR", "ISR", "SIR", "SAR", "mixture", "gain"]
    scores = json.loads((songs / "scores.json").read_text())
    for line, target in zip(lines[2:], ("drums", "vocals"), strict=True):
        name, *figures = line.split()
        assert name == target
        assert [float(figure) for figure in figures] == pytest.approx(
            list(scores["targets"][target].values()), abs=0.006
        )
        assert float(figures[-1]) == pytest.approx(float(figures[0]) - float(figures[-2]), abs=0.011)
    assert [track["name"] for track in scores["tracks"]] == ["song00", "song01"]
