"""Versions: which is current, what readers see meanwhile, what is kept, rollback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from gcs import GcsServer

from components.pusher import versions
from components.pusher.versions import (
    add_version,
    current_version,
    is_withdrawn,
    list_versions,
    number,
    read_lineage,
    rollback,
    served_weights,
)
from umx_model.errors import InputError


def fill(weights_sha256: str) -> Callable[[str], None]:
    """Writes files like those of a version."""

    def write(folder: str) -> None:
        place = Path(folder)
        (place / "variables").mkdir(parents=True)
        for name in ("saved_model.pb", "variables/variables.index", "card.md"):
            (place / name).write_text(f"{name} of {weights_sha256}\n")
        (place / "lineage.json").write_text(json.dumps({"weights_sha256": weights_sha256}))

    return write


def push(destination: Path, *models: str, keep: int = 5) -> None:
    for model in models:
        add_version(str(destination), fill(model), keep)


def served(destination: Path) -> list[tuple[str, str]]:
    """Number and model of every version."""
    return [(number(version), read_lineage(version)["weights_sha256"]) for version in list_versions(str(destination))]


def test_versions_count_up_from_one(tmp_path: Path) -> None:
    destination = tmp_path / "a" / "serving"
    assert current_version(str(destination)) is None
    assert list_versions(str(destination)) == []
    push(destination, "a", "b")
    assert served(destination) == [("1", "a"), ("2", "b")]
    assert current_version(str(destination)) == str(destination / "2")


def test_numbers_go_on_above_all_that_are_there(tmp_path: Path) -> None:
    for name in ("9", "10", "1795379572", "partial-99999999999", "notes", "9999999999x"):
        (tmp_path / name).mkdir()
    push(tmp_path, "a")
    assert current_version(str(tmp_path)) == str(tmp_path / "1795379573")


def test_what_was_not_pushed_from_here_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "1999").mkdir()
    (tmp_path / "1999" / "thesis.wav").write_text("irreplaceable")
    (tmp_path / "2001").write_text("a file")
    (tmp_path / "2002").mkdir()
    (tmp_path / "2002" / "saved_model.pb").write_text("somebody's model")
    (tmp_path / "partial-eclipse").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    push(tmp_path, "a", "b", "c", keep=1)
    assert {path.name for path in tmp_path.iterdir()} == before | {"2005"}
    assert (tmp_path / "1999" / "thesis.wav").read_text() == "irreplaceable"


def test_served_weights(tmp_path: Path) -> None:
    assert served_weights(current_version(str(tmp_path))) == ""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "saved_model.pb").write_text("somebody's model")
    assert served_weights(current_version(str(tmp_path))) == "unknown-7"
    push(tmp_path, "a")
    assert served_weights(current_version(str(tmp_path))) == "a"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_damaged_lineage_is_named(tmp_path: Path, content: bytes) -> None:
    push(tmp_path, "a")
    (tmp_path / "1" / "lineage.json").write_bytes(content)
    with pytest.raises(InputError, match=r"/1/lineage.json: .*; restore it, or remove the version$") as caught:
        read_lineage(str(tmp_path / "1"))
    assert "\n" not in str(caught.value)


def test_what_is_not_complete_is_no_version(tmp_path: Path) -> None:
    push(tmp_path, "a")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "variables").write_text("some of it")
    assert current_version(str(tmp_path)) == str(tmp_path / "1")
    assert served(tmp_path) == [("1", "a")]
    push(tmp_path, "b")
    assert current_version(str(tmp_path)) == str(tmp_path / "3")


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    push(tmp_path, *"abcdefg", keep=3)
    assert served(tmp_path) == [("5", "e"), ("6", "f"), ("7", "g")]
    push(tmp_path, "h", keep=1)
    assert served(tmp_path) == [("8", "h")]
    assert [path.name for path in tmp_path.iterdir()] == ["8"]


def test_a_reader_never_sees_part_of_a_version(tmp_path: Path) -> None:
    """While versions come, the one that is current always holds everything."""
    stop, torn = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            folder = current_version(str(tmp_path))
            if folder is None:
                continue
            model = read_lineage(folder).get("weights_sha256")
            card = Path(folder, "variables", "variables.index").read_text()
            if card != f"variables/variables.index of {model}\n":
                torn.append((folder, card))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        push(tmp_path, *map(str, range(60)), keep=60)
    finally:
        stop.set()
        reader.join()
    assert torn == []


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    push(tmp_path, "a")

    def fail(folder: str) -> None:
        fill("b")(folder)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        add_version(str(tmp_path), fail, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


KILLED = """
import os, sys
from components.pusher.versions import add_version
def fill(folder):
    open(os.path.join(folder, "saved_model.pb"), "w").close()
    os._exit(9)
