"""Checkpoint files in, nothing executed, and names in a state dict turned into parameters.

What a file claims is checked against its size before memory is asked for: see tensors.py and
pickles.py.
"""

import pathlib
import re
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nexttok.config import ConfigError, check
from nexttok.interop import pickles, tensors

READERS = {
    ".safetensors": tensors.read_safetensors,
    ".npz": tensors.read_npz,
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".th"), pickles.read),
    **dict.fromkeys((".msgpack", ""), tensors.read_msgpack),
}
SHOWN = 40  # entries of an error
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def read(path: str, where: str = "checkpoint") -> dict[str, Any]:
    """Reads a checkpoint file; nested dicts of a PyTorch or flax file stay nested.

    Args:
      path: .safetensors, .npz, flax's .msgpack or no suffix, or PyTorch's .pth | .pt | .ckpt |
        .bin | .th, zipped or older.
      where: config key that errors name.

    Returns:
      Names to arrays (bfloat16 included), and to whatever plain values a PyTorch file holds.

    Raises:
      ConfigError: no such file, another format, a damaged file, one that claims more than it holds
        or expands beyond measure, or a pickle that holds anything but tensors and plain containers.
    """
    file = pathlib.Path(path)
    fits = file.is_file() and file.suffix in READERS
    check(fits, where, path, f"a file ending in {' | '.join(filter(None, READERS))}")
    state = guarded(path, where, lambda: READERS[file.suffix](file))
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    check(named, where, path, f"names with arrays, not a {type(state).__name__} of others")
    return state


def guarded(path: str, where: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; what it raises, as a ConfigError of config.<where> = `path`."""
    try:
        return read()
    except ConfigError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in its reader
        said = str(error) or type(error).__name__
        raise ConfigError(f"config.{where} = {path!r}: {said[:300]}") from error


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
    arrays = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
    if not arrays:
        names = reprlib.repr(sorted(map(str, state)))
        raise ConfigError(f"checkpoint with {names}: expected arrays, or one of {roots}")
    for wrapper in WRAPPERS:
        arrays = {k.replace(wrapper, ""): v for k, v in arrays.items()}
    while all(k.startswith("module.") for k in arrays):
        arrays = {k.removeprefix("module."): v for k, v in arrays.items()}
    return arrays


class Misfit(ConfigError):
    """A state dict that does not fit a config; `problems` names every entry that does not."""

    def __init__(self, what: str, problems: list[str]):
        shown = [p if len(p) <= 200 else f"{p[:200]}..." for p in problems[:SHOWN]]
        more = len(problems) - len(shown)
        super().__init__(f"{what}: {'; '.join(shown)}" + (f"; {more:,} more" if more else ""))
        self.problems = problems


def _real(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, np.number) and not jnp.issubdtype(dtype, np.complexfloating)


def finite(values: np.ndarray) -> bool:
    """Whether all values are finite; takes no memory of their size, none either for zeros that
    are one value, broadcast."""
    one = values[tuple(slice(1) if step == 0 else slice(None) for step in values.strides)]
    if not one.size or not jnp.issubdtype(one.dtype, np.inexact):
        return True
    return bool(np.isfinite(one.min()) and np.isfinite(one.max()))


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
        elif not _real(self.state[name].dtype):
            self.problems.append(f"{name} holds {self.state[name].dtype} instead of numbers")
        else:
            with np.errstate(over="ignore"):  # told below
                values = np.asarray(self.state[name], np.float32)
            if finite(values):
                return values
            self.problems.append(f"{name} holds values that are not finite")
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
