"""Sets of images as uint8 [N, H, W, C], read by parts: folders, .npy, and .npz with `arr_0`.

A workdir stands for its file images/originals.npz, samples.npz or reconstructions.npz, which
`nexttok.main --mode=images` writes.
"""

import concurrent.futures
import hashlib
import math
import pathlib
import weakref
import zipfile
import zlib
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from nexttok.config import ConfigError, check

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
DAMAGED = (
    OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
LONGEST = 4096  # side of an image
BYTES = "uint8 [N, H, W, 1 or 3]; of x in [-1, 1] np.uint8(np.round(127.5 * x + 127.5))"


@runtime_checkable
class Images(Protocol):
    """A set of images of one size.

    Attributes:
      shape: [N, H, W, C]; key: tells it from sets of other contents.
    """

    shape: tuple[int, int, int, int]
    key: str

    def __getitem__(self, part: slice) -> np.ndarray:
        """Images part.start .. part.stop - 1, uint8 [n, H, W, C]."""


def _stamp(path: pathlib.Path) -> str:
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


def cropped(image: Image.Image, side: int) -> Image.Image:
    """The centre square at `side`, as ADM prepares ImageNet (Dhariwal and Nichol, 2021).

    Halved by means while both sides are twice as long, then bicubic.
    """
    while min(image.size) >= 2 * side:
        half = tuple(n // 2 for n in image.size)
        image = image.resize(half, Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = (round(n * scale) for n in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


class Folder:
    """The image files of a folder and its subfolders, by name, as RGB."""

    def __init__(self, root: pathlib.Path, side: int = 0):
        """`side` crops every image to a square; without it all must have one size.

        Raises:
          ConfigError: no images, a file that is none, or images of several sizes.
        """
        self.root, self.side = root, side
        self.files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        allowed = f"a folder with files ending in {' | '.join(SUFFIXES)}"
        check(bool(self.files), "images", str(root), allowed)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            sizes = list(pool.map(self._size, self.files))
        odd = next((f for f, s in zip(self.files, sizes, strict=True) if s != sizes[0]), None)
        if odd is not None:
            raise ConfigError(
                f"config.images = {str(root)!r}: expected images of one size, or --crop=SIDE "
                f"({odd.name} differs from {self.files[0].name}, {sizes[0][1]} x {sizes[0][0]})"
            )
        self.shape = (len(self.files), *sizes[0], 3)
        stamps = "\n".join([f"crop {side}", *map(_stamp, self.files)])
        self.key = hashlib.sha256(stamps.encode()).hexdigest()

    def _size(self, path: pathlib.Path) -> tuple[int, int]:
        """(height, width) as it will be read."""
        with self._opened(path) as image:
            return (self.side, self.side) if self.side else image.size[::-1]

    @staticmethod
    def _opened(path: pathlib.Path) -> Image.Image:
        try:
            return Image.open(path)
        except UNREADABLE as error:
            raise ConfigError(f"config.images = {str(path)!r}: {error}") from error

    def _read(self, path: pathlib.Path) -> np.ndarray:
        with self._opened(path) as image:
            try:
                rgb = image.convert("RGB")
                return np.asarray(cropped(rgb, self.side) if self.side else rgb)
            except UNREADABLE as error:
                raise ConfigError(f"config.images = {str(path)!r}: {error}") from error

    def __getitem__(self, part: slice) -> np.ndarray:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._read, self.files[part])))


class Stored:
    """An array of a .npy file, or `arr_0` of a .npz, read where it lies and never whole."""

    def __init__(self, path: pathlib.Path):
        """Reads the header.

        Raises:
          ConfigError: no such array, a damaged file, or one that is no image array.
        """
        self.path, self.key = path, hashlib.sha256(_stamp(path).encode()).hexdigest()
        try:
            self.file = self._open()
            weakref.finalize(self, self.file.close)
            self.shape, length = self._header()
        except DAMAGED as error:
            raise ConfigError(f"config.images = {str(path)!r}: {error}") from error
        fits = len(self.shape) == 4 and self.shape[-1] in (1, 3) and min(self.shape) > 0
        fits = fits and max(self.shape[1:]) <= LONGEST
        allowed = f"{BYTES}, sides up to {LONGEST}, not {list(self.shape)}"
        check(fits, "images", str(path), allowed)
        whole = self.start + math.prod(self.shape)
        check(length >= whole, "images", str(path), f"{whole} bytes of images, not {length}")

    def _open(self):
        if self.path.suffix == ".npy":
            return self.path.open("rb")
        archive = zipfile.ZipFile(self.path)
        return archive.open("arr_0.npy")

    def _header(self) -> tuple[tuple[int, ...], int]:
        """Shape, and length of the file; sets where the numbers start."""
        version = np.lib.format.read_magic(self.file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = readers[version](self.file)
        if dtype != np.uint8 or fortran:
            raise ValueError(f"expected {BYTES}, not {dtype}")
        self.start = self.file.tell()
        if self.path.suffix == ".npy":
            return shape, self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return shape, archive.getinfo("arr_0.npy").file_size

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(self.shape[0])
        size = math.prod(self.shape[1:])
        try:
            self.file.seek(self.start + first * size)
            found = self.file.read((last - first) * size)
            return np.frombuffer(found, np.uint8).reshape(last - first, *self.shape[1:])
        except DAMAGED as error:
            raise ConfigError(f"config.images = {str(self.path)!r}: {error}") from error


def within(path: str, name: str) -> pathlib.Path:
    """`path`, or of a workdir its file of images `name`.

    Raises:
      ConfigError: there is nothing.
    """
    found = pathlib.Path(path)
    if (found / "config.json").is_file():
        found = found / "images" / f"{name}.npz"
        allowed = f"a workdir with images/{name}.npz, which nexttok.main --mode=images writes"
        check(found.is_file(), "images", path, allowed)
    check(found.exists(), "images", path, "a folder of images, .npy, .npz, or a workdir")
    return found


def open_images(path: pathlib.Path, side: int = 0) -> Images:
    """The images of a folder or file; `side` crops those of a folder.

    Raises:
      ConfigError: what is there cannot be read as images.
    """
    if path.is_dir():
        return Folder(path, side)
    check(path.suffix in (".npy", ".npz"), "images", str(path), "a folder, .npy or .npz")
    check(not side, "crop", side, f"0, as {path.name} holds images of one size")
    return Stored(path)
