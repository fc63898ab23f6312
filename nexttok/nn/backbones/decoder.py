"""Backbone `decoder`: one transformer over the slots.

With attention masked by steps it is a causal, block-causal or bidirectional transformer: GPT,
LLaMA, VAR, BERT, GIVT.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.backbones.embed import Embed
from nexttok.nn.cache import Cache, empty_cache, enter, leave
from nexttok.nn.linear import Linear, scaled
from nexttok.nn.norms import Norm, layer_norm
from nexttok.nn.slots import QUERY, START, Slots
from nexttok.nn.transformer import Transformer, initializer


class FinalNorm(nn.Module):
    """The norm before the head: plain, or adaLN (scale and shift from the class)."""

    config: BackboneConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], classes: Float[Array, "B D"]) -> Array:
        c = self.config
        if c.final_norm != "adaln":
            return Norm(c.final_norm, True, c.norm_eps, name="norm")(x)
        init = scaled(initializer(c.init, c.width), c.adaln_gain[1])
        mods = Linear(2 * c.width, True, init, self.dtype, name="adaln")(jax.nn.silu(classes))
        scale, shift = jnp.split(mods[:, None], 2, axis=-1)
        return layer_norm(x, c.norm_eps) * (1.0 + scale) + shift


class Decoder(nn.Module):
    """Embeddings, transformer, final norm; the last `apart` layers stand apart, as "exit"."""

    config: BackboneConfig
    inputs: Inputs
    dtype: str = "float32"
    apart: int = 0

    @nn.compact
    def __call__(
        self,
        slots: Slots,
        label: Int[Array, "B"],
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Hidden states of the slots, and the cache with them written; label -1 is no class."""
        c = self.config
        spared = (QUERY, START) if c.rotate_query else ()
        embed = Embed(c, self.inputs, self.dtype, spared=spared, name="embed")
        x, classes, cond, rotary = embed(slots, label, train)
        cache = enter(cache, slots.steps, slots.written, slots.among)
        first = c.depth - self.apart
        for name, begin, end in (("trunk", 0, first), ("exit", first, c.depth)):
            if begin == end:
                continue
            stack = Transformer(c.transformer(self.dtype, end - begin), (x.shape[1],), name=name)
            x, cache, _ = stack(
                x, slots.steps, rotary, cond, cache=cache, first_layer=begin, runs=slots.runs,
                filled=slots.filled, wanted=slots.wanted if end == c.depth else None, train=train,
            )  # fmt: skip
        x = FinalNorm(c, self.dtype, name="final")(x, classes)
        return x, leave(cache, len(slots.index))


def make(config: BackboneConfig, inputs: Inputs, dtype: str) -> Decoder:
    """The network."""
    return Decoder(config, inputs, dtype)


def init_cache(config: BackboneConfig, batch: int, slots: int, dtype: str) -> Cache:
    """An empty cache for `slots` slots."""
    heads = config.width // config.head_dim
    return empty_cache(config.depth, batch, slots, heads, config.head_dim, dtype)
