"""The key-value cache: an explicit pytree that the layers of all stacks write in place.

The layers' scan carries it whole, and a layer writes its new slots and reads what it needs: were it
sliced and stacked again by the scan, every decode step would copy all of it.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.nn.slots import visible

UNFILLED = jnp.iinfo(jnp.int32).max  # step of a cache slot that holds nothing: visible to nobody


@flax.struct.dataclass
class Cache:
    """Keys and values of the slots processed so far.

    Attributes:
      keys, values: [layers, B, H, S, d]; stacks that share a cache have layers of their own.
      steps: int32 [S] or [B, S], the step of each slot, UNFILLED where nothing was written.
      cursor: int32 [], the slot that is written next.
      written: int32 [B, Q], the slots that are being written, where they do not follow the cursor.
      among: bool [B, Q, Q]: which of the slots that are being written each of them sees, where
        their steps do not tell; they stand side by side.
    """

    keys: Float[Array, "L B H S d"]
    values: Float[Array, "L B H S d"]
    steps: Int[Array, "S"] | Int[Array, "B S"]
    cursor: Int[Array, ""]
    written: Int[Array, "B Q"] | None = None
    among: Bool[Array, "B Q Q"] | None = None

    def write(self, layer, k: Float[Array, "B Q H d"], v: Float[Array, "B Q H d"]) -> "Cache":
        """Puts a layer's keys and values of the new slots where they belong."""

        def put(old, new):
            if self.written is not None:
                rows = jnp.arange(len(new))[:, None]
                return old.at[layer, rows, :, self.written].set(new.astype(old.dtype))
            new = new.swapaxes(1, 2)[None].astype(old.dtype)
            return jax.lax.dynamic_update_slice(old, new, (layer, 0, 0, self.cursor, 0))

        return self.replace(keys=put(self.keys, k), values=put(self.values, v))

    def read(
        self, layer, asking: Int[Array, "Q"] | Int[Array, "B Q"], filled: int = 0
    ) -> tuple[Array, Array, Array]:
        """Keys and values [B, K, H, d] of a layer, of the first K = `filled` slots, and which of
        them slots of the steps `asking` see, [Q, K] or [B, Q, K].

        0 reads all slots; `filled` is a static promise that those beyond hold nothing.
        """
        room = self.steps.shape[-1]
        count = min(filled or room, room)

        def get(x):
            shape = (1, *x.shape[1:3], count, x.shape[4])
            return jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0), shape)[0].swapaxes(1, 2)

        return get(self.keys), get(self.values), self._seen(asking, count)

    def _seen(self, asking, count):
        seen = visible(asking, self.steps[..., :count])
        if self.among is None:
            return seen
        own = jnp.arange(count)[None] - self.written[:, :1]
        size = self.among.shape[-1]
        at = jnp.clip(own, 0, size - 1)[:, None]
        inside = jnp.take_along_axis(self.among, jnp.broadcast_to(at, seen.shape), axis=2)
        return jnp.where(((own >= 0) & (own < size))[:, None], inside, seen)


def empty_cache(
    layers: int, batch: int, slots: int, heads: int, head_dim: int, dtype: str = "float32"
) -> Cache:
    """A cache with room for `slots` slots and nothing in it."""
    shape = (layers, batch, heads, slots, head_dim)
    return Cache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        steps=jnp.full((slots,), UNFILLED, jnp.int32),
        cursor=jnp.zeros((), jnp.int32),
    )


def enter(
    cache: Cache | None,
    steps: Int[Array, "Q"] | Int[Array, "B Q"],
    written: Int[Array, "B Q"] | None = None,
    among: Bool[Array, "B Q Q"] | None = None,
) -> Cache | None:
    """Announces the steps of the slots that the layers write next; None stays None.

    `written` and `among` are those of Cache; the first needs `ragged` steps.
    """
    if cache is None:
        return None
    if written is None:
        known = jax.lax.dynamic_update_slice(cache.steps, steps, (cache.cursor,))
    else:
        known = cache.steps.at[jnp.arange(len(written))[:, None], written].set(steps)
    return cache.replace(steps=known, written=written, among=among)


def leave(cache: Cache | None, slots: int) -> Cache | None:
    """Moves the cursor behind the `slots` slots that all layers have written there."""
    if cache is None:
        return None
    moved = cache.cursor + slots if cache.written is None else cache.cursor
    return cache.replace(cursor=moved, written=None, among=None)


def ragged(cache: Cache) -> Cache:
    """The cache, each row with steps of its own."""
    batch = cache.keys.shape[1]
    return cache.replace(steps=jnp.broadcast_to(cache.steps[None], (batch, len(cache.steps))))


def take_rows(cache: Cache, rows: Int[Array, "b"]) -> Cache:
    """The cache of these rows of the batch."""
    steps = cache.steps[rows] if cache.steps.ndim == 2 else cache.steps
    return cache.replace(keys=cache.keys[:, rows], values=cache.values[:, rows], steps=steps)


def move(cache: Cache, source: Int[Array, "B P"], target: Int[Array, "B P"]) -> Cache:
    """Copies what slots hold, except their steps, to other slots of the same row."""
    rows = jnp.arange(source.shape[0])[:, None]

    def copied(x):
        return x.at[:, rows, :, target].set(x[:, rows, :, source])

    return cache.replace(keys=copied(cache.keys), values=copied(cache.values))
