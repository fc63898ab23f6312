"""Any TensorFlow Datasets set prepared as ArrayRecord, read without TensorFlow.

Prepare one with `tfds build <name> --file_format=array_record`.
"""

import numpy as np
import tensorflow_datasets as tfds

from nexttok.config import ConfigError, check
from nexttok.data.source import DataConfig, DataInfo
from nexttok.data.transforms import to_channels, to_float


class Tfds:
    """A split with features `image` and, for labelled sets, `label`; validation serves as test."""

    def __init__(self, cfg: DataConfig, name: str, split: str):
        """Opens the prepared data set under `cfg.root`.

        Raises:
          ConfigError: it is not there, was not prepared as ArrayRecord, or has no images.
        """
        try:
            builder = tfds.builder(name, data_dir=cfg.root or None, file_format="array_record")
        except Exception as error:  # TFDS raises many types; each means "not to be had"
            raise _missing(cfg, name, str(error).splitlines()[0]) from error
        if split == "test" and "test" not in builder.info.splits:
            split = "validation"
        if split not in builder.info.splits:
            raise _missing(cfg, name, f"it has the splits {sorted(builder.info.splits)}")
        features = builder.info.features
        check("image" in features, "data.source", cfg.source, "a data set with a feature 'image'")
        try:
            self.data = builder.as_data_source(split=split)
        except Exception as error:
            raise _missing(cfg, name, str(error).splitlines()[0]) from error
        names = features["label"].names if "label" in features else ("image",)
        self.cfg, self.info = cfg, DataInfo(tuple(names))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self.data[int(index)]
        image = to_channels(to_float(np.asarray(example["image"])), self.cfg.channels)
        return {"image": image, "label": np.int32(example.get("label", 0))}


def _missing(cfg: DataConfig, name: str, why: str) -> ConfigError:
    root = cfg.root or "the default TFDS data_dir"
    return ConfigError(
        f"config.data.source = {cfg.source!r}: expected a data set prepared as ArrayRecord under "
        f"config.data.root ({root}), as by `tfds build {name} --file_format=array_record` ({why})"
    )


def make(cfg: DataConfig, argument: str, split: str, seed: int) -> Tfds:
    """The data set `argument`; it does not depend on the seed."""
    del seed
    return Tfds(cfg, argument, split)
