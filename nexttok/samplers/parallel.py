"""Confidence-parallel decoding: a call reveals all tokens that it is sure of.

(Wu et al., "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and
Parallel Decoding", 2025. If n tokens are revealed whose chosen values have probabilities above
1 - e each and (n + 1) e <= 1, the greedy choice of their product is that of their joint law.) When
tokens are drawn it is an approximation, for which the paper states no bound.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.causal import Masked
from nexttok.rng import categorical, stream


def sure(
    confidence: Float[Array, "B N"], hidden: Bool[Array, "B N"], threshold: float, factor: float
) -> Bool[Array, "B N"]:
    """Which hidden tokens are revealed: the surest one, and those of confidence >= threshold.

    With a `factor` above 0, instead of the latter, the n surest for the largest n with
    (n + 1) (1 - the n-th confidence) < factor.
    """
    c = jnp.where(hidden, confidence, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-c, axis=1), axis=1)
    chosen = c >= threshold
    if factor > 0:
        falling = -jnp.sort(-c, axis=1)
        n = jnp.arange(1, c.shape[1] + 1)[None]
        fits = (n + 1).astype(c.dtype) * (1.0 - falling) < factor
        count = jnp.where(fits, n, 0).max(1, keepdims=True)
        chosen = rank < count
    return hidden & (chosen | (rank == 0))


def reveal(
    model: Masked,
    warp: Callable[[Array], Array],
    batch: int,
    rng: Array,
    threshold: float = 0.9,
    factor: float = 0.0,
) -> tuple[Int[Array, "B N"], dict]:
    """Draws N tokens per row, each call as many as `sure` says, until none is hidden.

    Args:
      model: predicts.
      warp: logits -> logits, of what is drawn; confidence is the probability of the drawn token
        before it.
      batch: rows.
      rng: key.
      threshold, factor: see `sure`; a threshold above 1 reveals one token a call.

    Returns:
      Tokens by index, and stats: network_calls, and rounds per row [B].
    """

    def going(carry):
        return carry[1].any()

    def call(carry):
        tokens, hidden, calls, rounds = carry
        logits = model.predict(tokens, hidden)
        drawn = categorical(stream(rng, "call", calls), warp(logits))
        probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        confidence = jnp.take_along_axis(probs, drawn[..., None], axis=-1)[..., 0]
        new = sure(confidence, hidden, threshold, factor)
        active = hidden.any(1).astype(jnp.int32)
        return jnp.where(new, drawn, tokens), hidden & ~new, calls + 1, rounds + active

    carry = (
        jnp.zeros((batch, model.tokens), jnp.int32),
        jnp.ones((batch, model.tokens), bool),
        jnp.zeros((), jnp.int32),
        jnp.zeros((batch,), jnp.int32),
    )
    tokens, _, calls, rounds = jax.lax.while_loop(going, call, carry)
    return tokens, {"network_calls": calls, "rounds": rounds}
