"""Crops of the photographs that scikit-learn and scikit-image ship inside their wheels.

Test crops come from photographs that no train crop comes from.
"""

import numpy as np
import skimage.data
from sklearn.datasets import load_sample_image

from nexttok.data.source import DataConfig, DataInfo
from nexttok.data.transforms import random_resized_crop, resize, to_channels, to_float

TRAIN = (
    "china",
    "flower",
    "astronaut",
    "cat",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
)
TEST = ("coffee", "rocket")
TRAIN_CROPS, TEST_CROPS = 20_000, 400


def photograph(name: str) -> np.ndarray:
    """A photograph, float32 [H, W, 3] in [-1, 1]."""
    if name in ("china", "flower"):
        return to_float(load_sample_image(f"{name}.jpg"))
    return to_float(np.asarray(getattr(skimage.data, name)()))


class Photos:
    """A fixed sequence of square crops per split.

    Where training crops are to be cropped again (crop_flip), they come half as large again as the
    resolution, so that the second crop does not blur them.
    """

    info = DataInfo(("photo",))

    def __init__(self, cfg: DataConfig, split: str):
        """Loads the split's photographs, reduced so that a crop shows more than texture."""
        self.cfg, self.split = cfg, split
        self.names = TRAIN if split == "train" else TEST
        self.photos = [self._reduced(photograph(name)) for name in self.names]
        again = split == "train" and cfg.augment == "crop_flip"
        self.side = cfg.resolution * 3 // 2 if again else cfg.resolution

    def _reduced(self, photo: np.ndarray) -> np.ndarray:
        side = max(self.cfg.resolution, min(min(photo.shape[:2]), 4 * self.cfg.resolution))
        scale = side / min(photo.shape[:2])
        h, w = (max(side, round(n * scale)) for n in photo.shape[:2])
        return to_channels(resize(photo, h, w), self.cfg.channels)

    def __len__(self) -> int:
        return TRAIN_CROPS if self.split == "train" else TEST_CROPS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The index-th crop of a fixed sequence: photographs in turn, position and size random."""
        rng = np.random.default_rng((index, self.split == "test"))
        photo = self.photos[index % len(self.photos)]
        image = random_resized_crop(photo, self.side, rng, area=(0.1, 1.0))
        return {"image": image, "label": np.int32(0), "photo": np.int32(index % len(self.photos))}


def make(cfg: DataConfig, argument: str, split: str, seed: int) -> Photos:
    """The photographs; they take no argument and do not depend on the seed."""
    del argument, seed
    return Photos(cfg, split)
