"""The causal backbone of generators: token slots in, hidden states out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.nn.attention import Cache
from nexttok.nn.linear import INITS
from nexttok.nn.norms import Norm
from nexttok.nn.transformer import Transformer, TransformerConfig


def _uniform(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -0.1, 0.1)


class Backbone(nn.Module):
    """Token, position and class embeddings, a transformer and a final norm.

    The class embedding is added to the start vector, so the condition enters through slot 0 only;
    label -1 (no class) adds nothing (FlexTok AR). One call serves training (all slots at once) and
    cached decoding (the new slots).

    Attributes:
      config: the transformer.
      vocab: ids that can be embedded.
      length: number of positions.
      classes: number of classes; 0 for unconditional.
    """

    config: TransformerConfig
    vocab: int
    length: int
    classes: int

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B S"],
        positions: Int[Array, "S"],
        steps: Int[Array, "S"],
        label: Int[Array, "B"],
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Hidden states of the slots; ids below 0 are the start slot."""
        c = self.config
        embedding = self.param("embedding", _uniform, (self.vocab, c.width)).astype(c.dtype)
        start = self.param("sos", _uniform, (c.width,)).astype(c.dtype)[None]
        if self.classes:
            table = self.param("class_embedding", _uniform, (self.classes, c.width))
            known = jnp.take(table.astype(c.dtype), jnp.maximum(label, 0), axis=0)
            start = start + jnp.where(label[:, None] >= 0, known, jnp.zeros_like(known))
        x = jnp.take(embedding, jnp.maximum(ids, 0), axis=0)
        x = jnp.where((ids < 0)[..., None], start[:, None], x)
        table = self.param("positions", INITS["normal02"], (self.length, c.width))
        x = x + jnp.take(table.astype(c.dtype), positions, axis=0)[None]
        x = nn.Dropout(c.dropout, deterministic=not train)(x)
        x, cache, _ = Transformer(c, name="trunk")(x, steps=steps, cache=cache, train=train)
        return Norm(c.norm, c.norm_affine, name="norm")(x), cache
