"""Models of this library as one .safetensors file: arrays named "<stage>/<path>", and the config of
their run as JSON in its metadata."""

import json
import pathlib

import numpy as np

from nexttok.config import ConfigError, check
from nexttok.interop import tensors
from nexttok.interop.checkpoints import finite, guarded

KEY = "nexttok.config"  # one alone: the order of several differs from file to file


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], config: str) -> None:
    """Writes the file whole or not at all.

    Args:
      path: *.safetensors.
      arrays: by "<stage>/<path>", of any dtype that the format has.
      config: JSON.

    Raises:
      ConfigError: values that are not finite, or a file that cannot be written.
    """
    _check_finite(arrays, "out", path)
    try:
        tensors.write_safetensors(path, arrays, {KEY: config})
    except OSError as error:
        raise ConfigError(f"--out = {str(path)!r} could not be written: {error}") from error


def _check_finite(arrays, field, path):
    wrong = [name for name, array in arrays.items() if not finite(array)]
    if wrong:
        raise ConfigError(
            f"config.{field} = {str(path)!r}: {', '.join(wrong[:4])}: values that are not finite"
        )


def header(path: pathlib.Path, field: str) -> tuple[dict, set[str]]:
    """The config of the run, as JSON has it, and the names of the stages in the file.

    Raises:
      ConfigError: of config.<field>: a damaged file, or one that `write` did not write.
    """
    entries, metadata, _ = guarded(str(path), field, lambda: tensors.header(path))
    wrote = "a file that python -m nexttok.interop --export wrote"
    check(KEY in metadata, field, str(path), wrote)
    config = guarded(str(path), field, lambda: json.loads(metadata[KEY]))
    check(isinstance(config, dict), field, str(path), wrote)
    return config, {name.partition("/")[0] for name in entries}


def arrays(path: pathlib.Path, stage: str, field: str) -> dict[str, np.ndarray]:
    """The arrays of a stage, by path.

    Raises:
      ConfigError: a damaged file, or values that are not finite.
    """
    prefix = f"{stage}/"
    found = guarded(str(path), field, lambda: tensors.read_safetensors(path, prefix))
    _check_finite(found, field, path)
    return {name.removeprefix(prefix): array for name, array in found.items()}
