"""ZipAR with an adaptive window: a row starts when one more token above would not change its first.

From `least` tokens above on, the first token of a row is proposed from the law p_k that sees k of
them; the next call tests it against p_(k+1): it is kept with probability min(1, p_(k+1) / p_k), or
drawn anew from what is left of p_(k+1), to be tested again; all tokens above are enough. (He et
al., "ZipAR", 2024, name this test, but not all of its details.) The call that tests a token also
draws the one behind it, which counts if it is kept: where the window is wide enough, no call is
lost against a fixed one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.causal import Causal
from nexttok.config import check
from nexttok.rng import categorical, stream
from nexttok.samplers.verify import trial


class Front(NamedTuple):
    """Where a wavefront stands, for every row of the batch.

    Attributes:
      tokens: in raster order, then one place where nothing is read [B, N + 1].
      count: tokens drawn in every row of the grid [B, H].
      stale: rows whose first slot was given a stand-in [B, H].
      next: the first row that has not started, H for none [B].
      waiting: whether its first token is proposed [B]: `guess` [B], drawn from `law` [B, V].
      state: of the model; calls: so far; rounds: of this row of the batch [B].
    """

    tokens: Int[Array, "B T"]
    count: Int[Array, "B H"]
    stale: Bool[Array, "B H"]
    next: Int[Array, "B"]
    waiting: Bool[Array, "B"]
    guess: Int[Array, "B"]
    law: Float[Array, "B V"]
    state: Any
    calls: Int[Array, ""]
    rounds: Int[Array, "B"]


def adaptive_zipar(
    model: Causal,
    grid: tuple[int, int],
    least: int,
    warp: Callable[[Array], Array],
    batch: int,
    rng: Array,
) -> tuple[Int[Array, "B N"], dict]:
    """Draws the tokens of a grid.

    Args:
      model: draws.
      grid: rows, columns.
      least: the smallest window; all columns are exact.
      warp: logits -> logits.
      batch: rows of the batch.
      rng: key.

    Returns:
      Tokens [B, N] in raster order, and stats: network_calls, and rounds per row of the batch [B].

    Raises:
      ConfigError: a window that is not 1 .. columns.
    """
    height, width = grid
    check(1 <= least <= width, "sampler.lag", least, f"1 .. {width} columns")
    n, running = height * width, min(height, -(-width // least) + 1)
    each, line = jnp.arange(batch), jnp.arange(batch)[:, None]

    def of(table, row):
        """table[b, row[b]] where that is a row of the grid."""
        return table[each, jnp.clip(row, 0, height - 1)]

    def slots(front):
        """(places, tokens held, whether they are there) of a call, [B, running + 3]: the rows that
        go on, the first token of the next row, the one behind it, and the first slot of a row whose
        true token before is known by now."""
        first = jnp.argmax(front.count < width, axis=1)
        row = first[:, None] + jnp.arange(running)[None]
        count = front.count[line, jnp.minimum(row, height - 1)]
        on = (row < front.next[:, None]) & (count < width)
        going = row * width + count

        above = of(front.count, front.next - 1)
        start = front.next * width
        opens = (front.next < height) & (above >= least)
        source = jnp.maximum(front.next - 2, 0)
        stand_in = jnp.where(
            above == width, start - 1, source * width + of(front.count, source) - 1
        )
        behind = opens & front.waiting & (width > 1)

        full = jnp.pad(front.count == width, ((0, 0), (1, 0)))[:, :-1]
        late = front.stale & full
        again = jnp.argmax(late, axis=1) * width

        places = [going, start[:, None], start[:, None] + 1, again[:, None]]
        there = [on, opens[:, None], behind[:, None], late.any(1)[:, None]]
        held = [going - 1, stand_in[:, None], jnp.full((batch, 1), n), again[:, None] - 1]
        places, there, held = (jnp.concatenate(v, axis=1) for v in (places, there, held))
        tokens = jnp.take_along_axis(front.tokens, jnp.maximum(held, 0), axis=1)
        tokens = tokens.at[:, running + 1].set(front.guess)
        spare = n + jnp.arange(running + 3)[None]
        return jnp.where(there, places, spare), tokens, there

    def call(front):
        key = stream(rng, "call", front.calls)
        places, held, there = slots(front)
        logits, _, state = model.score(held, None, places, front.state)
        warped = warp(logits)
        drawn = categorical(stream(key, "draw"), warped)
        law = jax.nn.softmax(warped[:, running].astype(jnp.float32), axis=-1)

        # the next row: its first token is proposed, tested or, with all above known, drawn
        opens, complete = there[:, running], of(front.count, front.next - 1) == width
        coin = jax.random.uniform(stream(key, "coin"), (batch,))
        ok, left = jax.vmap(trial)(law, front.law, front.guess, coin)
        other = categorical(stream(key, "other"), jnp.log(left))
        passed = front.waiting & ok
        new = jnp.where(front.waiting, other, drawn[:, running])
        guess = jnp.where(passed, front.guess, new)
        starts = opens & (passed | complete)
        two = starts & passed & there[:, running + 1]

        write = jnp.concatenate([there[:, :running], starts[:, None], two[:, None]], axis=1)
        values = jnp.concatenate(
            [drawn[:, :running], guess[:, None], drawn[:, running + 1 : running + 2]], axis=1
        )
        at = jnp.where(write, places[:, : running + 2], n)
        grown = jnp.where(write, at // width, height)
        gained = (grown[..., None] == jnp.arange(height)[None, None]).sum(1)
        begun = starts[:, None] & (jnp.arange(height)[None] == front.next[:, None])
        renewed = there[:, -1:] & (places[:, -1:] == width * jnp.arange(height)[None])
        waits = opens & ~starts
        return Front(
            tokens=front.tokens.at[line, at].set(values),
            count=front.count + gained,
            stale=(front.stale & ~renewed) | (begun & ~complete[:, None]),
            next=front.next + starts.astype(jnp.int32),
            waiting=waits,
            guess=jnp.where(waits, guess, front.guess),
            law=jnp.where(waits[:, None], law, front.law),
            state=state,
            calls=front.calls + 1,
            rounds=front.rounds + (front.count < width).any(1).astype(jnp.int32),
        )

    none = jnp.zeros((batch,), jnp.int32)
    front = Front(
        tokens=jnp.zeros((batch, n + 1), jnp.int32),
        count=jnp.zeros((batch, height), jnp.int32),
        stale=jnp.zeros((batch, height), bool),
        next=none + 1,
        waiting=none > 0,
        guess=none,
        law=jnp.full((batch, model.vocab), 1.0 / model.vocab),
        state=model.start(batch, running + 3),
        calls=jnp.zeros((), jnp.int32),
        rounds=none,
    )
    front = jax.lax.while_loop(lambda f: (f.count < width).any(), call, front)
    return front.tokens[:, :n], {"network_calls": front.calls, "rounds": front.rounds}
