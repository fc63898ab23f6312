"""Checkpoint files in, nothing executed: .safetensors, .npz, and PyTorch's .pth | .pt | .ckpt.

PyTorch files are pickles. The unpickler here knows tensors, plain containers and a few inert
values, and refuses every other name before it is looked up, so a file cannot run code.
"""

import collections
import io
import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from nexttok.config import ConfigError, check

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".ckpt", ".bin", ".th")
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # files of PyTorch before 1.6
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
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


def _tensor(storage, offset, size, stride, *_unused):
    """A strided view of a storage, within its bounds."""
    size, stride = tuple(size), tuple(stride)
    sane = len(size) == len(stride) and min((offset, *size, *stride)) >= 0
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=False))
    empty = 0 in size
    if not sane or (not empty and last >= storage.size):
        raise pickle.UnpicklingError(f"a tensor of size {size} leaves its storage")
    steps = tuple(s * storage.itemsize for s in stride)
    start = storage[offset:] if not empty else storage[:0]
    return np.lib.stride_tricks.as_strided(start, size, steps)


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
    **{("torch", f"{name}Storage"): np.dtype(kind) for name, kind in DTYPES.items()},
    **{("torch", np.dtype(kind).name): np.dtype(kind) for kind in DTYPES.values()},
}


class _Unpickler(pickle.Unpickler):
    """Unpickles containers of tensors; `storage` maps a persistent id to a flat array."""

    def __init__(self, file: io.BufferedIOBase, storage=None):
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
        if self.storage is None or pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        return self.storage(*pid[1:])


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        index = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
        root = index.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise pickle.UnpicklingError("its byte order is not little-endian")
        loaded = {}

        def storage(dtype, key, _location, count):
            if key not in loaded:
                loaded[key] = np.frombuffer(archive.read(f"{root}data/{key}"), dtype, count)
            return loaded[key]

        return _Unpickler(io.BytesIO(archive.read(index)), storage).load()


