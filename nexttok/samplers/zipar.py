"""ZipAR: raster order as a wavefront.

A row starts when the row above has so many tokens as the window is wide; from then on both go on
together. Each token sees what is drawn of the tokens before it.

    window 2     0  1  2  3          call that draws a token
                 2  3  4  5
                 4  5  6  7

A window of 1.5 is one of 2 and of 1 in turn. Where the true token before a row's first is not drawn
yet, the last one of the row above that stands in, and is replaced when it is known. (He et al.,
"ZipAR: Parallel Auto-regressive Image Generation through Spatial Locality", 2024, where windows are
whole. The released code draws the first row alone, and lets tokens attend to slots that hold
nothing; here those are masked.)
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from nexttok.causal import Causal
from nexttok.config import check
from nexttok.rng import categorical, stream


@dataclasses.dataclass(frozen=True, eq=False)
class Wavefront:
    """Which slots a call reads; slot p predicts token p of the raster, and holds token p - 1.

    Attributes:
      slots: [T, S], beyond the last token where there is none.
      held: [T, S], the token that a slot is given.
      drawn: bool [T, S], whether its prediction is drawn; else it is only read in.
    """

    slots: Int[np.ndarray, "T S"]
    held: Int[np.ndarray, "T S"]
    drawn: Bool[np.ndarray, "T S"]


def wavefront(rows: int, columns: int, window: float) -> Wavefront:
    """The schedule of a grid: row r starts at call ceil(r window), and columns + ceil((rows - 1)
    window) calls draw all.

    Raises:
      ConfigError: a window that is not 1 .. columns.
    """
    check(1 <= window <= columns, "sampler.lag", window, f"1 .. {columns} columns")
    starts = [math.ceil(r * window) for r in range(rows)]
    calls: list[list[tuple]] = [[] for _ in range(columns + starts[-1])]
    for r, start in enumerate(starts):
        for c in range(columns):
            slot, call = r * columns + c, c + start
            held = slot - 1 if c else _before_row(r, columns, starts)
            calls[call].append((slot, max(held, 0), True))
        above = columns + starts[r - 1]  # from this call on the true token before the row is known
        if r and start < above:
            calls[above].append((r * columns, r * columns - 1, False))
    most = max(map(len, calls))
    end = rows * columns
    padded = [call + [(end + s, 0, False) for s in range(len(call), most)] for call in calls]
    slots, held, drawn = np.asarray(padded, np.int32).transpose(2, 0, 1)
    return Wavefront(slots, held, drawn.astype(bool))


def _before_row(row, columns, starts):
    """What stands for the token before a row when its first is drawn."""
    if row == 0:
        return 0
    call, above = starts[row], row - 1
    if call > columns - 1 + starts[above]:
        return row * columns - 1
    above = max(above - 1, 0)
    drawn = min(call - starts[above], columns)
    return above * columns + drawn - 1


def zipar(
    model: Causal, schedule: Wavefront, warp: Callable[[Array], Array], batch: int, rng: Array
) -> tuple[Int[Array, "B N"], dict]:
    """Draws the tokens of a grid.

    An approximation: the tokens of a call are independent, and do not see what is to their upper
    right beyond the window. A window of all columns is exact, and draws as one call per token does
    with the same key.

    Returns:
      Tokens [B, N] in raster order, and stats {network_calls}.
    """
    n, most = model.tokens, schedule.slots.shape[1]

    def call(carry, now):
        tokens, state = carry
        slots, held, drawn = now
        given = tokens[:, held]
        at = jnp.broadcast_to(slots[None], given.shape)
        logits, _, state = model.score(given, None, at, state)
        new = jax.vmap(
            lambda slot, x: categorical(stream(rng, "sample", slot), warp(x[:, None]))[:, 0],
            in_axes=(0, 1), out_axes=1,
        )(slots, logits)  # fmt: skip
        # what is not drawn goes where nothing is read
        return (tokens.at[:, jnp.where(drawn, slots, n)].set(new), state), None

    carry = jnp.zeros((batch, n + 1), jnp.int32), model.start(batch, most)
    steps = jax.tree.map(jnp.asarray, (schedule.slots, schedule.held, schedule.drawn))
    (tokens, _), _ = jax.lax.scan(call, carry, steps)
    return tokens[:, :n], {"network_calls": jnp.asarray(len(schedule.slots))}
