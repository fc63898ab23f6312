"""Users' own images: <path>/<class>/*.png, or <path>/{train,test}/<class>/*.png; of animated
pictures (GIF, WebP, PNG, TIFF), clips.

Without a test folder a tenth of the files, chosen by the hash of their names, is held out.
Unreadable files are named, skipped and counted. Files are ordered by the same hash, so that the
first of them are of all classes.
"""

import concurrent.futures
import logging
import pathlib
import zlib

import numpy as np
from PIL import ImageOps

from nexttok.config import check
from nexttok.data.files import SUFFIXES, Unreadable, check_size, picture
from nexttok.data.source import DataConfig, DataInfo, MissingData
from nexttok.data.transforms import fit, to_channels, to_float

log = logging.getLogger("nexttok")


def pixels(path: pathlib.Path) -> np.ndarray:
    """An image file, upright, as uint8 [H, W, 3].

    Raises:
      Unreadable: see files.py; more than 8 bits per channel.
    """
    with picture(path) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"more than 8 bits per channel (mode {image.mode})")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def read(path: pathlib.Path, channels: int) -> np.ndarray:
    """An image file, upright, as float32 [H, W, channels] in [-1, 1].

    Raises:
      Unreadable: as `pixels` does.
    """
    return to_channels(to_float(pixels(path)), channels)


def read_clip(path: pathlib.Path, cfg: DataConfig) -> np.ndarray:
    """The middle `cfg.frames` frames of an animated picture, [T, H, W, C] at the resolution.

    Raises:
      Unreadable: see files.py; fewer frames.
    """
    with picture(path) as image:
        count = getattr(image, "n_frames", 1)
        if count < cfg.frames:
            raise ValueError(f"{count} frames, fewer than data.frames = {cfg.frames}")
        first, clip = (count - cfg.frames) // 2, []
        for i in range(count):  # a frame may hold only what differs from the one before
            image.seek(i)
            check_size(image)
            if first <= i < first + cfg.frames:
                frame = to_channels(to_float(np.asarray(image.convert("RGB"))), cfg.channels)
                clip.append(fit(frame, cfg.resolution))
    return np.stack(clip)


def _example(path: pathlib.Path, cfg: DataConfig) -> np.ndarray:
    return read_clip(path, cfg) if cfg.frames else read(path, cfg.channels)


def _problem(path: pathlib.Path, cfg: DataConfig) -> str:
    try:
        read_clip(path, cfg) if cfg.frames else pixels(path)
    except Unreadable as error:
        return f"{path}: {error}"
    return ""


def _subfolders(path: pathlib.Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir())


def _listed(base: pathlib.Path, classes: list[str]) -> list[tuple[int, pathlib.Path, int]]:
    """(hash, path, label) of every image file, ordered by the hash of its path below `base`."""
    files = [
        (zlib.crc32(path.relative_to(base).as_posix().encode()), path, label)
        for label, name in enumerate(classes)
        for path in (base / name).rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.is_dir()
    ]
    return sorted(files)


class Folder:
    """Image files in class folders; classes are the sorted folder names."""

    def __init__(self, cfg: DataConfig, root: str, split: str):
        """Lists the split's files and drops those that cannot be read.

        Raises:
          MissingData: no such folder.
          ConfigError: no classes, or no readable image.
        """
        base = pathlib.Path(root)
        if not base.is_dir():
            raise MissingData(
                f"config.data.source = {cfg.source!r}: expected a folder that exists, not {root!r}"
            )
        top = base / "train" if (base / "train").is_dir() else base
        classes = _subfolders(top)
        check(bool(classes), "data.source", cfg.source, "a folder with one folder per class")
        if top != base and (base / "test").is_dir():
            strangers = set(_subfolders(base / "test")) - set(classes)
            check(not strangers, "data.source", cfg.source,
                  f"test classes among those of train, not {sorted(strangers)}")  # fmt: skip
            files = _listed(base / split, classes)
        else:
            held = split == "test"
            files = [f for f in _listed(top, classes) if (f[0] % 10 == 0) == held]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            problems = list(pool.map(lambda file: _problem(file[1], cfg), files))
        for problem in filter(None, problems):
            log.warning("unreadable image skipped: %s", problem)
        pairs = zip(files, problems, strict=True)
        self.cfg, self.files = cfg, [(path, label) for (_, path, label), bad in pairs if not bad]
        check(bool(self.files), "data.source", cfg.source, f"readable images for the {split} split")
        self.info = DataInfo(tuple(classes), tuple(filter(None, problems)))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path, label = self.files[index]
        return {"image": _example(path, self.cfg), "label": np.int32(label)}


def make(cfg: DataConfig, argument: str, split: str, seed: int) -> Folder:
    """The folder `argument`; it does not depend on the seed."""
    del seed
    return Folder(cfg, argument, split)
