"""The key-value cache: an explicit pytree that the layers of all stacks write in place.

The layers' scan carries it whole, and a layer writes its new slots and reads what it needs: were it
sliced and stacked again by the scan, every decode step would copy all of it.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

UNFILLED = jnp.iinfo(jnp.int32).max  # step of a cache slot that holds nothing: visible to nobody


@flax.struct.dataclass
class Cache:
    """Keys and values of the slots processed so far.

    Attributes:
      keys, values: [layers, B, H, S, d]; stacks that share a cache have layers of their own.
      steps: int32 [S], the step of each slot, UNFILLED where nothing was written.
      cursor: int32 [], the slot that is written next.
    """

    keys: Float[Array, "L B H S d"]
    values: Float[Array, "L B H S d"]
    steps: Int[Array, "S"]
    cursor: Int[Array, ""]

    def write(self, layer, k: Float[Array, "B Q H d"], v: Float[Array, "B Q H d"]) -> "Cache":
        """Puts a layer's keys and values of the new slots at the cursor."""

        def put(old, new):
            new = new.swapaxes(1, 2)[None].astype(old.dtype)
            return jax.lax.dynamic_update_slice(old, new, (layer, 0, 0, self.cursor, 0))

        return self.replace(keys=put(self.keys, k), values=put(self.values, v))

    def read(self, layer, filled: int = 0) -> tuple[Array, Array, Int[Array, "K"]]:
        """Keys and values [B, K, H, d] of a layer, and the steps, of the first K = `filled` slots.

        0 reads all slots; `filled` is a static promise that those beyond hold nothing.
        """
        count = min(filled or len(self.steps), len(self.steps))

        def get(x):
            shape = (1, *x.shape[1:3], count, x.shape[4])
            return jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0), shape)[0].swapaxes(1, 2)

        return get(self.keys), get(self.values), self.steps[:count]


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


def enter(cache: Cache | None, steps: Int[Array, "Q"]) -> Cache | None:
    """Announces the steps of the slots that the layers write next; None stays None."""
    if cache is None:
        return None
    return cache.replace(steps=jax.lax.dynamic_update_slice(cache.steps, steps, (cache.cursor,)))


def leave(cache: Cache | None, slots: int) -> Cache | None:
    """Moves the cursor behind the `slots` slots that all layers have written."""
    return None if cache is None else cache.replace(cursor=cache.cursor + slots)
