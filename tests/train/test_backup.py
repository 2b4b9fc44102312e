"""Backups into a local folder; those into a bucket are in test_backup_to_bucket.py."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.profile import Profile
from umx_model.train import backup
from umx_model.train.backup import Backup, restore_backup
from umx_model.train.copying import newest_step


class Training:
    """Leaves in a folder what a training does, with one number for a model; keeps two checkpoints and the best."""

    def __init__(self, output: Path, fingerprint: str = "music", **model: Any) -> None:
        output.mkdir()
        self.output = output
        document = {"model": {"targets": ["vocals"], **model}, "data_fingerprint": fingerprint}
        self.profile = Profile.model_validate(document)
        self.weight = tf.Variable(0.0)
        self._managers = [
            tf.train.CheckpointManager(tf.train.Checkpoint(weight=self.weight), folder, keep, checkpoint_name="step")
            for folder, keep in ((str(output / "checkpoints" / "best"), 1), (str(output / "checkpoints"), 2))
        ]
        self.profile.write(output)

    def save(self, step: int) -> None:
        self.weight.assign(step)
        for manager in self._managers:
            manager.save(checkpoint_number=step)
        logs = self.output / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / "events.curves").open("ab") as file:
            file.write(b"x" * step)

    def backup(self, destination: Path, resume: bool = False) -> Backup:
        return Backup(str(self.output), str(destination), self.profile, resume)


def weight(folder: Path) -> float:
    """Read the newest checkpoint, and the best."""
    values = []
    for place in (folder / "checkpoints", folder / "checkpoints" / "best"):
        variable = tf.Variable(-1.0)
        tf.train.Checkpoint(weight=variable).restore(tf.train.latest_checkpoint(place)).assert_consumed()
        values.append(float(variable))
    assert values[0] <= values[1]  # the newest checkpoint may know about the best weights
    return values[0]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 30 s"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "_REST_SECONDS", 0.0)
    monkeypatch.setattr(backup, "_RETRY_SECONDS", 0.0)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    training = Training(tmp_path / "model")
    training.save(1)
    return training


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A destination that does not answer until the event is set."""
    released, copy = threading.Event(), backup.copy_file

    def wait_and_copy(source: str, target: str, size: int) -> None:
        released.wait()
        copy(source, target, size)

    monkeypatch.setattr(backup, "copy_file", wait_and_copy)
    yield released
    released.set()


