"""Users' own images: <path>/<class>/*.png, or <path>/{train,test}/<class>/*.png.

Without a test folder a tenth of the files, chosen by the hash of their names, is held out.
Unreadable files are named, skipped and counted.
"""

import logging
import pathlib
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from nexttok.config import check
from nexttok.data.source import DataConfig, DataInfo
from nexttok.data.transforms import to_channels, to_float

log = logging.getLogger("nexttok")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read(path: pathlib.Path, channels: int) -> np.ndarray:
    """An image file as float32 [H, W, channels] in [-1, 1]."""
    with Image.open(path) as image:
        return to_channels(to_float(np.asarray(image.convert("RGB"))), channels)


def _problem(path: pathlib.Path) -> str:
    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"{path}: {error}"
    return ""


class Folder:
    """Image files in class folders; classes are the sorted folder names."""

    def __init__(self, cfg: DataConfig, root: str, split: str):
        """Lists the split's files and drops those that cannot be read.

        Raises:
          ConfigError: no such folder, no classes, or no readable image.
        """
        base = pathlib.Path(root)
        check(base.is_dir(), "data.source", cfg.source, f"a folder that exists, not {root!r}")
        parted = (base / "train").is_dir() and (base / "test").is_dir()
        classes = sorted(
            p.name for p in (base / "train" if parted else base).iterdir() if p.is_dir()
        )
        check(bool(classes), "data.source", cfg.source, "a folder with one folder per class")
        self.cfg, files, problems = cfg, [], []
        for label, name in enumerate(classes):
            place = base / split / name if parted else base / name
            for path in sorted(place.rglob("*")):
                if path.suffix.lower() not in SUFFIXES:
                    continue
                held = zlib.crc32(str(path.relative_to(base)).encode()) % 10 == 0
                if not parted and held != (split == "test"):
                    continue
                if problem := _problem(path):
                    problems.append(problem)
                    log.warning("unreadable image skipped: %s", problem)
                else:
                    files.append((path, label))
        check(bool(files), "data.source", cfg.source, f"readable images for the {split} split")
        self.files = files
        self.info = DataInfo(tuple(classes), tuple(problems))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path, label = self.files[index]
        return {"image": read(path, self.cfg.channels), "label": np.int32(label)}


def make(cfg: DataConfig, argument: str, split: str, seed: int) -> Folder:
    """The folder `argument`; it does not depend on the seed."""
    del seed
    return Folder(cfg, argument, split)
