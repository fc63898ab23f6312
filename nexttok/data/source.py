"""What every data source provides."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from nexttok.config import ConfigError


class MissingData(ConfigError):
    """The data set is not there."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """`config.data`: see configs/common.py."""

    source: str
    root: str
    resolution: int
    channels: int
    num_classes: int
    frames: int
    augment: str
    workers: int
    prefetch: int


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Facts about a data set.

    Attributes:
      class_names: one name per class.
      problems: files that could not be read, by name.
    """

    class_names: tuple[str, ...]
    problems: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """A split of a data set with random access.

    `self[i]` is a dict with `image` (float32 [H, W, C] in [-1, 1], any size; videos [T, H, W, C] at
    the config's resolution), `label` (int) and possibly more.
    """

    info: DataInfo

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Example `index`."""
