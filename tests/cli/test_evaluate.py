"""`umx-pro evaluate`: a model on a database, estimates in a folder, what is printed and written."""

import csv
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
from web import WebServer

from umx_model import cli
from umx_model.data.track_folder import database_fingerprint
from umx_model.inference.separator import Separator

RATE = 8000
TARGETS = ("vocals", "drums", "bass")
METRICS = ["SDR", "ISR", "SIR", "SAR"]
HEADING = "BSSEval v4 in dB: median over samples of the median over 1 s windows"


@pytest.fixture
def music(tmp_path, monkeypatch):
    """A working folder with a database, of which `estimates` has 0.9 of all stems."""
    monkeypatch.chdir(tmp_path)
    database = helpers.make_database(tmp_path / "music", {"test": 2}, TARGETS, 2.0, RATE)
    for number in range(2):
        (tmp_path / "estimates" / f"song{number:02d}").mkdir(parents=True)
        for target in TARGETS:
            stem, _ = sf.read(database / "test" / f"song{number:02d}" / f"{target}.wav")
            sf.write(tmp_path / "estimates" / f"song{number:02d}" / f"{target}.wav", 0.9 * stem, RATE, "FLOAT")
    return database


def rows(out):
    """The table as target to column to figure."""
    heading, names, *lines = out.splitlines()
    assert heading == f"{HEADING} (2 samples)"
    return {line.split()[0]: dict(zip(names.split()[1:], line.split()[1:], strict=True)) for line in lines}


def test_a_model(umx_pro, music, model):
    code, out, err = umx_pro(
        *("evaluate", "--model", model, "--data", "music/test/", "--baseline", model, "--pair", "vocals"),
        *("--json", "scores.json", "--csv", "scores.csv"),
    )
    assert (code, err) == (0, "")
    table = rows(out)
    assert list(table) == [*TARGETS, "accompaniment"]
    assert list(table["vocals"]) == [*METRICS, "mixture", "gain", "baseline", "change"]
    document = json.loads((music.parent / "scores.json").read_text())
    for target, figures in table.items():
        assert {name: float(value) for name, value in figures.items()} == pytest.approx(
            document["targets"][target], abs=0.006
        )
        assert figures["change"] == "+0.00"
    assert (document["title"], document["baseline"]["title"]) == (model, model)
    assert document["settings"] == {
        "model": model,
        "data": "music/test/",
        "niter": 0,
        "softmask": False,
        "pair": "vocals",
    }
    assert len(document["data_fingerprint"]) == 64
    with open("scores.csv", newline="") as file:
        assert [row["track"] for row in csv.DictReader(file)] == ["song00"] * 4 + ["song01"] * 4


def test_settings_of_the_separation(umx_pro, music, model):
    plain = umx_pro("evaluate", "--model", model, "--data", "music/test")
    code, out, err = umx_pro("evaluate", "--model", model, "--data", "music/test", "--niter", "1", "--json", "x.json")
    assert (code, err) == (0, "")
    assert out != plain[1]
    assert json.loads((music.parent / "x.json").read_text())["settings"]["niter"] == 1


def test_estimates_in_a_folder(umx_pro, music):
    code, out, err = umx_pro("evaluate", "--references", "music/test", "--estimates", "estimates", "--json", "scores")
    assert (code, err) == (0, "")
    assert {target: figures["SDR"] for target, figures in rows(out).items()} == dict.fromkeys(sorted(TARGETS), "20.00")
    document = json.loads((music.parent / "scores/test/song01.json").read_text())
    assert document["targets"][0]["frames"][1]["metrics"]["SDR"] == pytest.approx(20.0, abs=1e-3)
    assert sorted(os.listdir("scores/test")) == ["song00.json", "song01.json"]