add_version(sys.argv[1], fill, 5)
"""


def test_a_killed_push_is_cleared_away(tmp_path: Path) -> None:
    push(tmp_path, "a")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment).returncode == 9
    assert len(list(tmp_path.iterdir())) == 2
    assert served(tmp_path) == [("1", "a")]
    push(tmp_path, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert served(tmp_path) == [("1", "a"), ("2", "b")]


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    """The slower one is refused, and what the faster one wrote stays whole."""

    def slow(folder: str) -> None:
        fill("slow")(folder)
        push(tmp_path, "fast")

    with pytest.raises(InputError, match="cannot push here"):
        add_version(str(tmp_path), slow, 5)
    assert served(tmp_path) == [("1", "fast")]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_destination_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file/serving: cannot push here") as caught:
        push(tmp_path / "file" / "serving", "a")
    assert "\n" not in str(caught.value)


class TestRollback:
    def test_copies_the_earlier_version_to_a_new_number(self, tmp_path: Path) -> None:
        push(tmp_path, "a", "b")
        assert rollback(str(tmp_path), "1") == str(tmp_path / "3")
        assert served(tmp_path) == [("1", "a"), ("2", "b"), ("3", "a")]
        for name in ("saved_model.pb", "variables/variables.index"):
            assert (tmp_path / "3" / name).read_text() == (tmp_path / "1" / name).read_text()
        lineage = read_lineage(str(tmp_path / "3"))
        assert (lineage["rolled_back_from"], lineage["pushed_as"]) == ("1", "1")
        [withdrawn] = lineage["withdrawn"]
        assert (withdrawn["weights_sha256"], withdrawn["version"]) == ("b", "2")
        card = (tmp_path / "3" / "card.md").read_text()
        assert card.startswith("card.md of a\n")
        assert "A copy of version 1, made current by a rollback" in card
        assert "version 2 was withdrawn" in card

    def test_a_withdrawn_model_that_is_rolled_back_to_is_withdrawn_no_more(self, tmp_path: Path) -> None:
        push(tmp_path, "a", "b")
        rollback(str(tmp_path), "1")
        rollback(str(tmp_path), "2")
        lineage = read_lineage(str(tmp_path / "4"))
        assert (lineage["weights_sha256"], lineage["rolled_back_from"]) == ("b", "2")
        assert (is_withdrawn(lineage, "a"), is_withdrawn(lineage, "b")) == (True, False)
        rollback(str(tmp_path), "3")
        lineage = read_lineage(str(tmp_path / "5"))
        assert (lineage["rolled_back_from"], lineage["pushed_as"]) == ("3", "1")
        assert (is_withdrawn(lineage, "a"), is_withdrawn(lineage, "b")) == (False, True)

    def test_refuses_what_is_not_there_or_served_already(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="has no version 1; there: none"):
            rollback(str(tmp_path / "nothing"), "1")
        push(tmp_path, "a", "b")
        with pytest.raises(InputError, match="has no version 7; there: 1, 2"):
            rollback(str(tmp_path), "7")
        with pytest.raises(InputError, match="what version 2 holds is served already, as version 2"):
            rollback(str(tmp_path), "2")
        rollback(str(tmp_path), "1")
        with pytest.raises(InputError, match="what version 1 holds is served already, as version 3"):
            rollback(str(tmp_path), "1")
        assert len(served(tmp_path)) == 3

    def test_tells_exports_of_the_same_weights_apart(self, tmp_path: Path) -> None:
        push(tmp_path, "a", "a")
        for version, exporter in (("1", "good"), ("2", "broken")):
            lineage = {"weights_sha256": "a", "exported_by": exporter}
            (tmp_path / version / "lineage.json").write_text(json.dumps(lineage))
        rollback(str(tmp_path), "1")
        assert read_lineage(str(tmp_path / "3"))["exported_by"] == "good"

    def test_failure_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        push(tmp_path, "a", "b")

        def fail(*_: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(versions, "write_text", fail)
        with pytest.raises(InputError, match="no space left"):
            rollback(str(tmp_path), "1")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


IN_A_BUCKET = """
import json, sys
import tensorflow as tf
from components.pusher.versions import _remove, add_version, current_version, list_versions, number
from components.pusher.versions import read_lineage, rollback
root = "gs://bucket/a/serving"

def fill(model):
    def write(folder):
        for name in ("saved_model.pb", "variables/variables.index", "zzz"):
            with tf.io.gfile.GFile(f"{folder}/{name}", "w") as file:
                file.write(model)
        with tf.io.gfile.GFile(f"{folder}/lineage.json", "w") as file:
            file.write(json.dumps({"weights_sha256": model}))
    return write

assert current_version(root) is None
moved, rename = [], tf.io.gfile.rename
def listen(source, target, overwrite=False):
    moved.append(target)
    assert current_version(root) == before, "seen too early"
    rename(source, target, overwrite)
tf.io.gfile.rename = listen
for model in "abc":
    before = current_version(root)
    assert add_version(root, fill(model), 2) == current_version(root)
    assert moved[-1].endswith("/saved_model.pb"), moved
    assert moved[-4].endswith("/lineage.json"), moved
before = current_version(root)
assert rollback(root, "2") == f"{root}/4"
tf.io.gfile.rename = rename
with tf.io.gfile.GFile(f"{root}/5/variables/variables.index", "w") as file:
    file.write("half a version")
assert current_version(root) == f"{root}/4"
lineage = read_lineage(current_version(root))
removed, remove = [], tf.io.gfile.remove
def listen_too(path):
    removed.append(path.removeprefix(root))
    remove(path)
tf.io.gfile.remove = listen_too
_remove(root, f"{root}/2")
assert (removed[0], removed[-1]) == ("/2/saved_model.pb", "/2/lineage.json"), removed
print(json.dumps([[number(version) for version in list_versions(root)], lineage["weights_sha256"],
                  [entry["weights_sha256"] for entry in lineage["withdrawn"]]]))
"""


def test_in_a_bucket(gcs: GcsServer) -> None:
    gcs.create_bucket("bucket")
    assert json.loads(gcs.run(IN_A_BUCKET).stdout) == [["3", "4"], "b", ["c"]]
    names = set(gcs.list("bucket"))
    assert not any("partial" in name for name in names)
    files = ("saved_model.pb", "variables/variables.index", "zzz", "lineage.json")
    assert {f"a/serving/{version}/{name}" for version in (3, 4) for name in files} <= names
    assert not any(name.startswith(("a/serving/1", "a/serving/2")) for name in names)
    assert gcs.download("bucket", "a/serving/4/zzz") == b"b"
