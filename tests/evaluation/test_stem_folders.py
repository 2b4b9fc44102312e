"""Folders of references and estimates: what is paired, passed over, cut, padded and refused."""

import helpers
import numpy as np
import pytest
import soundfile as sf

from umx_model.data import audio
from umx_model.errors import InputError
from umx_model.evaluation.evaluate import score_track
from umx_model.evaluation.stem_folders import evaluate_track, match_folders

RATE = 8000
STEMS = ("bass", "drums", "vocals")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """References of two tracks of three stems, and estimates that have 0.9 of them."""
    monkeypatch.chdir(tmp_path)
    for number, track in enumerate(("song", "tune")):
        helpers.make_sample(tmp_path / "true" / track, STEMS, 3.5, RATE, seed=number, subtype="FLOAT")
        (tmp_path / "estimated" / track).mkdir(parents=True)
        for stem in STEMS:
            write(f"estimated/{track}/{stem}.wav", 0.9 * read(f"true/{track}/{stem}.wav"))
    return tmp_path


def read(path):
    return sf.read(path, dtype="float32", always_2d=True)[0]


def write(path, waveform, rate=RATE):
    sf.write(path, waveform, rate, subtype="FLOAT" if path.endswith(".wav") else None)


def evaluated(targets=None):
    """Scores by track, and notes."""
    tracks, notes = match_folders("true", "estimated", targets)
    return {track.references.id: evaluate_track(track, excerpts=False)[0] for track in tracks}, notes


def test_tracks_of_two_folders(here):
    scores, notes = evaluated()
    assert (list(scores), notes) == (["song", "tune"], [])
    for track in scores.values():
        assert track.score() == pytest.approx(dict.fromkeys(STEMS, 20.0), abs=1e-3)
    vocals, rest = read("true/tune/vocals.wav"), read("true/tune/bass.wav") + read("true/tune/drums.wav")
    expected = np.median([10 * np.log10(np.sum(vocals[w] ** 2) / np.sum(rest[w] ** 2))
                          for w in (slice(second * RATE, (second + 1) * RATE) for second in range(3))])  # fmt: skip
    assert scores["tune"].mixture_score()["vocals"] == pytest.approx(expected, abs=1e-3)


def test_one_track_whose_stems_are_right_there(here):
    tracks, notes = match_folders("true/song", "estimated/song/")
    assert notes == []
    assert [track.references.id for track in tracks] == ["song"]
    assert evaluate_track(tracks[0], excerpts=False)[0].score()["bass"] == pytest.approx(20.0, abs=1e-3)


def test_stems_and_tracks_that_only_one_folder_has(here):
    for track in ("song", "tune"):
        (here / "estimated" / track / "bass.wav").unlink()
        write(f"estimated/{track}/residual.wav", np.zeros((RATE, 2)))
        write(f"estimated/{track}/mixture.wav", np.zeros((RATE, 2)))
    helpers.make_sample(here / "estimated" / "unknown", STEMS, 1.0, RATE)
    (here / "estimated" / "logs").mkdir()
    scores, notes = evaluated()
    assert notes == [
        "true: bass not scored, part of the mixture only",
        "estimated: residual passed over",
        "estimated: unknown passed over, not in true",
    ]
    assert scores["song"].targets == ("drums", "vocals")
    drums, rest = read("true/song/drums.wav"), read("true/song/bass.wav") + read("true/song/vocals.wav")
    expected = 10 * np.log10(np.sum(drums[:RATE] ** 2) / np.sum(rest[:RATE] ** 2))
    assert scores["song"].mixture[0, 0] == pytest.approx(expected, abs=1e-3)


def test_targets_that_are_asked_for(here):
    scores, notes = evaluated(["vocals", "bass"])
    assert scores["song"].targets == ("vocals", "bass")
    assert notes == ["true: drums not scored, part of the mixture only", "estimated: drums passed over"]


