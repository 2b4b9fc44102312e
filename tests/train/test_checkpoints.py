import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from umx_model.errors import InputError
from umx_model.model.folder import read_model
from umx_model.model.spectral_filter import get_joint_spectral_filter
from umx_model.profile import Profile
from umx_model.train.checkpoints import Checkpoints, LoopState

PROFILE = Profile.model_validate(
    {
        "model": {
            "targets": ["vocals"],
            "sample_rate": 8000,
            "n_fft": 512,
            "hop_length": 256,
            "hidden_size": 8,
            "layers": 2,
            "niter": 0,
        },
        "train": {"keep_checkpoints": 3},
    }
)


class Trained:
    """A model whose variables can be set to any number, and its checkpoints."""

    def __init__(self, output: Path) -> None:
        self.filter = get_joint_spectral_filter(PROFILE.model)
        optimizer = keras.optimizers.Adam()
        optimizer.build(self.filter.trainable_variables)
        self.variables = [*self.filter.variables, *optimizer.variables]
        self.state = LoopState.start(PROFILE)
        self.checkpoints = Checkpoints(str(output), self.filter, optimizer, PROFILE, "data")

    def become(self, number: int) -> None:
        for variable in self.variables:
            variable.assign(tf.cast(tf.fill(variable.shape, number), variable.dtype))
        self.state.step = number

    def all_are(self, number: int) -> bool:
        return all(np.all(variable.numpy() == number) for variable in self.variables)

    def save(self, *numbers: int) -> None:
        for number in numbers:
            self.become(number)
            self.checkpoints.save(self.state)


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return Trained(tmp_path)


def file(prefix: str | None, kind: str) -> Path:
    assert prefix
    return Path(prefix + {"index": ".index", "data": ".data-00000-of-00001"}[kind])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[Callable[[Path], Any]] = [truncate, flip, lambda path: path.write_bytes(b""), Path.unlink]


def test_the_newest_are_kept(trained: Trained, tmp_path: Path) -> None:
    trained.save(1, 2, 3, 4, 5)
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    stems = sorted({name.partition(".")[0] for name in names} - {"checkpoint"})
    assert stems == ["epoch-0-step-3", "epoch-0-step-4", "epoch-0-step-5"]
    assert len(names) == 3 * 2 + 1
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")) == trained.checkpoints.latest


def test_within_an_epoch_and_after_it_are_two(trained: Trained) -> None:
    trained.state.epoch_excerpts = 16
    trained.save(7)
    trained.state.epoch_excerpts, trained.state.epoch = 0, 1
    trained.save(7)
    assert trained.checkpoints.latest
    assert trained.checkpoints.latest.endswith("epoch-1-step-7")
    file(trained.checkpoints.latest, "index").unlink()
    assert trained.checkpoints.latest.endswith("/step-7")


@pytest.mark.parametrize("kind", ["index", "data"])
@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    trained: Trained, kind: str, harm: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    trained.save(1, 2, 3)
    damaged = file(trained.checkpoints.latest, kind)
    harm(damaged)
    trained.become(9)
    trained.checkpoints.restore(trained.state)
    assert trained.all_are(2)
    assert trained.state.step == 2
    assert trained.checkpoints.current
    assert trained.checkpoints.current.endswith("step-2")
    if kind == "data" or damaged.exists():  # without its index, a checkpoint is not there
        assert "step-3: damaged (" in caplog.text
    trained.save(3)  # in place of the damaged one
    trained.become(9)
    trained.checkpoints.restore(trained.state)
    assert trained.all_are(3)


def test_no_flipped_or_missing_byte_goes_unnoticed(trained: Trained) -> None:
    trained.save(1, 2)
    draw = random.Random(0)
    for kind in ("index", "data"):
        path = file(trained.checkpoints.latest, kind)
        good = path.read_bytes()
        for trial in range(25):
            content, place = bytearray(good), draw.randrange(len(good))
            if trial % 2:
                del content[place:]
            else:
                content[place] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            trained.checkpoints.restore(trained.state)
            assert trained.all_are(1), f"{kind}: byte {place} of {len(good)}"
        path.write_bytes(good)
    trained.checkpoints.restore(trained.state)
    assert trained.all_are(2)


