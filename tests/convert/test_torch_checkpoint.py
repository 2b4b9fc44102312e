"""The checkpoint reader, on files that PyTorch wrote and on files that mean harm."""

import os
import pickle
import zipfile
from pathlib import Path

import checkpoint_files as checkpoints
import numpy as np
import pytest

from umx_model.convert.torch_checkpoint import read_checkpoint
from umx_model.errors import InputError

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["tensors.pth", "tensors-legacy.pth"])
def test_reads_what_pytorch_wrote(name: str) -> None:
    tensors = read_checkpoint(GOLDEN / name)
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "whole": numbers,
        "transposed": numbers.T,
        "part": numbers[1:3, 2:5],
        "parameter": np.array([0.5, -0.5], np.float32),
        "half": np.array([1.5], np.float16),
        "double": np.array([1 / 3]),
        "scalar": np.array(7),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert list(tensors) == list(expected)
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype, key
        np.testing.assert_array_equal(tensors[key], value, err_msg=key)
        assert not tensors[key].flags.writeable


class Command:
    """Unpickled by the usual means, runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["zip", "legacy", "legacy's magic number"])
def test_nothing_of_a_pickle_is_run(place: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "run", tmp_path / "vocals.pth"
    harm = pickle.dumps({"input_mean": Command(marker)}, protocol=2)
    preamble = checkpoints.MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    file.write_bytes({"zip": checkpoints.zip_pickle(harm), "legacy": preamble + harm}.get(place, harm))
    with pytest.raises(InputError, match=r"vocals.pth: not a checkpoint that can be read safely"):
        read_checkpoint(file)
    assert not marker.exists()
    pickle.loads(harm)  # it would have been
    assert marker.exists()


HARM = {
    "another global": b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
    "a function of torch": b"\x80\x02ctorch\nload\nU\x011\x85R.",
    "an attribute of an allowed name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    "setting attributes": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x08__code__U\x01xs\x86b.",
    "setting attributes of a type": b"\x80\x02ccollections\nOrderedDict\nN}U\x05itemsU\x01xs\x86b.",
    "another reference": b"\x80\x02(U\x06modulectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQ.",
    "extension": b"\x80\x02\x82\x01.",
    "no dictionary": b"\x80\x02]U\x01xa.",
    "a tensor in no storage": b"\x80\x02}U\x01xctorch._utils\n_rebuild_tensor_v2\n(NK\x00K\x01\x85K\x01\x85\x89}tRs.",
}


@pytest.mark.parametrize("kind", HARM)
def test_only_tensors_are_made(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "vocals.pth"
    file.write_bytes(checkpoints.zip_pickle(HARM[kind]))
    with pytest.raises(InputError, match=r"vocals.pth: not a checkpoint that can be read safely") as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2, 2), (1,)),
        (2**30, (1,), (1,)),
        (0, (2**30, 2**30), (2**30, 2**30)),
    ],
)
def test_no_tensor_reaches_beyond_its_storage(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], tmp_path: Path
) -> None:
    file = tmp_path / "vocals.pth"
    of = checkpoints.storage("FloatStorage", "0", 4)
    file.write_bytes(
        checkpoints.zip_pickle(
            checkpoints.dictionary({"x": checkpoints.tensor(of, offset, shape, strides)}), {"0": bytes(16)}
        )
    )
    with pytest.raises(InputError, match="x: "):
        read_checkpoint(file)


@pytest.mark.parametrize("size", [0, 12, 20])
def test_storage_of_another_length_is_refused(size: int, tmp_path: Path) -> None:
    file = tmp_path / "vocals.pth"
    item = checkpoints.tensor(checkpoints.storage("FloatStorage", "0", 4), 0, (2,), (1,))
    file.write_bytes(checkpoints.zip_pickle(checkpoints.dictionary({"x": item}), {"0": bytes(size)}))
    with pytest.raises(InputError, match=f"x: its storage has {size} bytes, expected 4 elements"):
        read_checkpoint(file)


@pytest.mark.parametrize("name", ["tensors.pth", "tensors-legacy.pth"])
def test_files_cut_short_anywhere(name: str, tmp_path: Path) -> None:
    content, file = (GOLDEN / name).read_bytes(), tmp_path / name
    for size in range(0, len(content), 7):
        file.write_bytes(content[:size])
        with pytest.raises(InputError, match=f"{name}: not a checkpoint that can be read safely"):
            read_checkpoint(file)


@pytest.mark.parametrize("name", ["tensors.pth", "tensors-legacy.pth"])
def test_damaged_bytes_end_in_one_line_or_in_tensors(name: str, tmp_path: Path) -> None:
    content, file = (GOLDEN / name).read_bytes(), tmp_path / name
    refused = 0
    for position in range(0, len(content), 5):
        file.write_bytes(content[:position] + bytes([content[position] ^ 0x41]) + content[position + 1 :])
        try:
            read_checkpoint(file)
        except InputError:
            refused += 1
    assert refused > 20


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    # A megabyte of them may expand to a thousand.
    file = tmp_path / "vocals.pth"
    file.write_bytes(checkpoints.zip_pickle(b"\x80\x02}.", compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(InputError, match="compressed"):
        read_checkpoint(file)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
    page = tmp_path / "page.pth"
    page.write_text("<html>Not found</html>")
    with pytest.raises(InputError, match="neither a zip file nor one with PyTorch's magic number"):
        read_checkpoint(page)
