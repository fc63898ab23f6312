"""Categorical head: a softmax over the vocabulary."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.config import check
from nexttok.heads import guidance
from nexttok.nn.linear import Linear
from nexttok.tokens import TokenSpec


class Logits(nn.Module):
    """Linear map to float32 logits; zero-initialized, so the first loss is log V."""

    vocab: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        return Linear(self.vocab, bias=False, init="zeros", name="logits")(
            hidden.astype(jnp.float32)
        )


def net(spec: TokenSpec) -> Logits:
    """The head's network.

    Raises:
      ConfigError: the tokens are continuous.
    """
    allowed = "gmm, diffusion or flow, as these tokens are continuous"
    check(spec.vocab > 0, "generator.head", "categorical", allowed)
    return Logits(spec.vocab)


def loss(
    logits: Float[Array, "B S V"], target: Int[Array, "B S"]
) -> tuple[Float[Array, "B S"], dict]:
    """Cross-entropy in nats per token; metrics {accuracy}."""
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - picked
    hits = (jnp.argmax(logits, -1) == target).astype(jnp.float32)
    return nats, {"accuracy": hits.mean()}


def sample(
    cond: Float[Array, "B S V"],
    uncond: Float[Array, "B S V"] | None,
    rng: Array,
    scale: float,
    warp: Callable[[Array], Array],
) -> Int[Array, "B S"]:
    """Draws ids by Gumbel-max.

    Args:
      cond: conditional logits.
      uncond: unconditional logits, or None for no guidance.
      rng: key.
      scale: guidance u + s(c - u).
      warp: logits -> logits; temperature and truncation (samplers/logits.py), after guidance.
    """
    logits = cond if uncond is None else guidance.cfg(cond, uncond, scale)
    return jax.random.categorical(rng, warp(logits), axis=-1).astype(jnp.int32)
