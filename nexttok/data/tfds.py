"""Any TensorFlow Datasets set prepared as ArrayRecord, read without TensorFlow.

Prepare one with `tfds build <name> --file_format=array_record`.
"""

import numpy as np
import tensorflow_datasets as tfds

from nexttok.config import check
from nexttok.data.source import DataConfig, DataInfo, MissingData
from nexttok.data.transforms import to_channels, to_float


class Tfds:
    """A split with features `image` and, for labelled sets, `label`.

    Where there is no test split, or one whose labels are withheld (ImageNet's are -1), validation
    serves as test.
    """

    def __init__(self, cfg: DataConfig, name: str, split: str):
        """Opens the prepared data set under `cfg.root`.

        Raises:
          MissingData: it is not there, or was not prepared as ArrayRecord.
          ConfigError: it has no images or no class names.
        """
        try:
            builder = tfds.builder(name, data_dir=cfg.root or None, file_format="array_record")
        except Exception as error:  # TFDS raises many types; each means "not to be had"
            raise _missing(cfg, name, str(error).splitlines()[0]) from error
        splits, features = builder.info.splits, builder.info.features
        if not splits:
            raise _missing(cfg, name, "it is not there")
        check("image" in features, "data.source", cfg.source, "a data set with a feature 'image'")
        label = dict(features).get("label")
        named = label is None or hasattr(label, "names")
        check(named, "data.source", cfg.source, "a data set whose feature 'label' has class names")
        if split == "test" and "test" not in splits:
            split = "validation"
        self.data = _open(builder, cfg, name, split)
        if split == "test" and "validation" in splits and self.data[0].get("label", 0) < 0:
            self.data = _open(builder, cfg, name, "validation")
        self.cfg, self.info = cfg, DataInfo(tuple(label.names) if label else ("image",))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self.data[int(index)]
        image = to_channels(to_float(np.asarray(example["image"])), self.cfg.channels)
        return {"image": image, "label": np.int32(example.get("label", 0))}


def _open(builder, cfg: DataConfig, name: str, split: str):
    if split not in builder.info.splits:
        raise _missing(cfg, name, f"it has the splits {sorted(builder.info.splits)}")
    try:
        return builder.as_data_source(split=split)
    except Exception as error:  # as above
        raise _missing(cfg, name, str(error).splitlines()[0]) from error


def _missing(cfg: DataConfig, name: str, why: str) -> MissingData:
    root = cfg.root or "the default TFDS data_dir"
    return MissingData(
        f"config.data.source = {cfg.source!r}: expected a data set prepared as ArrayRecord under "
        f"config.data.root ({root}), as by `tfds build {name} --file_format=array_record` ({why})"
    )


def make(cfg: DataConfig, argument: str, split: str, seed: int) -> Tfds:
    """The data set `argument`; it does not depend on the seed."""
    del seed
    return Tfds(cfg, argument, split)
