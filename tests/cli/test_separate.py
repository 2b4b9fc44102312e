"""`umx-pro separate`: what it prints, writes and returns."""

import json
import os
import re
import shutil

import helpers
import numpy as np
import pytest
import soundfile as sf

from umx_model.errors import InputError
from umx_model.inference import restore
from umx_model.inference.separator import Separator

RATE = 8000
SPEED = r" \(\d+\.\d s in \d+\.\d s, \d+\.\dx real time\)"
STEMS = ["bass.wav", "drums.wav", "vocals.wav"]


def tree(folder):
    """All files in a folder."""
    return sorted(
        os.path.relpath(os.path.join(path, name), folder) for path, _, files in os.walk(folder) for name in files
    )


def read(path):
    return sf.read(path, dtype="float32", always_2d=True)[0]


def test_files(umx_pro, model, songs):
    code, out, err = umx_pro("separate", "one.wav", "two.flac", "--model", model, "-o", "out")
    assert (code, err) == (0, "")
    one, two = out.splitlines()
    assert re.fullmatch("one.wav -> out/one: vocals.wav, drums.wav, bass.wav" + SPEED, one)
    assert re.fullmatch("two.flac -> out/two: vocals.wav, drums.wav, bass.wav" + SPEED, two)
    assert tree("out") == [f"{track}/{stem}" for track in ("one", "two") for stem in STEMS]
    info = sf.info("out/two/drums.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (11025, 1, 5512, "PCM_16")
    assert sf.info("out/one/vocals.wav").frames == RATE


def test_no_model_named(umx_pro, songs, monkeypatch):
    """The one that comes with the program; not what has its name here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(songs / "cache"))
    monkeypatch.delenv("UMX_PRO_MODELS", raising=False)
    os.mkdir("vocals-accompaniment")
    code, _, err = umx_pro("separate", "one.wav")
    assert code == 0
    assert tree("separated") == ["one/accompaniment.wav", "one/vocals.wav"]
    licence = "licence of the model vocals-accompaniment: CC BY-NC-SA 4.0, not for commercial use"
    assert re.fullmatch(f"umx-pro: {licence}; see .*card.md \\(shown once\\)\n", err)


def test_every_format_of_the_inputs(umx_pro, model, songs):
    waveform = helpers.stem("vocals", 0.5, 48000)
    os.mkdir("music")
    for extension, subtype in {"wav": None, "flac": None, "ogg": "VORBIS", "opus": "OPUS", "mp3": None}.items():
        container = "OGG" if extension == "opus" else extension.upper()
        sf.write(f"music/{extension}.{extension}", waveform, 48000, subtype, format=container)
    for extension in ("m4a", "mp4"):
        helpers.write_m4a(songs / "music" / f"{extension}.{extension}", waveform, 48000)
    code, _, err = umx_pro("separate", "music", "music/mp4.mp4", "--model", model, "--targets", "vocals")
    assert (code, err) == (0, "")
    stems = tree("separated")
    assert stems == [f"{name}/vocals.wav" for name in ("flac", "m4a", "mp3", "mp4", "ogg", "opus", "wav")]
    for stem in stems:
        info = sf.info(f"separated/{stem}")
        assert (info.samplerate, info.channels) == (48000, 2)
        assert info.frames == pytest.approx(len(waveform), abs=4096)  # lossy formats pad


@pytest.mark.parametrize(
    ("options", "subtype"),
    [
        (["--format", "wav", "--bit-depth", "16"], "PCM_16"),
        (["--format", "wav", "--bit-depth", "24"], "PCM_24"),
        (["--format", "wav", "--bit-depth", "32f"], "FLOAT"),
        (["--format", "flac"], "PCM_16"),
        (["--format", "flac", "--bit-depth", "24"], "PCM_24"),
        (["--format", "ogg"], "VORBIS"),
        (["--format", "mp3"], "MPEG_LAYER_III"),
    ],
)
def test_every_format_of_the_stems(umx_pro, model, songs, options, subtype):
    code, out, _ = umx_pro("separate", "one.wav", "--model", model, "--targets", "drums", *options)
    name = f"drums.{options[1]}"
    assert code == 0
    assert re.fullmatch(f"one.wav -> separated/one: {name}{SPEED}\n", out)
    assert tree("separated") == [f"one/{name}"]
    assert sf.info(f"separated/one/{name}").subtype == subtype


def test_folders_keep_their_sub_folders(umx_pro, model, songs):
    os.makedirs("music/album")
    os.rename("one.wav", "music/one.wav")
    os.rename("two.flac", "music/album/two.flac")
    code, out, err = umx_pro("separate", "music", "--model", model, "--targets", "vocals", "-o", "out")
    assert (code, err) == (0, "")
    assert tree("out") == ["album/two/vocals.wav", "one/vocals.wav"]
    assert re.match("music/one.wav -> out/one: vocals.wav", out)
    # A file template, and the folders, in one.
    options = ["--targets", "vocals,bass", "--name", "{target}/{track}.{ext}", "--format", "flac"]
    code, out, err = umx_pro("separate", "music", "--model", model, "-o", "more", *options)
    assert (code, err) == (0, "")
    assert tree("more") == ["album/bass/two.flac", "album/vocals/two.flac", "bass/one.flac", "vocals/one.flac"]
    assert re.match("music/one.wav -> more/vocals/one.flac, more/bass/one.flac ", out)


@pytest.mark.parametrize(
    ("options", "stems"),
    [
        ([], {"vocals", "drums", "bass"}),
        (["--two-stems", "vocals"], None),
        (["--targets", "vocals", "--residual"], None),
    ],
)
def test_stems_sum_to_the_mixture(umx_pro, model, songs, options, stems):
    sf.write("loud.wav", helpers.stem("vocals", 1.0, 11025), 11025, "FLOAT")
    assert umx_pro("separate", "loud.wav", "--model", model, "--bit-depth", "32f", *options)[0] == 0
    written = tree("separated/loud")
    if stems:
        assert {name.removesuffix(".wav") for name in written} == stems
    else:
        assert len(written) == 2
        assert "vocals.wav" in written
    total = sum(read(f"separated/loud/{name}") for name in written)
    mixture = read("loud.wav")
    residual = np.sqrt(np.mean((total - mixture) ** 2) / np.mean(mixture**2))
    assert 20 * np.log10(residual + 1e-12) < -100


def test_aggregate(umx_pro, model, songs):
    arguments = ["separate", "one.wav", "--model", model, "--bit-depth", "32f"]
    assert umx_pro(*arguments, "-o", "all")[0] == 0
    assert umx_pro(*arguments, "-o", "sums", "--aggregate", "accompaniment=bass+drums")[0] == 0
    expected = read("all/one/bass.wav") + read("all/one/drums.wav")
    np.testing.assert_allclose(read("sums/one/accompaniment.wav"), expected, atol=1e-6)


def test_options_that_reach_the_model(umx_pro, model, songs, monkeypatch):
    def load_separator(path, **options):
        raise InputError(f"{path} {sorted(options.items())}")

    monkeypatch.setattr(restore, "load_separator", load_separator)
    options = ["--niter", "3", "--softmask", "--chunk-seconds", "12.5", "--device", "cpu"]
    _, _, err = umx_pro("separate", "one.wav", "--model", model, *options)
    assert err == f"umx-pro: error: {model} [('chunk_seconds', 12.5), ('niter', 3), ('softmask', True)]\n"
    _, _, err = umx_pro("separate", "one.wav", "--model", model, "--no-softmask")
    default = restore.CHUNK_SECONDS
    assert err == f"umx-pro: error: {model} [('chunk_seconds', {default}), ('niter', None), ('softmask', False)]\n"


def test_clipping(umx_pro, model, songs):
    loud = np.sign(helpers.stem("vocals", 1.0, RATE)) * 4
    sf.write("loud.wav", loud, RATE, "FLOAT")
    arguments = ["separate", "loud.wav", "--model", model]
    code, out, _ = umx_pro(*arguments, "-o", "out")
    assert code == 0
    gain = float(re.search(r"all scaled by (-\d+\.\d) dB, or some would clip", out)[1])
    assert umx_pro(*arguments, "-o", "float", "--bit-depth", "32f")[0] == 0
    for stem in STEMS:
        whole = read(f"float/loud/{stem}")
        np.testing.assert_allclose(read(f"out/loud/{stem}"), whole * 10 ** (gain / 20), atol=0.01 * np.abs(whole).max())
    peak = max(np.abs(read(f"out/loud/{stem}")).max() for stem in STEMS)
    assert 0.9 < peak <= 1
    code, out, err = umx_pro(*arguments, "-o", "refused", "--clipping", "refuse")
    assert (code, out) == (2, "")
    assert err.startswith("umx-pro: error: loud.wav: ")
    assert len(err.splitlines()) == 1
    assert not os.path.exists("refused")


def test_json(umx_pro, model, songs):
    code, out, err = umx_pro("separate", "one.wav", "broken.wav", "--model", model, "--targets", "vocals", "--json")
    assert code == 2
    done, failed = (json.loads(line) for line in out.splitlines())
    assert done["path"] == "one.wav"
    assert done["stems"] == {"vocals": "separated/one/vocals.wav"}
    assert done["gain"] == 1
    assert done["audio_seconds"] == 1
    assert done["real_time_factor"] == pytest.approx(1 / done["seconds"])
    assert (failed["path"], failed["exit_code"]) == ("broken.wav", 2)
    assert err == f"umx-pro: error: {failed['error']}\n"


def test_quiet(umx_pro, model, songs):
    code, out, err = umx_pro("separate", "one.wav", "broken.wav", "--model", model, "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("umx-pro: error: broken.wav: ")
    assert len(err.splitlines()) == 1


def test_files_that_fail_do_not_stop_others(umx_pro, model, songs):
    os.mkdir("empty")
    arguments = ["broken.wav", "empty", "nowhere.wav", "one.wav", "--model", model, "-o", "out"]
    code, out, err = umx_pro("separate", *arguments)
    assert code == 2
    assert re.fullmatch("one.wav -> out/one: vocals.wav, drums.wav, bass.wav" + SPEED + "\n", out)
    first, second, third = err.splitlines()
    assert first.startswith("umx-pro: error: broken.wav: ")
    assert second.startswith("umx-pro: error: empty: no audio file in it")
    assert third == "umx-pro: error: nowhere.wav: no such file"
    assert os.listdir("out") == ["one"]


def test_failures_that_are_not_the_inputs(umx_pro, model, songs, monkeypatch):
    real = Separator.separate_file

    def fail_once(self, path, *arguments, **options):
        if path == "two.flac":
            raise RuntimeError("out of luck")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(Separator, "separate_file", fail_once)
    code, out, err = umx_pro("separate", "broken.wav", "two.flac", "one.wav", "--model", model)
    assert code == 1
    assert out.startswith("one.wav -> ")
    assert err.splitlines()[1] == "umx-pro: failed: RuntimeError: out of luck (UMX_PRO_DEBUG=1 shows where)"


def test_existing_stems(umx_pro, model, songs):
    arguments = ["separate", "one.wav", "--model", model, "-o", "out"]
    assert umx_pro(*arguments)[0] == 0
    before = read("out/one/vocals.wav")
    code, _, err = umx_pro(*arguments, "--niter", "1")
    assert code == 2
    assert "out/one/vocals.wav: exists already; overwrite it with --overwrite" in err
    np.testing.assert_array_equal(read("out/one/vocals.wav"), before)
    assert umx_pro(*arguments, "--niter", "1", "--overwrite")[0] == 0
    assert not np.array_equal(read("out/one/vocals.wav"), before)


def test_conflicts_are_found_before_work(umx_pro, model, songs):
    sf.write("one.flac", helpers.stem("vocals", 1.0, RATE), RATE)
    code, out, err = umx_pro("separate", "two.flac", "one.wav", "one.flac", "--model", model, "-o", "out")
    assert (code, out) == (2, "")
    assert err == (
        "umx-pro: error: one.wav and one.flac would both be written to out/one/vocals.wav; rename one, or separate "
        "them into different output folders\n"
    )
    assert not os.path.exists("out")


def test_a_model_by_name(umx_pro, model, songs, monkeypatch):
    code, _, err = umx_pro("separate", "one.wav", "--model", "tiny")
    assert code == 2
    assert err.startswith("umx-pro: error: tiny: no such model; expected a model folder")
    monkeypatch.setenv("UMX_PRO_MODELS", os.path.dirname(model))
    assert umx_pro("separate", "one.wav", "--model", "tiny")[0] == 0
    assert tree("separated") == [f"one/{stem}" for stem in STEMS]


def test_the_default_model(umx_pro, model, songs, tmp_path, monkeypatch):
    monkeypatch.setenv("UMX_PRO_MODELS", "models")
    shutil.copytree(model, "models/vocals-accompaniment")
    assert umx_pro("separate", "one.wav", "--quiet") == (0, "", "")
    assert tree("separated") == [f"one/{stem}" for stem in STEMS]
