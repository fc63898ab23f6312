"""Backbone `encoder_decoder`: an encoder of the visible slots, a decoder of all of them.

The masked autoencoder of MAR (Li et al., "Autoregressive Image Generation without Vector
Quantization", 2024): QUERY slots do not enter the encoder and are one learned vector in the
decoder. Without QUERY slots it is the two-stack transformer of xAR (Ren et al., 2025).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.backbones.decoder import FinalNorm
from nexttok.nn.backbones.embed import Embed
from nexttok.nn.cache import UNFILLED, Cache, empty_cache, enter, leave
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.slots import QUERY, Slots, pick
from nexttok.nn.transformer import Transformer


def pack(x: Float[Array, "B S D"], order: Int[Array, "B S"], count: int) -> Float[Array, "B n D"]:
    """The first `count` slots in `order`."""
    return jnp.take_along_axis(x, order[:, :count, None], axis=1)


def unpack(
    packed: Float[Array, "B n D"],
    order: Int[Array, "B S"],
    hidden: Bool[Array, "B S"],
    filler: Float[Array, "D"],
) -> Float[Array, "B S D"]:
    """Puts packed slots back in their places; `filler` where `hidden`."""
    count = packed.shape[1]
    place = jnp.minimum(jnp.argsort(order, axis=1), count - 1)
    full = jnp.take_along_axis(packed, place[..., None], axis=1)
    return jnp.where(hidden[..., None], filler[None, None], full)


class EncoderDecoder(nn.Module):
    """Embeddings, encoder, linear, mask tokens and positions, decoder, each with a final norm."""

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
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Hidden states of the slots, and the cache with them written; label -1 is no class."""
        c = self.config
        embed = Embed(c, self.inputs, self.dtype, hidden_queries=True, name="embed")
        x, classes, cond, rotary = embed(slots, label, train)
        segments = slots.segments or (x.shape[1],)
        norm = FinalNorm(c, self.dtype, name="encoder_norm")

        def encoder(x, steps, segments, cache, runs=()):
            stack = Transformer(c.transformer(self.dtype, c.depth), segments, name="encoder")
            y, memory, _ = stack(
                x, steps=steps, rotary=rotary, cond=cond, cache=cache, runs=runs,
                filled=slots.filled, train=train,
            )  # fmt: skip
            y = norm(y, classes)
            return Linear(c.width, init=c.init, dtype=self.dtype, name="bridge")(y), memory

        if self.inputs.query:
            hidden = jnp.broadcast_to(slots.kind == QUERY, x.shape[:2])
            order = jnp.argsort(hidden, axis=1, stable=True)
            count = slots.visible or x.shape[1]
            absent = jnp.take_along_axis(hidden, order[:, :count], axis=1)
            steps = jnp.where(absent, UNFILLED, 0)
            if cache is not None:  # what is hidden is of a later step to the encoder alone
                places = jnp.take_along_axis(slots.written, order[:, :count], axis=1)
                cache = enter(cache, hidden.astype(jnp.int32), slots.written)
                cache = cache.replace(written=places)
            packed, cache = encoder(pack(x, order, count), steps, (count,), cache)
            filler = self.param("mask_token", INITS["normal02"], (1, c.width)).astype(self.dtype)
            x = unpack(packed, order, hidden, filler[0])
        else:
            cache = enter(cache, slots.steps)
            x, cache = encoder(x, slots.steps, segments, cache, slots.runs)
        steps = slots.steps
        if cache is not None and self.inputs.query:
            cache, steps = cache.replace(written=slots.written), jnp.ones_like(steps)
        x = x + self._positions("positions", slots.index)
        x, cache, _ = Transformer(
            c.transformer(self.dtype, c.decoder_depth), segments, name="decoder"
        )(
            x, steps=steps, rotary=rotary, cond=cond, cache=cache, first_layer=c.depth,
            runs=slots.runs, filled=slots.filled, wanted=slots.wanted, train=train,
        )  # fmt: skip
        x = FinalNorm(c, self.dtype, name="decoder_norm")(x, classes)
        if c.output_positions:
            x = x + self._positions(
                "output_positions", pick(slots.index, slots.wanted, slots.index.ndim == 1)
            )
        return x, leave(cache, len(slots.index))

    def _positions(self, name, index):
        shape = (self.inputs.slots, self.config.width)
        table = self.param(name, INITS["normal02"], shape).astype(self.dtype)
        return jnp.take(table, index if index.ndim == 2 else index[None], axis=0)


def make(config: BackboneConfig, inputs: Inputs, dtype: str) -> EncoderDecoder:
    """The network."""
    return EncoderDecoder(config, inputs, dtype)


def init_cache(config: BackboneConfig, batch: int, slots: int, dtype: str) -> Cache:
    """An empty cache for `slots` slots, both stacks."""
    heads = config.width // config.head_dim
    layers = config.depth + config.decoder_depth
    return empty_cache(layers, batch, slots, heads, config.head_dim, dtype)
