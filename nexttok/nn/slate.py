"""SLATE's transformer over codes (Singh et al., "Illiterate DALL-E Learns to Compose", 2021)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.config import check
from nexttok.nn.cache import Cache, empty_cache, enter, leave
from nexttok.nn.linear import Linear
from nexttok.nn.transformer import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """Sizes; see nn/transformer.py.

    Attributes:
      dropout: of embeddings, attention weights, and outputs of attention and MLP.
    """

    width: int
    depth: int
    head_dim: int
    mlp_hidden: int
    dropout: float
    remat: bool
    dtype: str = "float32"
    where: str = "tokenizer.predictor"

    def __post_init__(self):
        for field in ("width", "depth", "head_dim", "mlp_hidden"):
            value = getattr(self, field)
            check(value >= 1, f"{self.where}.{field}", value, "at least 1")
        fits = self.width % self.head_dim == 0
        check(fits, f"{self.where}.head_dim", self.head_dim, f"a divisor of the width {self.width}")
        check(0 <= self.dropout < 1, f"{self.where}.dropout", self.dropout, "0 .. 1, below 1")

    @property
    def trunk(self) -> TransformerConfig:
        """Pre-norm, ReLU, biases in the MLP only, cross-attention to the slots."""
        return TransformerConfig(
            width=self.width, depth=self.depth, head_dim=self.head_dim,
            mlp_hidden=self.mlp_hidden, activation="relu", norm_affine=True, norm_input=True,
            mlp_bias=True, cross=True, dropout=self.dropout,
            dropout_on=("weights", "attention", "mlp"), depth_scaled=True, remat=self.remat,
            dtype=self.dtype,
        )  # fmt: skip

    def cache(self, batch: int, slots: int) -> Cache:
        """An empty cache."""
        heads = self.width // self.head_dim
        return empty_cache(self.depth, batch, slots, heads, self.head_dim, self.dtype)


class CodeEmbedding(nn.Module):
    """Codes with learned positions; code -1 is the start.

    Attributes:
      vocab: number of codes.
      length: of the sequence, start included.
    """

    vocab: int
    length: int
    width: int
    dropout: float

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B n"], places: Int[Array, "n"], train: bool = False
    ) -> Float[Array, "B n D"]:
        normal, cut = nn.initializers.normal(1.0), nn.initializers.truncated_normal(1.0)
        table = self.param("embedding", normal, (self.vocab, self.width))
        start = self.param("sos", normal, (1, self.width))
        positions = self.param("positions", cut, (self.length, self.width))
        codes = jnp.take(table, jnp.maximum(ids, 0), axis=0)
        x = jnp.where((ids < 0)[..., None], start[None], codes)
        x = x + jnp.take(positions, places, axis=0)[None]
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Predictor(nn.Module):
    """Logits of the code after each, from those before and the slots; float32."""

    config: PredictorConfig
    vocab: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B n D"],
        slots: Float[Array, "B K S"],
        steps: Int[Array, "n"],
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B n V"], Cache | None]:
        """`x` are embedded codes at places `steps`; a cache holds those before them."""
        c = self.config
        context = Linear(c.width, False, dtype=c.dtype, name="project")(slots)
        h, cache, _ = Transformer(c.trunk, name="trunk")(
            x.astype(c.dtype), steps, context=context, cache=enter(cache, steps), train=train
        )
        h = c.trunk.norm_layer("norm_out")(h).astype(jnp.float32)
        return Linear(self.vocab, False, name="logits")(h), leave(cache, len(steps))


def greedy(step, start: Int[Array, "B"], cache: Cache, length: int) -> Int[Array, "B N"]:
    """The likeliest code after code, `length` of them, in one scan.

    Args:
      step: (codes [B], place, cache) -> logits [B, V] of the codes after them, cache.
      start: codes at place 0.
      cache: an empty one.
      length: codes wanted.
    """

    def next_code(carry, place):
        codes, cache = carry
        logits, cache = step(codes, place, cache)
        codes = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return (codes, cache), codes

    places = jnp.arange(length, dtype=jnp.int32)
    _, codes = jax.lax.scan(next_code, (start, cache), places)
    return codes.T
