"""Labelled grids of images, as PNG."""

import os
import pathlib

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (32, 36, 44), (255, 255, 255)


def to_uint8(images: Float[np.ndarray, "*s C"]) -> np.ndarray:
    """[-1, 1] -> 0 .. 255, grey repeated to RGB."""
    pixels = np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels


def _zoom(side: int, cell: int) -> int:
    return max(1, round(cell / side))


def image_grid(
    images: Float[np.ndarray, "R K H W C"],
    title: str = "",
    row_labels: list[str] | None = None,
    col_labels: list[str] | None = None,
    cell: int = 64,
) -> np.ndarray:
    """Draws R x K images as one uint8 picture [h, w, 3].

    Args:
      images: in [-1, 1]; enlarged by a whole factor to about `cell` pixels, without smoothing.
      title: over the grid.
      row_labels, col_labels: one per row, one per column.
      cell: intended size of an image.
    """
    rows, cols, height, width, _ = images.shape
    zoom = _zoom(max(height, width), cell)
    h, w, gap = height * zoom, width * zoom, 6
    font, bold = ImageFont.load_default(15), ImageFont.load_default(18)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def length(text, face):
        return int(np.ceil(ruler.textlength(text, font=face)))

    left = gap + (max(length(t, font) for t in row_labels) + 2 * gap if row_labels else gap)
    w_cell = max(w, *(length(t, font) for t in col_labels)) if col_labels else w
    top = gap + (30 if title else 0) + (24 if col_labels else 0)
    body = left + cols * (w_cell + gap) + gap
    canvas = Image.new(
        "RGB", (max(body, length(title, bold) + 4 * gap), top + rows * (h + gap) + gap), PAPER
    )
    pen = ImageDraw.Draw(canvas)
    if title:
        pen.text((2 * gap, gap), title, INK, bold)
    pixels = to_uint8(images)
    for r in range(rows):
        y = top + r * (h + gap)
        if row_labels:
            pen.text((left - 2 * gap, y + h // 2), row_labels[r], INK, font, anchor="rm")
        for k in range(cols):
            x = left + k * (w_cell + gap) + (w_cell - w) // 2
            picture = Image.fromarray(pixels[r, k]).resize((w, h), Image.Resampling.NEAREST)
            canvas.paste(picture, (x, y))
            if r == 0 and col_labels:
                pen.text((x + w // 2, top - gap), col_labels[k], INK, font, anchor="mb")
    return np.asarray(canvas)


def save_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Writes uint8 [h, w, 3] as a PNG, whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(pixels).save(partial, "PNG")
    os.replace(partial, path)


def save_grid(path: str | os.PathLike, images: Float[np.ndarray, "R K H W C"], **labels) -> None:
    """Writes image_grid(images, **labels) as a PNG, whole or not at all."""
    save_png(path, image_grid(images, **labels))
