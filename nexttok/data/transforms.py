"""Image transforms on NumPy arrays, float32 [H, W, C] in [-1, 1] unless said otherwise.

They run once per example, so their shapes are stated here and not checked at every call.
"""

import numpy as np
from PIL import Image

from nexttok.config import check

AUGMENTS = ("none", "affine", "crop_flip")


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]."""
    values = image.astype(np.float32)
    values /= 127.5
    values -= 1.0
    return values


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey <-> RGB: luma weights one way, repetition the other."""
    have = image.shape[-1]
    if have == channels:
        return image
    if channels == 3:
        return np.repeat(image[..., :1], 3, axis=-1)
    luma = image[..., :3] @ np.asarray([0.299, 0.587, 0.114], np.float32)
    return luma[..., None].astype(np.float32)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic, anti-aliased when shrinking, clipped to [-1, 1]."""
    planes = [
        np.asarray(Image.fromarray(image[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(image.shape[-1])
    ]
    return np.clip(np.stack(planes, -1), -1.0, 1.0).astype(np.float32)


def center_crop(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes the short side to `side`, then crops the centre."""
    h, w = image.shape[:2]
    scale = side / min(h, w)
    h, w = max(side, round(h * scale)), max(side, round(w * scale))
    image = resize(image, h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return image[top : top + side, left : left + side]


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """The image itself where it is [side, side, C], else its `center_crop`."""
    return image if image.shape[:2] == (side, side) else center_crop(image, side)


def affine(
    image: np.ndarray,
    rng: np.random.Generator,
    degrees: float = 10.0,
    scale: tuple[float, float] = (0.9, 1.1),
    shear: float = 0.1,
    shift: float = 0.06,
) -> np.ndarray:
    """Random small rotation, scaling, shear and shift (share of the side); black outside.

    Bilinear, by one gather per corner: several thousand 16 x 16 images a second on one core.
    """
    h, w = image.shape[:2]
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    size, skew = rng.uniform(*scale), rng.uniform(-shear, shear)
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    dy, dx = rng.uniform(-shift, shift, 2) * (h, w)
    y, x = np.arange(h)[:, None] - (h - 1) / 2 - dy, np.arange(w)[None] - (w - 1) / 2 - dx
    rows = (cos * y + (sin + skew * cos) * x + (h - 1) / 2).astype(np.float32)
    cols = (-sin * y + (cos - skew * sin) * x + (w - 1) / 2).astype(np.float32)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    rows, cols = np.clip(rows + 1, 0, h + 0.999), np.clip(cols + 1, 0, w + 0.999)
    r, c = rows.astype(np.int32), cols.astype(np.int32)
    fr, fc = (rows - r)[..., None], (cols - c)[..., None]
    top = padded[r, c] * (1 - fc) + padded[r, c + 1] * fc
    bottom = padded[r + 1, c] * (1 - fc) + padded[r + 1, c + 1] * fc
    return (top * (1 - fr) + bottom * fr).astype(np.float32)


def random_resized_crop(
    image: np.ndarray,
    side: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.5, 1.0),
) -> np.ndarray:
    """A square crop covering a random share of the largest square, resized to `side`."""
    h, w = image.shape[:2]
    crop = max(1, round(min(h, w) * np.sqrt(rng.uniform(*area))))
    top, left = rng.integers(0, h - crop + 1), rng.integers(0, w - crop + 1)
    return resize(image[top : top + crop, left : left + crop], side, side)


def augment(image: np.ndarray, name: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """Applies a named augmentation; the result is [side, side, C].

    Raises:
      ConfigError: unknown name.
    """
    check(name in AUGMENTS, "data.augment", name, " | ".join(AUGMENTS))
    if name == "crop_flip":
        image = random_resized_crop(image, side, rng)
        return image[:, ::-1] if rng.random() < 0.5 else image
    image = fit(image, side)
    return affine(image, rng) if name == "affine" else image
