"""results.json: every final number of a run; files that are written whole or not at all."""

import io
import json
import math
import os
import pathlib

import numpy as np

from nexttok.config import check


def write_bytes(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Writes a file whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, text.encode())


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Writes a .npz whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getbuffer())


def _check_finite(value, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_finite(inner, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} = {value}: expected a finite number")


def write_results(path: str | os.PathLike, results: dict) -> None:
    """Writes results as sorted JSON.

    Raises:
      ValueError: a number is not finite; nothing is written.
    """
    _check_finite(results, "results")
    write_text(path, json.dumps(results, indent=2, sort_keys=True) + "\n")


def read_results(path: str | os.PathLike) -> dict:
    """Reads what write_results wrote."""
    return json.loads(pathlib.Path(path).read_text())


def read_run(workdir: str | os.PathLike) -> tuple[dict, dict]:
    """config.json and results.json of a finished run.

    Raises:
      ConfigError: the workdir lacks them.
    """
    files = [pathlib.Path(workdir) / name for name in ("config.json", "results.json")]
    there = all(f.is_file() for f in files)
    check(there, "workdir", str(workdir), "the workdir of a finished run")
    return read_results(files[0]), read_results(files[1])
