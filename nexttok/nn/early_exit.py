"""A decoder that stops early: its first layers, one more of its own, final norm (EESD).

(Liu et al., "Speculative Decoding via Early-exiting for Faster LLM Inference with Thompson Sampling
Control Mechanism", 2024.)
"""

import flax.linen as nn
from jaxtyping import Array, Float, Int

from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.backbones.decoder import FinalNorm, init_cache
from nexttok.nn.backbones.embed import Embed
from nexttok.nn.cache import Cache, enter, leave
from nexttok.nn.slots import Slots
from nexttok.nn.transformer import Transformer

__all__ = ["EarlyExit", "init_cache", "make"]


class EarlyExit(nn.Module):
    """Embeddings, config.depth - 1 layers, one layer, final norm: named as those of a decoder, but
    for the last layer, which stands apart."""

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
        embed = Embed(c, self.inputs, self.dtype, name="embed")
        x, classes, cond, rotary = embed(slots, label, train)
        cache, done = enter(cache, slots.steps, slots.written, slots.among), 0
        for name, depth in (("trunk", c.depth - 1), ("exit", 1)):
            stack = Transformer(c.transformer(self.dtype, depth), (x.shape[1],), name=name)
            x, cache, _ = stack(
                x, slots.steps, rotary, cond, cache=cache, first_layer=done, runs=slots.runs,
                train=train,
            )  # fmt: skip
            done += depth
        x = FinalNorm(c, self.dtype, name="final")(x, classes)
        return x, leave(cache, len(slots.index))


def make(config: BackboneConfig, inputs: Inputs, dtype: str) -> EarlyExit:
    """The network."""
    return EarlyExit(config, inputs, dtype)