def test_the_copy_is_the_folder(training: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (training.output / "saved_model").mkdir()
    (training.output / "saved_model" / "saved_model.pb").write_text("model")
    (training.output / "model.weights.h5.partial").write_text("half")
    (training.output / "saved_model.partial").mkdir()
    (training.output / "saved_model.partial" / "saved_model.pb").write_text("half")
    with training.backup(tmp_path / "there") as copies:
        for step in range(2, 6):
            training.save(step)
            copies.request()
            wait_for(lambda step=step: newest_step(str(tmp_path / "there")) == step)
        (training.output / "model.weights.h5").write_text("weights")
        copies.request()
    there = content(tmp_path / "there")
    assert there == {name: data for name, data in content(training.output).items() if ".partial" not in name}
    assert len([name for name in there if name.endswith(".index")]) == 3  # two, and the best
    assert weight(tmp_path / "there") == 5
    assert not (training.output / ".backup").exists()
    assert warnings(caplog) == []


def test_whenever_copying_stops_the_copy_can_be_gone_on_from(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = ("copy_file", "remove_file")
    real = {name: getattr(backup, name) for name in acts}
    left = [0]

    def counted(name: str) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            if left[0] == 0:
                raise OSError("the machine is gone")
            left[0] -= 1
            real[name](*arguments)

        return act

    for name in acts:
        monkeypatch.setattr(backup, name, counted(name))
    seen = []
    for left_over in range(30):
        there = tmp_path / f"there{left_over}"
        one = Training(tmp_path / f"model{left_over}")
        left[0] = 10**6
        for resume in (False, True):  # a first copy, and one of two checkpoints later with another process
            with one.backup(there, resume) as copies:
                one.save(2 if not resume else 3)
                if resume:
                    one.save(4)
                    left[0] = left_over
                copies.request()
        seen.append(weight(there))
        if left[0]:
            break
    assert seen == sorted(seen)
    assert seen[0] == 2
    assert seen[-1] == 4
    assert len(content(there)) == len(content(one.output))


def test_checkpoints_may_be_rotated_away_meanwhile(
    training: Training, tmp_path: Path, hung: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with training.backup(tmp_path / "there") as copies:
        for step in range(2, 9):
            training.save(step)
            copies.request()  # the first is underway; of the others the newest is left
        assert newest_step(str(tmp_path / "there")) is None
        assert len(os.listdir(training.output / ".backup")) <= 2
        hung.set()
    assert weight(tmp_path / "there") == 8
    assert warnings(caplog) == []


def test_a_destination_that_fails_is_one_warning_and_tried_again(
    training: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with training.backup(there) as copies:
        (there / "checkpoints").write_text("in the way")
        for step in (2, 3):
            training.save(step)
            copies.request()
            wait_for(lambda: copies._pending is None and copies._began is None)
        (warning,) = warnings(caplog)
        assert "there" in warning
        assert "training goes on" in warning
        (there / "checkpoints").unlink()
        training.save(4)
        copies.request()
    assert weight(there) == 4
    assert "up to date again" in warnings(caplog)[-1]


def test_the_end_does_not_wait_for_ever(
    training: Training,
    tmp_path: Path,
    hung: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(backup, "_END_SECONDS", 1.5)
    with training.backup(tmp_path / "there") as copies:
        copies.request()
    assert [text.split(": ")[1].split(" ")[0] for text in warnings(caplog)] == ["waiting", str(tmp_path / "there")]
    assert "1.5 seconds" in warnings(caplog)[0]


@pytest.mark.parametrize("stopped", [True, False])
def test_ctrl_c_ends_the_wait(
    training: Training, tmp_path: Path, hung: threading.Event, caplog: pytest.LogCaptureFixture, stopped: bool
) -> None:
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    ended = False
    with pytest.raises(MemoryError) if stopped else pytest.MonkeyPatch.context():
        with training.backup(tmp_path / "there") as copies:
            copies.request()
            timer.start()
            if stopped:
                raise MemoryError
        ended = True
    assert ended is not stopped
    assert f"waiting up to {'10 seconds' if stopped else '10 minutes'}" in warnings(caplog)[0]
    assert "lacks what came last" in warnings(caplog)[1]


def test_files_that_are_there_are_not_sent_again(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    copy = backup.copy_file

    def note_and_copy(source: str, target: str, size: int) -> None:
        sent.append(os.path.basename(target))
        copy(source, target, size)

    monkeypatch.setattr(backup, "copy_file", note_and_copy)
    for resume in (False, True):
        sent.clear()
        with training.backup(tmp_path / "there", resume) as copies:
            copies.request()
            wait_for(lambda: copies._pending is None and copies._began is None)
            copies.request()
    assert sorted(sent) == ["checkpoint", "checkpoint", "profile.json"]


def test_restoring_on_an_empty_machine(training: Training, tmp_path: Path) -> None:
    with training.backup(tmp_path / "there") as copies:
        copies.request()
    assert restore_backup(str(tmp_path / "there") + "/", str(tmp_path / "elsewhere" / "model"), quiet=True)
    assert content(tmp_path / "elsewhere" / "model") == content(training.output)


def test_the_newer_wins(training: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    there, old = tmp_path / "there", tmp_path / "old"
    with training.backup(there) as copies:
        assert not restore_backup(str(there), str(training.output))  # nothing there yet
        copies.request()
    restore_backup(str(there), str(old), quiet=True)
    training.save(2)
    assert not restore_backup(str(there), str(training.output))
    assert weight(training.output) == 2
    assert "step 2" in caplog.messages[-1]
    training.save(3)
    with training.backup(there, resume=True) as copies:
        copies.request()
    assert restore_backup(str(there), str(old), quiet=True)
    assert "step 3" in caplog.messages[-1]
    assert "1" in caplog.messages[-1]
    assert content(old) == content(training.output)  # checkpoints of step 1 are gone


def test_a_backup_that_is_ahead_is_brought_back(training: Training, tmp_path: Path) -> None:
    there = tmp_path / "there"
    with training.backup(there) as copies:
        copies.request()
    fresh = Training(tmp_path / "fresh")
    fresh.backup(there, resume=True).prepare(quiet=True)
    assert weight(fresh.output) == 1


def test_another_trainings_backup_is_refused(training: Training, tmp_path: Path) -> None:
    there = tmp_path / "there"
    with training.backup(there) as copies:
        copies.prepare()
        copies.request()
    before = content(there)
    other_model = Training(tmp_path / "other model", hidden_size=256)
    with pytest.raises(InputError, match="there: .*another training: model.hidden_size is 512 there and 256 here"):
        other_model.backup(there, resume=True).prepare()
    other_data = Training(tmp_path / "other data", fingerprint="other")
    other_data.save(1)
    with pytest.raises(InputError, match="another training: its database was another one"):
        other_data.backup(there, resume=True).prepare()
    with pytest.raises(InputError, match="resume it"):
        Training(tmp_path / "the same anew").backup(there).prepare()
    assert content(there) == before


def test_an_empty_machine_may_have_downloaded_the_data_anew(training: Training, tmp_path: Path) -> None:
    there = tmp_path / "there"
    with training.backup(there) as copies:
        copies.request()
    fresh = Training(tmp_path / "fresh", fingerprint="the same music with other times")
    fresh.backup(there, resume=True).prepare(quiet=True)
    assert weight(fresh.output) == 1


def test_a_training_may_go_on_with_changed_data(training: Training, tmp_path: Path) -> None:
    there = tmp_path / "there"
    with training.backup(there) as copies:
        copies.request()
    changed = training.profile.model_copy(update={"data_fingerprint": "more music"})
    with Backup(str(training.output), str(there), changed, resume=True) as copies:
        copies.prepare()
        changed.write(training.output)
        copies.request()
    assert Profile.read(there).data_fingerprint == "more music"


def test_what_cannot_be_a_backup_is_refused(training: Training, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/there: a backup cannot be written there"):
        training.backup(tmp_path / "file" / "there").prepare()
    with pytest.raises(InputError, match="nowhere://there: a backup cannot be written there"):
        Backup(str(training.output), "nowhere://there", training.profile).prepare()
    with pytest.raises(InputError, match="local output"):
        Backup("gs://bucket/model", "gs://bucket/backup", training.profile)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A destination that does not answer to questions until the event is set."""
    released, read = threading.Event(), backup._read_profile

    def wait_and_read(folder: str) -> Any:
        if folder.endswith("there"):
            released.wait()
        return read(folder)

    monkeypatch.setattr(backup, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(backup, "_NEEDED_SECONDS", 0.2)
    monkeypatch.setattr(backup, "_read_profile", wait_and_read)
    yield released
    released.set()


def test_training_starts_without_an_answer(
    training: Training, tmp_path: Path, silent: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with training.backup(tmp_path / "there") as copies:
        copies.prepare()
        assert "no answer in 0.2 seconds" in warnings(caplog)[0]
        copies.request()
        silent.set()
    assert weight(tmp_path / "there") == 1


def test_a_late_answer_does_not_cost_another_backup(
    training: Training, tmp_path: Path, silent: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "there"
    silent.set()
    with training.backup(there) as copies:
        training.save(7)
        copies.request()
    before = content(there)
    silent.clear()
    other = Training(tmp_path / "other", fingerprint="other")
    behind = Training(tmp_path / "behind")
    behind.save(2)
    for one, resume, reason in ((other, False, "resume it"), (behind, True, "holds a later step")):
        caplog.clear()
        with one.backup(there, resume) as copies:
            copies.prepare()
            one.save(8)
            copies.request()
            silent.set()
            wait_for(lambda: len(warnings(caplog)) > 1)
            copies.request()
        assert reason in warnings(caplog)[1]
        assert content(there) == before
        silent.clear()


def test_resuming_nothing_needs_the_answer(tmp_path: Path, silent: threading.Event) -> None:
    training = Training(tmp_path / "model")
    with pytest.raises(InputError, match="cannot be read .no answer in 0.2 seconds.*holds no checkpoints"):
        training.backup(tmp_path / "there", resume=True).prepare()
