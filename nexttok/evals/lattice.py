"""Tokens as cells in a plane, and cells as pixels."""

import math

import numpy as np
from jaxtyping import Int

from nexttok.tokens import TokenSpec

EMPTY = -1  # a cell without a token


def lattice(spec: TokenSpec, values: Int[np.ndarray, "n"]) -> Int[np.ndarray, "r c"]:
    """One value per token (of the first n tokens) as cells.

    A grid is itself, frames of videos stand side by side, 1D tokens run from left to right and then
    down. Of a pyramid it is the scale that holds the largest value, as one grid.
    """
    if spec.scales:
        scale = int(np.searchsorted(spec.prefixes, int(values.argmax()), side="right"))
        side = spec.scales[scale]
        first = spec.prefixes[scale] - side * side
        return lattice(TokenSpec((side, side), 0, 0), values[first : first + side * side])
    if len(spec.grid) == 1:
        columns = math.ceil(math.sqrt(spec.length))
        rows = -(-spec.length // columns)
        grid = (1, rows, columns)
    else:
        grid = (1,) * (3 - len(spec.grid)) + spec.grid
    cells = np.full(math.prod(grid), EMPTY, values.dtype)
    cells[: min(len(values), len(cells))] = values[: len(cells)]
    return cells.reshape(grid).transpose(1, 0, 2).reshape(grid[1], -1)


def nearest(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array enlarged to a shape of as many axes, every entry repeated."""
    for axis, size in enumerate(shape):
        values = np.take(values, np.arange(size) * values.shape[axis] // size, axis=axis)
    return values


def fitted(
    cells: Int[np.ndarray, "r c"], colors: dict[int, tuple], high: int, wide: int
) -> np.ndarray:
    """Coloured cells as uint8 [high, wide, 3], with lines between them where there is room."""
    pixels = np.zeros((*cells.shape, 3), np.uint8)
    for value, color in colors.items():
        pixels[cells == value] = color
    pixels = nearest(pixels, (high, wide, 3))
    for axis, size in ((0, high), (1, wide)):
        count = cells.shape[axis]
        if size // count >= 5:
            edges = [math.ceil(i * size / count) for i in range(1, count)]
            pixels.swapaxes(0, axis)[edges] = 255
    return pixels
