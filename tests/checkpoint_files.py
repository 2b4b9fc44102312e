"""PyTorch checkpoints put together opcode by opcode, also such as PyTorch would not write."""

import io
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage"}
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what every legacy checkpoint begins with


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def storage(kind: str, key: str, elements: int) -> bytes:
    what = text("storage") + b"ctorch\n" + kind.encode() + b"\n"
    return b"(" + what + text(key) + text("cpu") + integer(elements) + b"tQ"


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor(of: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    place = integer(offset) + integers(shape) + integers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + of + place + hooks + b"tR"


def dictionary(items: Mapping[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in items.items()) + b"u."


def zip_pickle(
    content: bytes, storages: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("weights/data.pkl", content)
        for key, data in (storages or {}).items():
            archive.writestr(f"weights/data/{key}", data)
    return file.getvalue()


def zip_checkpoint(tensors: Mapping[str, np.ndarray]) -> bytes:
    items, storages = {}, {}
    for number, (name, array) in enumerate(tensors.items()):
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        strides = tuple(stride // array.itemsize for stride in array.strides)
        kind = STORAGES[array.dtype.str[1:]]
        items[name] = tensor(storage(kind, str(number), array.size), 0, array.shape, strides)
        storages[str(number)] = array.tobytes()
    return zip_pickle(dictionary(items), storages)
