"""`umx-pro check-data`: its report, its JSON, its exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import helpers
import numpy as np
import pytest
import soundfile as sf

from umx_model import cli

RATE = 8000


@pytest.fixture
def music(tmp_path, monkeypatch):
    """A working folder with a database without fault."""
    monkeypatch.chdir(tmp_path)
    return helpers.make_database(tmp_path / "music", {"train": 2, "valid": 1}, seconds=6.0, sample_rate=RATE)


def test_a_good_database(umx_pro, music):
    code, out, err = umx_pro("check-data", "music")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines[:5]] == [
        ["split", "target", "samples"],
        ["train", "drums", "2"],
        ["train", "vocals", "2"],
        ["valid", "drums", "1"],
        ["valid", "vocals", "1"],
    ]
    assert lines[-1] == "no problems, nothing to warn of"
    assert max(map(len, lines)) <= 100


def test_warnings_do_not_fail_unless_they_shall(umx_pro, music):
    shutil.copytree("music/train/song00", "music/valid/again")
    code, out, err = umx_pro("check-data", "music", "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "warnings (1):",
        "  train/song00 and valid/again: the same audio (drums, vocals): what is trained on must not be in valid",
        "no problems",
    ]
    assert umx_pro("check-data", "music", "--quiet", "--strict")[0] == 2


def test_problems_fail(umx_pro, music):
    helpers.make_sample("music/train/song02", seconds=6.0, sample_rate=RATE, seed=70)
    shutil.rmtree("music/valid")
    os.remove("music/train/song01/drums.wav")
    code, out, err = umx_pro("check-data", "music")
    assert (code, err) == (2, "")
    assert out.splitlines()[-3:] == [
        "problems (2):",
        "  music: no folder 'valid'; expected one holding sample folders",
        "  music/train/song01: lacks the target 'drums' (found vocals); add drums.wav",
    ]
    code, out, _ = umx_pro("check-data", "music", "--targets", "vocals")
    assert code == 2
    assert "unknown target 'drums'" in out


def test_json(umx_pro, music):
    (music / "train" / "song01" / "drums.wav").write_bytes(b"")
    code, out, err = umx_pro("check-data", "music", "--json", "-")
    assert (code, err) == (2, "")
    document = json.loads(out)
    assert document["targets"] == ["drums", "vocals"]
    assert [line.split(":")[1] for line in document["problems"]] == [" zero-length file; replace it"]
    assert [(sample["split"], sample["id"]) for sample in document["samples"]] == [
        ("train", "song00"),
        ("train", "song01"),
        ("valid", "song00"),
    ]
    peak = np.abs(sf.read("music/valid/song00/vocals.wav")[0]).max()
    assert document["samples"][2]["statistics"]["vocals"]["peak"] == pytest.approx(peak, abs=1e-6)
    _, table, _ = umx_pro("check-data", "music", "--json", "report.json")
    assert table.startswith("split")
    with open("report.json") as file:
        assert json.load(file) == document


def test_drift(umx_pro, music):
    umx_pro("check-data", "music", "--json", "old.json")
    waveform, rate = sf.read("music/train/song01/vocals.wav")
    sf.write("music/train/song01/vocals.wav", waveform / 2, rate)
    shutil.rmtree("music/train/song00")
    helpers.make_sample("music/train/new", seconds=6.0, sample_rate=RATE, seed=70, extension="flac")
    for older in ("old.json", "older"):
        code, out, err = umx_pro("check-data", "music", "--compare", older, "--json", "new.json")
        assert (code, err) == (0, "")
        assert "added (1):\n  train/new\nremoved (1):\n  train/song00\nchanged (1):\n  train/song01\n" in out
        assert "format FLAC/PCM_16: 33% of the files, were 0%" in out
        assert re.search(r"^vocals loudness .* dB .* few$", out, re.MULTILINE)
        with open("new.json") as file:
            assert json.load(file)["drift"]["changed"] == ["train/song01"]
        assert umx_pro("check-data", "music", "--compare", older, "--quiet", "--strict")[0] == 2
        if older == "old.json":
            helpers.make_database("older", {"train": 2, "valid": 1}, seconds=6.0, sample_rate=RATE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; expected a database"),
        (["music/train/song00"], "music/train/song00: no folder 'train'"),
        (["empty"], "empty: empty folder; expected a database"),
        (["music", "--compare", "nowhere"], "--compare nowhere: no such database, nor a report of one"),
        (["music", "--compare", "text"], "--compare text: not a report of"),
        (["music", "--json", "no/x.json"], "--json no/x.json: there is no folder no; make it first"),
    ],
)
def test_mistakes(umx_pro, music, arguments, message):
    os.mkdir("empty")
    with open("text", "w") as file:
        file.write("{}")
    code, out, err = umx_pro("check-data", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"umx-pro: error: {message}")


def test_interrupt(tmp_path):
    """A real Ctrl-C in the middle of the work: one line and 130, soon."""
    for split in ("train", "valid"):
        folder = tmp_path / "music" / split / "long"
        folder.mkdir(parents=True)
        for target in ("vocals", "drums"):
            sf.write(folder / f"{target}.wav", np.zeros(3600 * RATE, np.int16), RATE)
    code = "import sys, umx_model.data.report; print('ready', flush=True); from umx_model.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(cli.__file__)))}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "check-data", str(tmp_path / "music")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "umx-pro: interrupted"
    assert "Traceback" not in err
    assert time.monotonic() - sent < 30


def test_a_bucket(umx_pro, music, gcs):
    """The same is found in a bucket as in a folder."""
    (music / "train" / "song01" / "drums.wav").write_bytes(b"RIFF, but not really" * 20)
    gcs.upload(music, "bucket", "music")
    program = "import sys; from umx_model.cli import main; main(sys.argv[1:])"
    done = gcs.run(program, "check-data", "gs://bucket/music", "--json", "-", check=False)
    code, out, _ = umx_pro("check-data", "music", "--json", "-")
    assert (done.returncode, code) == (2, 2)
    assert done.stdout.replace("gs://bucket/music", "music") == out
