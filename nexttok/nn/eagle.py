"""The drafter of EAGLE: one layer over what a generator found and the token that came of it.

(Li et al., "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty", 2024.)
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.backbones.embed import Embed
from nexttok.nn.cache import Cache, enter, leave
from nexttok.nn.linear import Linear
from nexttok.nn.slots import TOKEN, Slots
from nexttok.nn.transformer import Transformer, initializer


class Eagle(nn.Module):
    """Embeddings and the states before, a linear layer, one block.

    A slot's state before is that of the slot in front of it, which predicted the token that this
    one holds; slots without a token have none.
    """

    config: BackboneConfig
    inputs: Inputs
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        slots: Slots,
        label: Int[Array, "B"],
        before: Float[Array, "B S D"],
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Guesses of the generator's hidden states, and the cache with the slots written."""
        c = self.config
        embed = Embed(c, self.inputs, self.dtype, name="embed")
        x, _, cond, rotary = embed(slots, label, False)
        kind = slots.kind if slots.kind.ndim == 2 else slots.kind[None]
        before = jnp.where((kind == TOKEN)[..., None], before, 0.0).astype(x.dtype)
        both = jnp.concatenate([x, before], axis=-1)
        x = Linear(c.width, init=initializer(c.init, c.width), dtype=self.dtype, name="bridge")(
            both
        )
        cache = enter(cache, slots.steps, slots.written, slots.among)
        block = Transformer(c.transformer(self.dtype, 1), (x.shape[1],), name="trunk")
        x, cache, _ = block(x, slots.steps, rotary, cond, cache=cache, runs=slots.runs)
        return x, leave(cache, len(slots.index))
