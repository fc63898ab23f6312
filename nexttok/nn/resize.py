"""Resizing as matrices [out, size], one per axis."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def area(out: int, size: int) -> Float[np.ndarray, "o i"]:
    """Adaptive average pooling of `size` samples to `out`: bins overlap unless they divide."""
    i, at = np.arange(out)[:, None], np.arange(size)[None]
    inside = (at >= i * size // out) & (at < -(-(i + 1) * size // out))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def bilinear(out: int, size: int, corners: bool = False) -> Float[np.ndarray, "o i"]:
    """Linear interpolation: clamped borders, no antialiasing, half-pixel centres.

    With `corners` samples lie at i size / out, as in resize_bilinear of TensorFlow 1.
    """
    half = 0.0 if corners else 0.5
    centre = np.clip((np.arange(out) + half) * size / out - half, 0, size - 1)
    matrix = np.zeros((out, size))
    base = np.floor(centre).astype(int)
    for tap, weight in ((0, 1 - centre + base), (1, centre - base)):
        np.add.at(matrix, (np.arange(out), np.minimum(base + tap, size - 1)), weight)
    return matrix.astype(np.float32)


def bicubic(out: int, size: int, offset: float = 0.0) -> Float[np.ndarray, "o i"]:
    """Cubic convolution with a = -3/4: half-pixel centres, clamped borders, no antialiasing.

    `offset` is added to `out` in the scale alone: samples lie size / (out + offset) apart.
    """
    centre = (np.arange(out) + 0.5) * size / (out + offset) - 0.5
    base = np.floor(centre).astype(int)
    matrix = np.zeros((out, size))
    for tap in (-1, 0, 1, 2):
        gap, a = np.abs(centre - (base + tap)), -0.75
        near = (a + 2) * gap**3 - (a + 3) * gap**2 + 1
        far = a * (gap**3 - 5 * gap**2 + 8 * gap - 4)
        at = np.clip(base + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(out), at), np.where(gap <= 1, near, far))
    return matrix.astype(np.float32)


def spectral(out: int, size: int) -> Float[np.ndarray, "o i"]:
    """`size` samples as `out` of the same waves, those of fewer than min(out, size) / 2 periods.

    Shrinking then enlarging drops the other waves and keeps these.
    """
    least = min(out, size)
    at, to = np.arange(size) / size, np.arange(out) / out
    count = (least - 1) // 2
    waves = 2 * np.pi * np.arange(1, count + 1)
    angles = waves[:, None, None] * (to[:, None] - at[None])
    matrix = (1 + 2 * np.cos(angles).sum(0)) / size if out != size else np.eye(size)
    return matrix.astype(np.float32)


def resample(
    x: Float[Array, "B h w C"],
    rows: Float[np.ndarray, "o h"] | Float[Array, "o h"],
    columns: Float[np.ndarray, "p w"] | Float[Array, "p w"] | None = None,
) -> Float[Array, "B o p C"]:
    """Maps resized by a matrix along each axis, by the same one where `columns` is None; in full
    float32."""
    rows, columns = jnp.asarray(rows), jnp.asarray(rows if columns is None else columns)
    x = jnp.einsum("pi,bijc->bpjc", rows, x, precision="highest")
    return jnp.einsum("qj,bpjc->bpqc", columns, x, precision="highest")
