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
      cursor: int32 [], the slot that is written next; [B] where rows of the batch stand apart;
        [B, Q] where the slots do.
      among: bool [B, Q, Q]: which of the Q slots that are being written each of them sees; None
        where their steps tell.
    """

    keys: Float[Array, "L B H S d"]
    values: Float[Array, "L B H S d"]
    steps: Int[Array, "S"] | Int[Array, "B S"]
    cursor: Int[Array, ""] | Int[Array, "B"] | Int[Array, "B Q"]
    among: Bool[Array, "B Q Q"] | None = None

    def write(self, layer, k: Float[Array, "B Q H d"], v: Float[Array, "B Q H d"]) -> "Cache":
        """Puts a layer's keys and values of the new slots at the cursor."""

        def put(old, new):
            if self.cursor.ndim:
                rows, slots = _places(self.cursor, new.shape[1])
                return old.at[layer, rows, :, slots].set(new.astype(old.dtype))
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
        own = jnp.arange(count)[None] - self.cursor[:, None]
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
    among: Bool[Array, "B Q Q"] | None = None,
) -> Cache | None:
    """Announces the steps of the slots that the layers write next, and which of them sees which
    where steps do not tell; None stays None."""
    if cache is None:
        return None
    if cache.cursor.ndim:
        known = cache.steps.at[_places(cache.cursor, steps.shape[-1])].set(steps)
    else:
        known = jax.lax.dynamic_update_slice(cache.steps, steps, (cache.cursor,))
    return cache.replace(steps=known, among=among)


def leave(cache: Cache | None, slots: int) -> Cache | None:
    """Moves the cursor behind the `slots` slots that all layers have written."""
    return None if cache is None else cache.replace(cursor=cache.cursor + slots, among=None)


def ragged(cache: Cache) -> Cache:
    """The cache, its rows free to stand apart."""
    batch = cache.keys.shape[1]
    return cache.replace(
        steps=jnp.broadcast_to(cache.steps, (batch, cache.steps.shape[-1])),
        cursor=jnp.broadcast_to(cache.cursor, (batch,)),
    )


def move(cache: Cache, source: Int[Array, "B P"], target: Int[Array, "B P"]) -> Cache:
    """Copies what slots hold, except their steps, to other slots of the same row."""
    rows = jnp.arange(source.shape[0])[:, None]

    def copied(x):
        return x.at[:, rows, :, target].set(x[:, rows, :, source])

    return cache.replace(keys=copied(cache.keys), values=copied(cache.values))


def _places(cursor, count):
    """Indices (rows, slots) of the `count` slots of every row from its cursor on."""
    slots = cursor if cursor.ndim == 2 else cursor[:, None] + jnp.arange(count)[None]
    return jnp.arange(len(cursor))[:, None], slots
