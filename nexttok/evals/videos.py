"""Videos among pictures: frames are measured one by one, and shown and judged side by side."""

import os
import pathlib

import numpy as np
from jaxtyping import Float
from PIL import Image

from nexttok.evals.pictures import to_uint8


def frames(x: Float[np.ndarray, "B *s C"]) -> Float[np.ndarray, "M H W C"]:
    """The frames of videos [B, T, H, W, C] as M = B T pictures; pictures stay as they are."""
    return x.reshape(-1, *x.shape[-3:])


def strip(x: Float[np.ndarray, "B *s C"]) -> Float[np.ndarray, "B H W C"]:
    """Videos [B, T, H, W, C] as pictures [B, H, T W, C], frames from left to right."""
    if x.ndim == 4:
        return x
    b, t, h, w, c = x.shape
    return x.transpose(0, 2, 1, 3, 4).reshape(b, h, t * w, c)


def save_animation(
    path: str | os.PathLike, videos: Float[np.ndarray, "R K T H W C"], cell: int = 64
) -> None:
    """Writes R x K videos side by side as one endless GIF, 6 frames a second.

    Args:
      path: of the file, written whole or not at all.
      videos: in [-1, 1]; enlarged by a whole factor to about `cell` pixels.
      cell: intended size of a frame.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns, count, high, wide, channels = videos.shape
    zoom = max(1, round(cell / max(high, wide)))
    tiled = videos.transpose(2, 0, 3, 1, 4, 5).reshape(count, rows * high, columns * wide, channels)
    pixels = to_uint8(tiled).repeat(zoom, 1).repeat(zoom, 2)
    first, *rest = [Image.fromarray(frame) for frame in pixels]
    partial = path.with_name(path.name + ".partial")
    first.save(partial, "GIF", save_all=True, append_images=rest, duration=160, loop=0)
    os.replace(partial, path)