def test_without_tensorflows_list_of_checkpoints(trained: Trained, tmp_path: Path) -> None:
    trained.save(1, 2)
    for content in (b"\xff\xfe nonsense", b'model_checkpoint_path: "elsewhere"', b"", None):
        state_file = tmp_path / "checkpoints" / "checkpoint"
        state_file.unlink() if content is None else state_file.write_bytes(content)
        trained.become(9)
        trained.checkpoints.restore(trained.state)
        assert trained.all_are(2)


def test_damage_back_to_the_oldest(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    trained.save(1, 2, 3)
    prefixes = [str(file(trained.checkpoints.latest, "data")).replace("step-3", f"step-{step}") for step in (3, 2, 1)]
    for prefix in prefixes[:2]:
        truncate(Path(prefix))
    trained.checkpoints.restore(trained.state)
    assert trained.all_are(1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    truncate(Path(prefixes[2]))
    with pytest.raises(InputError, match=r"no checkpoint can be read: .*step-3 \(.*step-1 \(.*another") as error:
        trained.checkpoints.restore(trained.state)
    assert "\n" not in str(error.value)


def test_going_back_leaves_no_later_checkpoint(trained: Trained, tmp_path: Path) -> None:
    trained.save(10, 20, 30)
    trained.save(15)
    assert trained.checkpoints.latest
    assert trained.checkpoints.latest.endswith("step-15")
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.index")) == [
        "epoch-0-step-10",
        "epoch-0-step-15",
    ]


def test_what_a_killed_process_left_is_cleared_away(trained: Trained, tmp_path: Path) -> None:
    trained.save(1)
    folder = tmp_path / "checkpoints"
    (folder / ".partial" / "epoch-0-step-2_temp").mkdir(parents=True)
    (folder / ".partial" / "epoch-0-step-2_temp" / "part-00000-of-00001.index").write_text("half")
    shutil.copy(file(trained.checkpoints.latest, "data"), folder / "epoch-0-step-2.data-00000-of-00001")
    trained.checkpoints.restore(trained.state)
    assert trained.all_are(1)
    trained.save(3)
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {
        "checkpoint",
        "epoch-0-step-1",
        "epoch-0-step-3",
    }


def test_a_copy_holds_what_was_there_when_it_was_made(trained: Trained) -> None:
    trained.become(5)
    copy = trained.checkpoints.copy(trained.state)
    trained.become(6)
    trained.state.history.append({"epoch": 1.0})
    trained.checkpoints.save_copy(copy)
    trained.checkpoints.restore(trained.state)
    assert trained.all_are(5)
    assert trained.state.step == 5
    assert trained.state.history == []


def test_the_best_is_kept_and_can_be_used(trained: Trained, tmp_path: Path) -> None:
    PROFILE.write(tmp_path)
    trained.become(2)
    trained.checkpoints.save_best(trained.state)
    trained.save(3, 4, 5, 6)
    trained.checkpoints.restore_best(trained.state)
    assert all(np.all(weight.numpy() == 2) for weight in trained.filter.weights)
    assert all(np.all(weight.numpy() == 2) for weight in read_model(tmp_path)[0].spectral_filter.weights)


def test_a_damaged_best_gives_way_to_the_newest(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained.become(2)
    trained.checkpoints.save_best(trained.state)
    trained.save(3, 4)
    flip(file(str(tmp_path / "checkpoints" / "best" / "epoch-0-step-2"), "data"))
    trained.checkpoints.restore_best(trained.state)
    assert trained.all_are(4)
    assert "best weights are lost; the model gets those of" in caplog.text


def test_a_file_that_cannot_be_reached_is_not_taken_for_damaged(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(1, 2)

    def read(*_: Any) -> Any:
        raise tf.errors.UnavailableError(None, None, "the network is down")

    monkeypatch.setattr(tf.train.Checkpoint, "read", read)
    with pytest.raises(tf.errors.UnavailableError):
        trained.checkpoints.restore(trained.state)
