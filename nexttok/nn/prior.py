"""A causal transformer over vectors of unit length, as a prior of a tokenizer's codes."""

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from nexttok.nn.linear import INITS, Linear
from nexttok.nn.norms import unit
from nexttok.nn.transformer import Transformer, TransformerConfig


class Prior(nn.Module):
    """Says of every prefix of a sequence which vector comes next (LARP: Wang et al., 2024).

    Attributes:
      config: the transformer; its dropout may be on "embedding" as well.
      length: vectors of a whole sequence.
      channels: of a vector.
    """

    config: TransformerConfig
    length: int
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B M c"], train: bool = False) -> Float[Array, "B M c"]:
        """Unit vectors, the m-th of them from x[:, : m + 1]; M is at most `length`."""
        c, count = self.config, x.shape[1]
        table = self.param("positions", INITS["normal02"], (self.length, c.width))
        h = Linear(c.width, init=c.initializer, dtype=c.dtype, name="from_latents")(x)
        h = h + table[None, :count].astype(h.dtype)
        h = nn.Dropout(c.dropout_at("embedding"), deterministic=not train)(h)
        steps = np.arange(count, dtype=np.int32)
        h, _, _ = Transformer(c, name="trunk")(h, steps=steps, train=train)
        h = c.norm_layer("norm_out")(h)
        return unit(Linear(self.channels, init=c.initializer, name="to_latents")(h))
