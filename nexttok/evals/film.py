"""A generation step by step: which tokens each step draws, and what the picture shows by then."""

import json
import os
import pathlib

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from nexttok.evals.lattice import EMPTY, fitted, lattice, nearest
from nexttok.evals.pictures import PAPER, save_png, to_uint8
from nexttok.evals.results import write_text
from nexttok.evals.videos import strip
from nexttok.tokens import TokenSpec

FRAMES, CELL, GAP = 24, 96, 6  # frames at most; intended side of a picture, and pixels between
UNKNOWN, KNOWN, NEW = 0, 1, 2
COLORS = {EMPTY: PAPER, UNKNOWN: (225, 229, 236), KNOWN: (158, 184, 232), NEW: (37, 88, 201)}


def steps_of(order: Int[np.ndarray, "B n"], sizes: tuple[int, ...]) -> Int[np.ndarray, "B n"]:
    """The step that draws every token, of orders cut into steps of these sizes."""
    slots = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    steps = np.empty(order.shape, np.int32)
    np.put_along_axis(steps, order, np.broadcast_to(slots, order.shape), axis=1)
    return steps


def shown_steps(first: int, last: int) -> list[int]:
    """first .. last - 1, or FRAMES of them."""
    count = min(FRAMES, last - first)
    return np.unique(np.linspace(first, last - 1, count).round().astype(int)).tolist()


def so_far(
    images: dict[int, Float[np.ndarray, "S *s C"]], known: np.ndarray, spec: TokenSpec
) -> Float[np.ndarray, "S *s C"]:
    """What the known tokens [S, N] show; white where nothing is decided.

    Tokens whose prefixes decode show the longest prefix that does; those of a grid open their cells
    of the finished picture; others show nothing before the end.
    """
    count, full = int(known[0].sum()), max(images)
    final, blank = images[full], np.ones_like(images[full])
    if spec.nested:
        decoded = [n for n in images if n <= count]
        return images[max(decoded)] if decoded else blank
    if count == full or len(spec.grid) == 1:
        return final if count == full else blank
    opened = np.stack([nearest(k.reshape(spec.grid), final.shape[1:-1]) for k in known])
    return np.where(opened[..., None], final, blank)


def frame(
    pictures: Float[np.ndarray, "S H W C"], states: Int[np.ndarray, "S N"], spec: TokenSpec
) -> np.ndarray:
    """S samples side by side, each a map of its tokens beside its picture; uint8 [h, w, 3]."""
    columns = []
    for pixels, state in zip(to_uint8(pictures), states, strict=True):
        high, wide = (round(n * CELL / pixels.shape[0]) for n in pixels.shape[:2])
        smooth = Image.Resampling.BOX if high < pixels.shape[0] else Image.Resampling.NEAREST
        picture = np.asarray(Image.fromarray(pixels).resize((wide, high), smooth))
        tokens = fitted(lattice(spec, state), COLORS, high, wide)
        columns += [tokens, _space(high, GAP), picture, _space(high, 3 * GAP)]
    row = np.concatenate(columns[:-1], axis=1)
    return np.pad(row, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def _space(high, wide):
    return np.full((high, wide, 3), 255, np.uint8)


def save_film(
    folder: str | os.PathLike,
    images: dict[int, Float[np.ndarray, "S *s C"]],
    steps: Int[np.ndarray, "S N"],
    spec: TokenSpec,
    given: int = 0,
) -> str:
    """Writes generation.png, one frame below the other, and generation.json, what they show.

    Args:
      folder: of both files.
      images: decoded samples by number of tokens, the longest of them finished.
      steps: the step that draws every token of every sample.
      spec: the tokens.
      given: steps in front whose tokens are known beforehand.

    Returns:
      The path of the picture.
    """
    last = int(steps.max()) + 1
    frames, rows = [], []
    for now in shown_steps(given, last):
        known = steps <= now
        states = np.where(steps == now, NEW, np.where(known, KNOWN, UNKNOWN))
        rows.append(frame(strip(so_far(images, known, spec)), states, spec))
        frames.append(
            {"step": now + 1, "new": int((steps[0] == now).sum()), "known": int(known[0].sum())}
        )
    path = pathlib.Path(folder) / "generation.png"
    sheet = np.concatenate(rows)
    save_png(path, sheet)
    told = {"frames": frames, "steps": last, "tokens": steps.shape[1]}
    told |= {"height": rows[0].shape[0], "width": sheet.shape[1]}
    write_text(path.with_suffix(".json"), json.dumps(told) + "\n")
    return str(path)
