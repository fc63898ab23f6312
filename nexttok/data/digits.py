"""scikit-learn's handwritten digits: 1,797 real 8 x 8 images, split once and for all."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from nexttok.data.source import DataConfig, DataInfo
from nexttok.data.transforms import resize, to_channels

TRAIN = 1400


class Digits:
    """1,400 training and 397 test images, stratified by class, at `cfg.resolution`."""

    info = DataInfo(tuple("0123456789"))

    def __init__(self, cfg: DataConfig, split: str):
        """Resizes all images of the split once."""
        data = load_digits()
        train, test = train_test_split(
            np.arange(len(data.target)), train_size=TRAIN, random_state=0, stratify=data.target
        )
        rows = train if split == "train" else test
        pixels = (data.images[rows] / 8.0 - 1.0).astype(np.float32)[..., None]
        side = cfg.resolution
        self.images = [to_channels(resize(x, side, side), cfg.channels) for x in pixels]
        self.labels = data.target[rows].astype(np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}


def make(cfg: DataConfig, argument: str, split: str, seed: int) -> Digits:
    """The digits; they take no argument and do not depend on the seed."""
    del argument, seed
    return Digits(cfg, split)
