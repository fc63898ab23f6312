"""PyTorch's files in without PyTorch, and without running what is in them.

They are pickles. The unpickler here knows tensors, plain containers and a few inert values, and
refuses every other name before it is looked up, so a file cannot run code. What it hands out cannot
be changed by later opcodes, and memory is asked for only as far as the file has bytes.
"""

import collections
import io
import mmap
import pathlib
import pickle
import pickletools
import reprlib
import struct
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nexttok.interop.tensors import open_zip

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # files of PyTorch before 1.6
DTYPES = {
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": jnp.bfloat16,
    "Double": np.float64,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


class Inert:
    """Stands for a value that holds no weights (argparse.Namespace, torch.device, a dtype)."""

    def __init__(self, *args, **kwargs):
        self.args = args


class _Kind(NamedTuple):
    """A dtype, out of reach: NumPy's own are shared, and opcodes could set their state."""

    name: str


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise pickle.UnpicklingError(message)


def _tensor(storage, offset, size, stride, *_unused):
    """A strided view of a storage, within its bounds."""
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    sane = all(type(n) is int and n >= 0 for n in numbers) and len(size) == len(stride)
    sane = sane and isinstance(storage, np.ndarray)
    empty = sane and 0 in size
    if sane and not empty:
        sane = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) < storage.size
    _refuse(not sane, f"a tensor of size {reprlib.repr(size)} leaves its storage")
    steps = tuple(s * storage.itemsize for s in stride)
    start = storage[offset:] if not empty else storage[:0]
    return np.lib.stride_tricks.as_strided(start, size, steps, writeable=False)


def _parameter(tensor, *_unused):
    return tensor


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): Inert,
    ("argparse", "Namespace"): Inert,
    ("config_util", "Config"): Inert,  # D-AR's files hold theirs
    **{("torch", f"{name}Storage"): _Kind(name) for name in DTYPES},
    **{("torch", np.dtype(kind).name): _Kind(name) for name, kind in DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Unpickles containers of tensors; `storage` maps a persistent id to a flat array."""

    def __init__(self, file, storage=None):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it holds a {module}.{name}, which is no tensor or plain container; "
                "save the weights alone, or as .safetensors"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        known = self.storage is not None and isinstance(pid, tuple) and len(pid) >= 5
        known = known and pid[0] == "storage" and isinstance(pid[1], _Kind)
        _refuse(not known, f"unknown persistent id {reprlib.repr(pid)}")
        kind, key, _, count, *view = pid[1:]
        sane = isinstance(key, str) and type(count) is int and count >= 0
        _refuse(not sane, f"unknown storage {reprlib.repr(key)}")
        return self.storage(np.dtype(DTYPES[kind.name]), key, count, *view)


def _load(file: io.BytesIO | mmap.mmap, storage=None) -> Any:
    """One pickle, from where the file stands.

    Its opcodes are looked through first: the memo of Python's unpickler is an array as long as the
    largest index in the file, which is honestly at most the number of opcodes.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            _refuse(not 0 <= argument <= count, f"a memo index of {argument:,}")
    file.seek(start)
    return _Unpickler(file, storage).load()


def _read_zip(path: pathlib.Path) -> Any:
    with open_zip(path) as archive:
        index = next((n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"), None)
        _refuse(index is None, "it is no PyTorch file: no data.pkl in it")
        root = index.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise pickle.UnpicklingError("its byte order is not little-endian")
        loaded = {}

        def storage(dtype, key, count):
            if key not in loaded:
                loaded[key] = archive.read(f"{root}data/{key}")
            return np.frombuffer(loaded[key], dtype, count)

        return _load(io.BytesIO(archive.read(index)), storage)


def _read_legacy(file: mmap.mmap) -> Any:
    """The format before 1.6: three header pickles, the object, the keys, then every storage."""
    magic, protocol = _load(file), _load(file)
    _refuse((magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL), "it is no PyTorch file")
    _load(file)  # sizes of C types
    loaded, left = {}, [len(file)]

    def storage(dtype, key, count, view=None):
        if key not in loaded:
            left[0] -= count * dtype.itemsize
            _refuse(left[0] < 0, f"storages claim more than the file's {len(file):,} bytes")
            loaded[key] = np.empty(count, dtype)
        base = loaded[key]
        return base if view is None else base[view[1] : view[1] + view[2]]

    state = _load(file, storage)
    for key in _load(file):
        known = isinstance(key, str) and key in loaded
        _refuse(not known, f"unknown storage {reprlib.repr(key)}")
        base = loaded[key]
        (count,) = struct.unpack("<q", file.read(8))
        _refuse(count != base.size, f"storage {key} has {count} elements, not {base.size}")
        base[:] = np.frombuffer(file.read(base.nbytes), base.dtype)
    return state


def read(path: pathlib.Path) -> Any:
    """The object in a PyTorch file, zipped or older.

    Raises:
      Exception: of any kind, of a file that is damaged or holds anything else.
    """
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if file[:2] != b"PK":
            return _read_legacy(file)
    return _read_zip(path)
