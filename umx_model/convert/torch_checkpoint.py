"""Reading the tensors of a PyTorch checkpoint without PyTorch, and without running what a pickle may say.

A checkpoint is a pickle of a dictionary from names to tensors, whose storages lie beside it:

    zip (since PyTorch 1.6)      NAME/data.pkl, NAME/data/KEY per storage, NAME/byteorder
    legacy                       four pickles (magic number, protocol version, byte order and type sizes,
                                 dictionary), a pickled list of keys; then per key its length and its storage

The formats are those of `torch/serialization.py` (v2.x). An ordinary unpickler imports and calls whatever
the file names; this one knows the handful of names that dictionaries of tensors need, and refuses others.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf

from umx_model.errors import InputError

_MAGIC_NUMBER, _PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    """Where the elements of tensors are; several tensors may share one."""

    key: str
    dtype: np.dtype
    elements: int


class _Tensor(NamedTuple):
    """A view of a storage; in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _DamagedError(Exception):
    """What is wrong with a file, to be said together with its name."""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a state dictionary that `torch.save` wrote, in the zip or in the legacy format.

    Args:
        path: the file; local or remote.

    Returns:
        The tensors by name, read-only views in the file's dtypes.

    Raises:
        InputError: no such file, damaged or cut short, or it holds anything but a dictionary of tensors.
    """
    name = os.fspath(path)
    try:
        with tf.io.gfile.GFile(name, "rb") as file:
            content = file.read()
    except tf.errors.OpError:
        raise InputError(f"{name}: no such file, or it cannot be read; expected a PyTorch checkpoint") from None
    read = _read_zip if content.startswith(b"PK") else _read_legacy
    try:
        tensors, storages = read(content)
        if not isinstance(tensors, Mapping):
            raise _DamagedError(f"holds a {type(tensors).__name__}, not a dictionary of tensors")
        return {str(key): _view(str(key), tensor, storages) for key, tensor in tensors.items()}
    except pickle.UnpicklingError as error:
        reason = str(error)
    except _DamagedError as error:
        reason = str(error)
    except Exception as error:  # damaged pickles and archives raise almost anything
        reason = f"damaged or cut short ({type(error).__name__}: {error})"
    raise InputError(f"{name}: not a checkpoint that can be read safely: {reason}; download or save it again")


def _read_zip(content: bytes) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [entry for entry in archive.namelist() if entry.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise _DamagedError("a zip file without one NAME/data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise _DamagedError("its archive is compressed, which PyTorch does not do")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
            raise _DamagedError("saved on a big-endian machine")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        tensors = unpickler.load()
        return tensors, {key: archive.read(f"{root}data/{key}") for key in unpickler.storages}


def _read_legacy(content: bytes) -> tuple[Any, dict[str, bytes]]:
    file = io.BytesIO(content)
    try:
        magic = _Unpickler(file).load()
    except Exception:
        magic = None
    if magic != _MAGIC_NUMBER:
        raise _DamagedError("neither a zip file nor one with PyTorch's magic number")
    version, machine = _Unpickler(file).load(), _Unpickler(file).load()
    if version != _PROTOCOL_VERSION:
        raise _DamagedError(f"legacy format {version!r}, expected {_PROTOCOL_VERSION}")
    if not machine["little_endian"]:
        raise _DamagedError("saved on a big-endian machine")
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    keys = _Unpickler(file).load()
    storages = {key: _read_storage(file, unpickler.storages[key]) for key in keys}
    return tensors, storages


def _read_storage(file: BinaryIO, storage: _Storage) -> bytes:
    (elements,) = struct.unpack("<q", file.read(8))
    if elements != storage.elements:
        raise _DamagedError(f"storage {storage.key} has {elements} elements, expected {storage.elements}")
    return file.read(elements * storage.dtype.itemsize)


def _view(name: str, tensor: Any, storages: dict[str, bytes]) -> np.ndarray:
    """Return a tensor's elements, none of them outside its storage."""
    if not isinstance(tensor, _Tensor):
        raise _DamagedError(f"{name} is a {type(tensor).__name__}, expected a tensor")
    storage, offset, shape, strides = tensor
    data = storages[storage.key]
    if len(data) != storage.elements * storage.dtype.itemsize:
        raise _DamagedError(f"{name}: its storage has {len(data)} bytes, expected {storage.elements} elements")
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
        raise _DamagedError(f"{name}: impossible shape {shape} with strides {strides} at {offset}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.elements:
        raise _DamagedError(f"{name}: shape {shape} with strides {strides} at {offset} is more than its storage holds")
    elements = np.frombuffer(data, storage.dtype)[offset:]
    return np.lib.stride_tricks.as_strided(
        elements, shape, [stride * storage.dtype.itemsize for stride in strides], writeable=False
    )


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries, tensors and plain values, and nothing else.

    What the names stand for are values and bound methods, in which a pickle cannot set attributes.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # for strings of Python 2
        self.storages: dict[str, _Storage] = {}
        self._allowed: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._rebuild_tensor,
            "torch._utils._rebuild_parameter": self._rebuild_parameter,
            **{f"torch.{storage}": np.dtype(dtype) for storage, dtype in _DTYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what a global name stands for, which is never what it is in Python."""
        try:
            return self._allowed[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need") from None

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that a tensor refers to."""
        kind, dtype, key, _, elements, *views = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view is not None for view in views):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, expected a storage")
        storage = _Storage(str(key), dtype, int(elements))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is described in two ways")
        return storage

    @staticmethod
    def _integers(values: Any) -> tuple[int, ...]:
        return tuple(int(value) for value in values)

    def _rebuild_tensor(self, storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"a tensor in {storage!r}, expected a storage")
        return _Tensor(storage, int(offset), self._integers(shape), self._integers(strides))

    def _rebuild_parameter(self, data: Any, *_: Any) -> Any:
        return data