def _read_legacy(file: io.BufferedIOBase) -> Any:
    """The format before 1.6: three header pickles, the object, the keys, then every storage."""
    magic, protocol = _Unpickler(file).load(), _Unpickler(file).load()
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise pickle.UnpicklingError("it is no PyTorch file")
    _Unpickler(file).load()  # sizes of C types
    loaded = {}

    def storage(dtype, key, _location, count, view=None):
        base = loaded.setdefault(key, np.empty(count, dtype))
        return base if view is None else base[view[1] : view[1] + view[2]]

    state = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        base = loaded[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != base.size:
            raise pickle.UnpicklingError(f"storage {key} has {count} elements, not {base.size}")
        base[:] = np.frombuffer(file.read(base.nbytes), base.dtype)
    return state


def read(path: str, where: str = "checkpoint") -> dict[str, Any]:
    """Reads a checkpoint file; nested dicts of a PyTorch file stay nested.

    Args:
      path: .safetensors, .npz, or PyTorch's .pth | .pt | .ckpt | .bin | .th, zipped or older.
      where: config key that errors name.

    Returns:
      Names to arrays (bfloat16 included), and to whatever plain values a PyTorch file holds.

    Raises:
      ConfigError: no such file, another format, a damaged file, or a pickle that holds anything
        but tensors and plain containers.
    """
    file = pathlib.Path(path)
    fits = file.is_file() and file.suffix in SUFFIXES
    check(fits, where, path, f"a file ending in {' | '.join(SUFFIXES)}")
    try:
        if file.suffix == ".safetensors":
            return load_file(path)
        if file.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if zipfile.is_zipfile(file):
            return _read_zip(file)
        with file.open("rb") as opened:
            return _read_legacy(opened)
    except Exception as error:  # a damaged file may fail anywhere in its reader
        raise ConfigError(f"config.{where} = {path!r}: {error}") from error


def _nested(state: Any, path: list[str]) -> Any:
    """The value under these keys, None without one."""
    for key in path:
        state = state.get(key) if isinstance(state, dict) else None
    return state


def pick(state: dict[str, Any], *roots: str) -> dict[str, np.ndarray]:
    """The flat state dict inside a checkpoint.

    Args:
      state: what `read` returned.
      roots: where it may lie, best first ("ema", "model", "trainer.var_wo_ddp": a dot leads one
        dict deeper); a checkpoint that has none of them is taken to be the state dict itself.

    Returns:
      Its arrays, without the names that wrappers add ("module." in front, "_orig_mod.").

    Raises:
      ConfigError: there are no arrays.
    """
    nested = (_nested(state, root.split(".")) for root in roots)
    found = next((s for s in nested if isinstance(s, dict)), state)
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
    if not arrays:
        raise ConfigError(f"checkpoint with {sorted(state)}: expected arrays, or one of {roots}")
    for wrapper in WRAPPERS:
        arrays = {k.replace(wrapper, ""): v for k, v in arrays.items()}
    while all(k.startswith("module.") for k in arrays):
        arrays = {k.removeprefix("module."): v for k, v in arrays.items()}
    return arrays


class Misfit(ConfigError):
    """A state dict that does not fit a config; `problems` names every entry that does not."""

    def __init__(self, what: str, problems: list[str]):
        super().__init__(f"{what}: {'; '.join(problems)}")
        self.problems = problems


class Converter:
    """Takes entries of a state dict by name and shape, in PyTorch's layout; keeps accounts.

    `finish` raises one error that lists everything missing, mis-shaped and left over; until then
    an entry that does not fit reads as zeros.
    """

    def __init__(self, state: dict[str, np.ndarray], what: str):
        self.state, self.what = state, what
        self.used: set[str] = set()
        self.problems: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The entry as float32."""
        self.used.add(name)
        if name not in self.state:
            self.problems.append(f"missing {name}")
        elif self.state[name].shape != shape:
            self.problems.append(f"{name} is {self.state[name].shape} instead of {shape}")
        else:
            return np.asarray(self.state[name], np.float32)
        return np.broadcast_to(np.float32(0), shape)

    def ignore(self, pattern: str) -> None:
        """Entries whose names start with this regular expression are not needed."""
        self.used |= {n for n in self.state if re.match(pattern, n)}

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True, ones: int = 0):
        """{kernel [in, out], bias}; the entry has `ones` more axes, 2 for a 1 x 1 convolution."""
        kernel = self.take(f"{name}.weight", (outputs, inputs) + (1,) * ones)
        layer = {"kernel": kernel.reshape(outputs, inputs).T}
        return layer | ({"bias": self.take(f"{name}.bias", (outputs,))} if bias else {})

    def conv(self, name: str, inputs: int, outputs: int, side: int = 3, bias: bool = True):
        """{kernel [side, side, in, out], bias} of a 2D convolution."""
        kernel = self.take(f"{name}.weight", (outputs, inputs, side, side))
        layer = {"kernel": kernel.transpose(2, 3, 1, 0)}
        return layer | ({"bias": self.take(f"{name}.bias", (outputs,))} if bias else {})

    def norm(self, name: str, channels: int) -> dict[str, np.ndarray]:
        """{scale, bias} of a normalization."""
        scale, bias = (self.take(f"{name}.{part}", (channels,)) for part in ("weight", "bias"))
        return {"scale": scale, "bias": bias}

    def finish(self, params: dict) -> dict:
        """`params`, once every entry has been used and fits.

        Raises:
          Misfit: listing every missing, unknown and mis-shaped entry.
        """
        unknown = [f"unknown {n}" for n in self.state if n not in self.used]
        if self.problems or unknown:
            raise Misfit(self.what, self.problems + unknown)
        return params


def stacked(layer: Callable[[int], dict], count: int) -> dict:
    """Parameters of a scanned stack: every leaf of `count` layers stacked along a first axis."""
    return jax.tree.map(_stack, *[layer(i) for i in range(count)])


def _stack(*leaves: np.ndarray) -> np.ndarray:
    """np.stack, which costs no memory where all leaves are one value, broadcast (see `take`)."""
    spread = all(leaf.ndim and not any(leaf.strides) for leaf in leaves)
    if spread and len({leaf.item(0) for leaf in leaves}) == 1:
        return np.broadcast_to(leaves[0], (len(leaves), *leaves[0].shape))
    return np.stack(leaves)
