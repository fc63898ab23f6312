"""Backbone `cross_decoder`: queries cross-attend one memory of the content (ARPG).

Content slots pass a causal stack; its output becomes one pair of keys and values, the memory that
all layers of the second stack read. Queries see the memory only, never each other. Li et al.,
"Autoregressive Image Generation with Randomized Parallel Decoding", 2025.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.backbones.decoder import FinalNorm
from nexttok.nn.backbones.embed import Embed
from nexttok.nn.cache import Cache, empty_cache, enter, leave
from nexttok.nn.kernels import attend
from nexttok.nn.linear import Linear
from nexttok.nn.positions import rotate
from nexttok.nn.slots import QUERY, Slots, visible
from nexttok.nn.stack import scanned
from nexttok.nn.transformer import Mlp, Transformer, TransformerConfig


class CrossBlock(nn.Module):
    """Pre-norm cross-attention to given keys and values, then the MLP."""

    config: TransformerConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q D"],
        _layer: Int[Array, ""],
        keys: Float[Array, "B S H d"],
        values: Float[Array, "B S H d"],
        mask: Bool[Array, "Q S"],
        rotary: Array | None,
    ) -> tuple[Float[Array, "B Q D"], None]:
        c = self.config
        q = Linear(c.width, c.bias, c.initializer, c.dtype, name="wq")(c.norm_layer("norm1")(x))
        q = q.reshape(*x.shape[:2], -1, c.head_dim)
        q = q if rotary is None else rotate(q, rotary)
        keys, values = keys.astype(q.dtype), values.astype(q.dtype)
        rate = c.dropout_at("weights")
        drop = nn.Dropout(rate, deterministic=not self.train, name="weight_dropout")
        y = attend(q, keys, values, mask, c.head_dim**-0.5, drop)
        y = Linear(c.width, c.bias, c.output_initializer, c.dtype, name="proj")(y.reshape(x.shape))
        x = x + nn.Dropout(c.dropout_at("attention"), deterministic=not self.train)(y)
        return x + Mlp(c, name="mlp")(c.norm_layer("norm2")(x), self.train), None


class CrossDecoder(nn.Module):
    """Content stack, memory, query stack; the hidden states are those of the queries."""

    config: BackboneConfig
    inputs: Inputs
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        slots: Slots,
        label: Int[Array, "B"],
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B Q D"], Cache | None]:
        """Hidden states of the query slots, which are the last slots.segments[1] of them."""
        c, n = self.config, slots.segments[0]
        embed = Embed(c, self.inputs, self.dtype, spared=(QUERY,), name="embed")
        x, classes, _, rotary = embed(slots, label, train)
        turn, ask = (
            (None, None) if rotary is None else (rotary[..., :n, :, :], rotary[..., n:, :, :])
        )
        stack, steps = c.transformer(self.dtype, c.depth), slots.steps[:n]
        h, cache, _ = Transformer(stack, (n,), name="content")(
            x[:, :n], steps=steps, rotary=turn, cache=enter(cache, steps), filled=slots.filled,
            train=train,
        )  # fmt: skip
        h = stack.norm_layer("memory_norm")(h)
        keys, values = (self._heads(h, name) for name in ("wk", "wv"))
        keys = keys if turn is None else rotate(keys, turn)
        if cache is not None:
            cache = cache.write(c.depth, keys, values)
            keys, values, mask = cache.read(c.depth, slots.steps[n:], slots.filled)
        else:
            mask = visible(slots.steps[n:], steps)
        stack = c.transformer(self.dtype, c.decoder_depth)
        layers = scanned(CrossBlock, c.decoder_depth, 4, stack, self.is_initializing())
        layers = layers(stack, train, name="blocks")
        count = jnp.arange(c.decoder_depth, dtype=jnp.int32)
        q, _ = layers(x[:, n:], count, keys, values, mask, ask)
        return FinalNorm(c, self.dtype, name="final")(q, classes), leave(cache, n)

    def _heads(self, h, name):
        c = self.config
        y = Linear(c.width, c.bias, c.transformer(self.dtype, 1).initializer, self.dtype, name=name)
        return y(h).reshape(*h.shape[:2], -1, c.head_dim)


def make(config: BackboneConfig, inputs: Inputs, dtype: str) -> CrossDecoder:
    """The network."""
    return CrossDecoder(config, inputs, dtype)


def init_cache(config: BackboneConfig, batch: int, slots: int, dtype: str) -> Cache:
    """An empty cache for `slots` content slots: the content stack's layers, then the memory."""
    heads = config.width // config.head_dim
    return empty_cache(config.depth + 1, batch, slots, heads, config.head_dim, dtype)
