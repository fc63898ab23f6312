"""LPD's orders: each step draws tokens near to what is known and far from each other.

    1 . . .     1 2 . 3     tokens of a step border on known ones, which tell much of them, and not
    . . . .     . . . .     on each other, as they are drawn independently
    . . . .     3 . . .
    . . . .     . . . 3

(Zhang et al., "Locality-aware Parallel Decoding for Efficient Autoregressive Image Generation",
2025.) For models of any order: contexts query and mask with plan random.
"""

import numpy as np
from jaxtyping import Int

from nexttok.config import check


def locality_order(
    grid: tuple[int, int],
    sizes: tuple[int, ...],
    rng: np.random.Generator,
    proximity: float = 1.0,
    repulsion: int = 1,
) -> Int[np.ndarray, "N"]:
    """An order of the cells of a grid for steps of these sizes.

    Args:
      grid: rows, columns.
      sizes: of the steps; they sum to the number of cells.
      rng: breaks ties.
      proximity: a cell is near when 1 / distance summed over its known neighbours, of eight, is at
        least this; near cells come first, by that sum.
      repulsion: near cells of one step are further apart than this, along rows or columns.

    What near cells do not fill is drawn by farthest point: each time the cell that is furthest
    from all others of the step (of the first: from the known ones).

    Raises:
      ConfigError: sizes that do not sum to the cells.
    """
    rows, columns = grid
    n = rows * columns
    check(sum(sizes) == n, "sample.steps", sizes, f"steps that sum to {n} tokens")
    cells = np.stack(np.divmod(np.arange(n), columns), axis=1)
    apart = np.abs(cells[:, None] - cells[None])
    chebyshev = apart.max(-1)
    distance = np.sqrt((apart**2).sum(-1))
    pull = np.where(chebyshev == 1, 1.0 / np.maximum(distance, 1.0), 0.0)
    known, order = np.zeros(n, bool), []
    for size in sizes:
        score = pull @ known
        ranked = np.lexsort((rng.random(n), -score))
        step: list[int] = []
        for cell in ranked[(score[ranked] >= proximity) & ~known[ranked]]:
            if len(step) < size and all(chebyshev[cell, t] > repulsion for t in step):
                step.append(int(cell))
        free = ~known
        free[step] = False
        while len(step) < size:
            others = step or list(np.flatnonzero(known))
            far = distance[:, others].min(1) if others else np.zeros(n)
            ranked = np.lexsort((rng.random(n), -far))
            step.append(int(ranked[free[ranked]][0]))
            free[step[-1]] = False
        known[step] = True
        order += step
    return np.asarray(order, np.int32)


def locality_orders(
    grid: tuple[int, int], sizes: tuple[int, ...], count: int, seed: int = 0
) -> Int[np.ndarray, "P N"]:
    """A pool of `count` such orders, from which each sample takes one."""
    rng = np.random.default_rng(seed)
    return np.stack([locality_order(grid, sizes, rng) for _ in range(count)])