def test_other_lengths(here):
    """Longer estimates are cut, shorter ones end in silence, as in museval."""
    whole = read("true/song/vocals.wav")
    write("estimated/song/vocals.wav", np.pad(0.9 * whole, ((0, RATE // 2), (0, 0)), constant_values=0.4))
    write("estimated/song/drums.wav", read("estimated/song/drums.wav")[: int(1.25 * RATE)])
    scores, notes = evaluated()
    assert notes == [
        "estimated/song/drums.wav: 2.250 s shorter than its reference, padded with silence",
        "estimated/song/vocals.wav: 0.500 s longer than its reference, cut",
    ]
    vocals, drums = (scores["song"].windows["SDR"][:, index] for index in (2, 1))
    np.testing.assert_allclose(vocals[:2], 20.0, atol=1e-3)
    reference = read("true/song/drums.wav")[RATE : 2 * RATE].astype(np.float64)
    kept = reference[: RATE // 4]
    lost = np.sum(reference**2) - np.sum(kept**2) + np.sum((0.1 * kept) ** 2)
    assert drums[1] == pytest.approx(10 * np.log10(np.sum(reference**2) / lost), abs=1e-3)
    assert np.isnan(drums[2])  # nothing but silence
    assert np.isnan(vocals[2])


def test_silent_references(here):
    """A track with a silent stem has no score, nor does that change the others'."""
    write("true/song/bass.wav", np.zeros_like(read("true/song/bass.wav")))
    scores, notes = evaluated()
    assert notes == []
    assert np.isnan(list(scores["song"].score().values())).all()
    assert scores["tune"].score()["bass"] == pytest.approx(20.0, abs=1e-3)
    scores, _ = evaluated(["drums", "vocals"])
    assert scores["song"].score()["drums"] == pytest.approx(20.0, abs=1e-3)


def test_other_formats(here):
    stem = read("estimated/song/vocals.wav")
    (here / "estimated/song/vocals.wav").unlink()
    helpers.write_m4a(here / "estimated/song/vocals.m4a", stem, RATE)
    scores, _ = evaluated()
    references = np.stack([read(f"true/song/{name}.wav") for name in STEMS], axis=-1)
    estimates = 0.9 * references
    estimates[..., 2] = audio.read("estimated/song/vocals.m4a")[: len(references)]
    expected = score_track("song", references, estimates, STEMS, RATE)
    np.testing.assert_allclose(scores["song"].windows["SDR"], expected.windows["SDR"], atol=1e-4)


def lacks_a_track(here):
    for stem in STEMS:
        (here / "estimated/song" / f"{stem}.wav").unlink()


def lacks_an_estimate(here):
    (here / "estimated/song/vocals.wav").unlink()


def lacks_a_reference(here):
    (here / "true/song/vocals.wav").unlink()


def twice(here):
    write("estimated/song/vocals.flac", read("estimated/song/vocals.wav"))


def other_rate(here):
    write("estimated/song/vocals.wav", read("estimated/song/vocals.wav"), 11025)


def other_channels(here):
    write("estimated/song/vocals.wav", read("estimated/song/vocals.wav")[:, :1])


def references_differ(here):
    write("true/song/vocals.wav", read("true/song/vocals.wav")[:-1])


def broken(here):
    (here / "estimated/song/vocals.wav").write_bytes(b"RIFF, but not really" * 20)


def one_and_many(here):
    for stem in STEMS:
        (here / "estimated" / f"{stem}.wav").symlink_to(here / "estimated" / "song" / f"{stem}.wav")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lacks_a_track, "estimated: no folder 'song'; every track of true needs one"),
        (lacks_an_estimate, "estimated/song: no estimate of 'vocals', which other tracks have"),
        (lacks_a_reference, "true/song: no reference of 'vocals', which other tracks have"),
        (twice, r"estimated/song: 2 files for the target 'vocals' \(vocals.flac, vocals.wav\); keep one"),
        (other_rate, "vocals.wav: 11025 Hz and 2 channels, but the reference has 8000 Hz and 2; make"),
        (other_channels, "vocals.wav: 8000 Hz and 1 channels, but the reference has 8000 Hz and 2; make"),
        (references_differ, "true/song: the targets differ in length"),
        (broken, "estimated/song/vocals.wav: not an audio file"),
        (one_and_many, r"estimated: holds stems \(bass, drums, vocals\) and folders of stems \(song, tune\); name"),
    ],
)
def test_refuses(here, spoil, message):
    spoil(here)
    with pytest.raises(InputError, match=message) as refused:
        match_folders("true", "estimated")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("references", "estimates", "targets", "message"),
    [
        ("nowhere", "estimated", None, "nowhere: no such folder; expected stems"),
        ("true", "nowhere", None, "nowhere: no such folder; expected stems"),
        ("empty", "estimated", None, "empty: no stems in it, nor in its folders; expected empty/<track>/<target>.wav"),
        (
            "true/song",
            "estimated",
            None,
            "true/song holds stems, but estimated folders of stems; name the folder of one",
        ),
        (
            "true",
            "estimated/song",
            None,
            "estimated/song holds stems, but true folders of stems; name the folder of one",
        ),
        ("true", "other", None, "other: no folder named like one of true, such as 'song'"),
        ("true/song", "rest", None, "rest: no estimate of any stem in true/song, which holds bass, drums, vocals"),
        ("true", "estimated", ["piano"], "estimated/song: no estimate of 'piano', which"),
        ("true", "estimated", [], "no estimate of any stem"),
    ],
)
def test_refuses_folders(here, references, estimates, targets, message):
    (here / "empty" / "folder").mkdir(parents=True)
    helpers.make_sample(here / "other" / "music", ("vocals",), 1.0, RATE)
    helpers.make_sample(here / "rest", ("residual",), 1.0, RATE)
    with pytest.raises(InputError, match=message):
        match_folders(references, estimates, targets)


def test_a_database_is_not_a_split(tmp_path):
    helpers.make_database(tmp_path / "music", {"test": 1}, seconds=1.0, sample_rate=RATE)
    with pytest.raises(InputError, match="music: no stems in it.*name one split, .*music/test$"):
        match_folders(str(tmp_path / "music"), str(tmp_path / "music"))


def test_non_finite_estimates(here):
    spoiled = read("estimated/song/vocals.wav")
    spoiled[100] = np.inf
    write("estimated/song/vocals.wav", spoiled)
    tracks, _ = match_folders("true", "estimated")
    with pytest.raises(InputError, match="estimated/song/vocals.wav: holds NaN or infinite values"):
        evaluate_track(tracks[0])
