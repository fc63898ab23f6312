"""Files of named arrays: safetensors, NumPy's archives, flax's messages.

What a file claims is compared with the bytes that it has before memory is asked for.
"""

import json
import math
import os
import pathlib
import struct
import zipfile
from typing import Any

import flax.serialization
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

# An honest header takes a hundred bytes per array; float weights hardly compress at all.
MOST_HEADER, MOST_RATIO, SMALL = 2**24, 16, 2**26
DTYPES = {
    "BOOL": np.bool_,
    "C64": np.complex64,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    **{f"F{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
}


def header(path: pathlib.Path) -> tuple[dict[str, dict], dict[str, str], int]:
    """Entries and metadata of a .safetensors file, and where its data begin; no array is read.

    Raises:
      ValueError: entries that do not cover the file, one after the other, or that are of unknown
        dtype; other exceptions of a header that is no JSON.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, MOST_HEADER):
            raise ValueError(f"its header claims {length:,} bytes of a file of {size:,}")
        entries = json.loads(file.read(length))
    metadata, at = entries.pop("__metadata__", None) or {}, 0
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are no names with texts")
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name[:100]} is of unknown dtype {str(entry['dtype'])[:100]}")
        sane = all(type(n) is int and n >= 0 for n in entry["shape"]) and start == at
        count = np.dtype(DTYPES[entry["dtype"]]).itemsize * math.prod(entry["shape"])
        if not sane or count != end - start:
            raise ValueError(f"{name[:100]} claims other bytes than its shape and place say")
        at = end
    if at != size - 8 - length:
        raise ValueError(f"its arrays claim {at:,} bytes; it has {size - 8 - length:,}")
    return entries, metadata, 8 + length


def read_safetensors(path: pathlib.Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays whose names start with `prefix`.

    Raises:
      Exception: see `header`.
    """
    entries, _, begin = header(path)
    arrays = {}
    with path.open("rb") as file:
        for name, entry in entries.items():
            if name.startswith(prefix):
                start, end = entry["data_offsets"]
                file.seek(begin + start)
                values = np.frombuffer(file.read(end - start), DTYPES[entry["dtype"]])
                arrays[name] = values.reshape(entry["shape"])
    return arrays


def write_safetensors(
    path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes a file whole or not at all.

    Raises:
      OSError: there is no room, or the folder cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    try:
        save_file({k: np.asarray(v, order="C") for k, v in arrays.items()}, partial, metadata)
        os.replace(partial, path)
    except Exception as error:  # the writer's own kind, too
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    """An archive that is no bomb.

    Raises:
      ValueError: it expands beyond measure, or is packed in a way that cannot be bounded;
        zipfile.BadZipFile: it is none.
    """
    archive = zipfile.ZipFile(path)
    entries, size = archive.infolist(), path.stat().st_size
    expanded = sum(entry.file_size for entry in entries)
    kinds = {entry.compress_type for entry in entries} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    if kinds or expanded > max(SMALL, MOST_RATIO * size):
        archive.close()
        said = "is packed by other means than deflation" if kinds else f"expands to {expanded:,}"
        raise ValueError(f"its {size:,} bytes: an archive that {said}")
    return archive


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of NumPy's archive, without pickled ones.

    Raises:
      Exception: of any kind, of a file that is damaged or holds anything else.
    """
    with open_zip(path) as archive:
        return {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array; NumPy's own reader asks for the memory that a header claims."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name[:100]} is of version {version}")
        first, second = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        shape, columns, dtype = (first if version == (1, 0) else second)(file)
        claimed = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{name[:100]} holds {dtype} of shape {shape}")
        data = file.read(min(claimed, archive.getinfo(name).file_size))
    if len(data) != claimed:
        raise ValueError(f"{name[:100]} claims {claimed:,} bytes and has {len(data):,}")
    values = np.frombuffer(data, dtype)
    return values.reshape(shape[::-1]).T if columns else values.reshape(shape)


def read_msgpack(path: pathlib.Path) -> Any:
    """A tree of flax: dicts of arrays.

    Raises:
      Exception: of any kind, of a file that is damaged or holds anything else.
    """
    return flax.serialization.msgpack_restore(path.read_bytes())
