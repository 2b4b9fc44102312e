"""Which files a command line means."""

import os

import pytest

from umx_model.cli.sources import Source, check_outputs, find_sources
from umx_model.errors import InputError


@pytest.fixture
def touch(tmp_path, monkeypatch):
    """Make empty files in the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            if os.path.dirname(name):
                os.makedirs(os.path.dirname(name), exist_ok=True)
            open(name, "wb").close()

    return make


def test_folders_are_searched_and_keep_their_sub_folders(touch):
    touch("music/b.wav", "music/album/a.FLAC", "music/album/disc 1/c.m4a", "music/notes.txt", "music/clip.mp4")
    assert find_sources(["music"], "out") == [
        Source("music/b.wav"),
        Source("music/album/a.FLAC", "album"),
        Source("music/album/disc 1/c.m4a", "album/disc 1"),
    ]


def test_named_files_are_taken_whatever_they_are_called(touch):
    touch("clip.mp4", "a.wav")
    assert find_sources(["clip.mp4", "nowhere.wav", "./a.wav"], "out") == [
        Source("clip.mp4"),
        Source("nowhere.wav"),
        Source("./a.wav"),
    ]


def test_nothing_is_taken_twice(touch):
    touch("music/a.wav", "music/album/b.wav")
    os.symlink("../music", "music/loop")
    os.symlink("a.wav", "music/z.wav")
    sources = find_sources(["music/album/b.wav", "music", "./music/a.wav", "music/"], "out")
    assert sources == [Source("music/album/b.wav"), Source("music/a.wav")]


def test_links_to_folders_are_followed(touch):
    touch("elsewhere/a.wav", "music/b.wav")
    os.symlink("../elsewhere", "music/more")
    assert find_sources(["music"], "out") == [Source("music/b.wav"), Source("music/more/a.wav", "more")]


def test_hidden_files_and_the_output_are_left_out(touch):
    touch("a.wav", "._a.wav", ".trash/b.wav", "out/a/vocals.wav", "x/out/c.wav")
    assert find_sources(["."], "out") == [Source("./a.wav"), Source("./x/out/c.wav", "x/out")]


@pytest.mark.parametrize(("folder", "output"), [("out", "out"), ("out/", "./out"), (".", "out/..")])
def test_a_folder_that_is_the_output_is_refused(touch, folder, output):
    touch("out/song/vocals.wav")
    with pytest.raises(InputError, match="is the output folder too"):
        find_sources([folder], output)


def test_a_folder_without_audio_is_a_problem_and_stops_nothing(touch):
    touch("music/notes.txt", "a.wav")
    first, second = find_sources(["music", "a.wav"], "out")
    assert first.problem == "music: no audio file in it or in its folders (wav, flac, ogg, opus, mp3, m4a, ...)"
    assert second == Source("a.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_a_problem(touch):
    touch("music/closed/a.wav", "music/b.wav")
    os.chmod("music/closed", 0)
    first, second = find_sources(["music"], "out")
    os.chmod("music/closed", 0o700)
    assert first == Source("music/b.wav")
    assert second.problem == "music/closed: cannot be read (Permission denied)"


def test_a_name_that_is_not_utf8_is_a_problem(touch):
    touch(os.fsdecode(b"music/caf\xe9.wav"))
    (source,) = find_sources(["music"], "out")
    assert source.problem == r"music/caf\xe9.wav: its name is not UTF-8; rename it"


def test_remote_folders():
    import tensorflow as tf

    tf.io.gfile.makedirs("ram://music/album")
    with tf.io.gfile.GFile("ram://music/album/a.wav", "w") as file:
        file.write("x")
    assert find_sources(["ram://music"], "ram://out") == [Source("ram://music/album/a.wav", "album")]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([("a.mp3", ["out/a/vocals.wav"]), ("a.wav", ["out/a/vocals.wav"])], "a.mp3 and a.wav would both be written"),
        ([("a.mp3", ["out/v.wav"]), ("b.mp3", ["out/../out/v.wav"])], "a.mp3 and b.mp3 would both be written"),
        ([("a.wav", ["./a.wav"])], "a.wav: a stem would be written over ./a.wav, which is to be separated"),
        ([("a.wav", ["x/b.wav"]), ("./x/b.wav", ["c.wav"])], "a.wav: a stem would be written over x/b.wav"),
    ],
)
def test_conflicts(outputs, message):
    with pytest.raises(InputError, match=message):
        check_outputs(outputs)


def test_no_conflict():
    check_outputs([("a.wav", ["out/a/vocals.wav", "out/a/drums.wav"]), ("b.wav", ["out/b/vocals.wav"])])