def test_notes_and_a_baseline_folder(umx_pro, music):
    """What is passed over is said on stderr, once per folder."""
    os.rename("estimates", "worse")
    for number in range(2):
        helpers.make_sample(music.parent / "estimates" / f"song{number:02d}", TARGETS, 2.0, RATE, seed=number)
        sf.write(f"estimates/song{number:02d}/residual.wav", np.zeros((RATE, 2)), RATE)
        for target in TARGETS:
            stem, _ = sf.read(music / "test" / f"song{number:02d}" / f"{target}.wav")
            sf.write(f"estimates/song{number:02d}/{target}.wav", 0.99 * stem[:-800], RATE, "FLOAT")
    code, out, err = umx_pro(
        *("evaluate", "--references", "music/test", "--estimates", "estimates", "--baseline", "worse"),
        *("--targets", "vocals,bass", "--json", "x.json"),
    )
    assert code == 0
    assert err.splitlines() == [
        "umx-pro: note: estimates/song00/vocals.wav: 0.100 s shorter than its reference, padded with silence",
        "umx-pro: note: estimates/song00/bass.wav: 0.100 s shorter than its reference, padded with silence",
        "umx-pro: note: estimates/song01/vocals.wav: 0.100 s shorter than its reference, padded with silence",
        "umx-pro: note: estimates/song01/bass.wav: 0.100 s shorter than its reference, padded with silence",
        "umx-pro: note: music/test: drums not scored, part of the mixture only",
        "umx-pro: note: estimates: drums, residual passed over",
        "umx-pro: note: worse: drums passed over",
    ]
    table = rows(out)
    assert list(table) == ["vocals", "bass"]
    assert table["vocals"]["baseline"] == "20.00"
    document = json.loads((music.parent / "x.json").read_text())
    first = document["tracks"][0]["museval"]["targets"][0]["frames"][0]["metrics"]["SDR"]
    assert first == pytest.approx(40.0, abs=0.1)


def test_a_silent_stem(umx_pro, music):
    sf.write(music / "test/song01/bass.wav", np.zeros((2 * RATE, 2)), RATE)
    code, out, err = umx_pro("evaluate", "--references", "music/test", "--estimates", "estimates")
    assert code == 0
    assert err == (
        "umx-pro: note: song01: no score for bass, drums, vocals, as no window has sound in all references and "
        "estimates; left out of the medians\n"
    )
    assert rows(out)["vocals"]["SDR"] == "20.00"


def test_a_report(umx_pro, music, model):
    code, out, err = umx_pro("evaluate", "--model", model, "--data", "music/test", "--report", "report.html")
    assert (code, err) == (0, "")
    page = (music.parent / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    for figures in rows(out).values():
        assert f">{figures['SDR']}<" in page
    assert page.count("data:audio/") >= 3 * 3  # of each target an excerpt: mixture, reference, estimate


def test_a_database_at_a_web_server(umx_pro, music, model):
    files = [path.relative_to(music).as_posix() for path in music.rglob("*.wav")]
    (music / "files.txt").write_text("\n".join(files))
    here = umx_pro("evaluate", "--model", model, "--data", "music/test")
    with WebServer(music).running() as web:
        assert umx_pro("evaluate", "--model", model, "--data", f"{web.address}/test") == here
    assert here[0] == 0


@pytest.mark.parametrize("place", [".", "../test/", "../test"])
def test_a_split_wherever_one_stands(umx_pro, music, monkeypatch, place):
    """The fingerprint is that of the split, and museval finds its files."""
    digests = []
    arguments = ("--estimates", str(music.parent / "estimates"), "--references", place)
    monkeypatch.chdir(music / "test")
    for _ in range(2):
        code, _, err = umx_pro("evaluate", *arguments, "--json", "../../all.json")
        assert (code, err) == (0, "")
        digests.append(json.loads((music.parent / "all.json").read_text())["data_fingerprint"])
        with open("song00/vocals.wav", "ab") as file:
            file.write(b"\0\0")
    assert digests[0] != digests[1]
    helpers.make_sample(music / "train" / "another", TARGETS, 1.0, RATE)
    code, _, err = umx_pro("evaluate", *arguments, "--json", "../../all.json", "--csv", "../../all.csv")
    assert (code, err) == (0, "")
    assert umx_pro("evaluate", *arguments, "--json", "../../scores")[0] == 0
    assert sorted(os.listdir("../../scores/test")) == ["song00.json", "song01.json"]
    again = json.loads((music.parent / "all.json").read_text())["data_fingerprint"]
    assert database_fingerprint(music, ["test"]) == again != database_fingerprint(music)


def test_a_pair_that_cannot_be_is_refused_before_the_work(umx_pro, music, model, monkeypatch):
    monkeypatch.setattr(Separator, "separate", None)
    code, out, err = umx_pro("evaluate", "--model", model, "--data", "music/test", "--pair", "piano")
    assert (code, out) == (2, "")
    assert err == "umx-pro: error: pair piano: no such target; there are vocals, drums, bass\n"


MODEL = ("--model", "model", "--data", "music/test")
FOLDERS = ("--references", "music/test", "--estimates", "estimates")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate: give --model and --data, or --references and --estimates"),
        (MODEL[:2], "--model needs --data, too"),
        (FOLDERS[:2], "--references needs --estimates, too"),
        ((*MODEL, *FOLDERS), "--model and --references do not go together"),
        ((*MODEL, "--targets", "vocals"), "--model and --targets do not go together"),
        ((*FOLDERS, "--niter", "0"), "--niter and --references do not go together"),
        (["--niter", "1"], "--niter needs --model, too"),
        ((*FOLDERS, "--pair", "piano"), "pair piano: no such target; there are bass, drums, vocals"),
        ((*FOLDERS, "--baseline", "nowhere"), "nowhere: no such folder"),
        ((*FOLDERS, "--json", "no/scores.json"), "--json no/scores.json: there is no folder no; make it first"),
        ((*FOLDERS, "--csv", "no/scores.csv"), "--csv no/scores.csv: there is no folder no"),
        ((*FOLDERS, "--json", ""), "--json: expected a path, found nothing"),
        ((*FOLDERS, "--csv", "/proc/scores.csv"), "/proc/scores.csv: cannot be written ("),
        ((*FOLDERS, "--json", "/proc/scores/"), "/proc/scores/: cannot be written ("),
        ((*FOLDERS, "--report", "estimates"), "--report estimates: is a folder; name a file"),
        ((*FOLDERS, "--json", "file"), "--json file: is a file; name a folder, or a file ending in .json"),
    ],
)
def test_mistakes(umx_pro, music, arguments, message):
    (music.parent / "file").write_text("")
    code, out, err = umx_pro("evaluate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"umx-pro: error: {message}")
    assert len(err.splitlines()) == 1


def test_interrupt(music, model):
    """A real Ctrl-C in the middle of the work: one line and 130, soon, and nothing written."""
    for number in range(40):
        helpers.make_sample(music / "test" / f"long{number:02d}", TARGETS, 20.0, RATE, seed=number)
    code = (
        "import sys, umx_model.evaluation.evaluate as e; real = e.evaluate_stems\n"
        "def told(*arguments, **options):\n"
        "    print('scoring', flush=True); return real(*arguments, **options)\n"
        "e.evaluate_stems = told\n"
        "from umx_model.cli import main; main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.dirname(cli.__file__)))}
    arguments = ("--model", model, "--data", "music/test", "--json", "out.json", "--csv", "out.csv")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "evaluate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout.readline() == "scoring\n"
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert HEADING not in out
    assert err.splitlines()[-1] == "umx-pro: interrupted"
    assert "Traceback" not in err
    assert time.monotonic() - sent < 30
    assert sorted(os.listdir()) == ["estimates", "music"]


def test_a_bucket(music, gcs):
    """References, estimates and all that is written may be in a bucket."""
    gcs.upload(music, "bucket", "music")
    gcs.upload(music.parent / "estimates", "bucket", "estimates")
    program = "import sys; from umx_model.cli import main; main(sys.argv[1:])"
    done = gcs.run(
        program,
        *("evaluate", "--references", "gs://bucket/music/test", "--estimates", "gs://bucket/estimates"),
        *("--json", "gs://bucket/scores", "--csv", "gs://bucket/scores.csv"),
    )
    assert rows(done.stdout)["drums"]["SDR"] == "20.00"
    written = {name for name in gcs.list("bucket", "scores") if not name.endswith("/")}
    assert written == {"scores.csv", "scores/test/song00.json", "scores/test/song01.json"}
    assert len(gcs.download("bucket", "scores.csv").decode().splitlines()) == 1 + 2 * 3
