"""Revocable sampling of masked models: after every call the surest tokens stay, of all that there
are, and what was drawn before may be hidden again.

    call 1   draws  a b c d    stays  . b . .
    call 2   draws  e b f g    stays  e . . g      b is drawn once more

Frequency adaptive sampling (Lee et al., "Text-Conditioned Sampling Framework for Text-to-Image
Generation with Masked Generative Models", 2023) keeps it from wearing smooth regions out: tokens
that receive less attention than the average are of low frequency, and stay once they are drawn. The
paper publishes no code, and this rule is a reading of its text. Its learned selector (TCTS,
drafters/selector.py) is a `score`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nexttok.causal import Masked
from nexttok.rng import categorical, stream


def staying(
    sure: Float[Array, "B N"], fixed: Bool[Array, "B N"], count: int | Int[Array, ""]
) -> Bool[Array, "B N"]:
    """The `count` surest tokens; `fixed` ones, of which there are no more, among them."""
    first = jnp.where(fixed, jnp.inf, sure)
    return jnp.argsort(jnp.argsort(-first, axis=1), axis=1) < count


def revocable(
    model: Masked,
    warp: Callable[[Array], Array],
    kept: tuple[int, ...],
    batch: int,
    rng: Array,
    score: Callable[[Array], Array] | None = None,
    persistent: bool = False,
    noise: float = 0.0,
) -> tuple[Int[Array, "B N"], dict]:
    """Draws N tokens per row in as many calls as `kept` is long.

    Args:
      model: predicts.
      warp: logits -> logits, of what is drawn.
      kept: how many tokens stay after each call; the last is N.
      batch: rows.
      rng: key.
      score: complete tokens [B, N] -> how sure each of them is; None for the log-probability,
        before the warp, with which it was drawn.
      persistent: tokens of low frequency stay.
      noise: of Gumbel noise on how sure they are, falling to none.

    Returns:
      Tokens by index, and stats: network_calls, and revoked tokens per row [B].
    """
    steps = len(kept)

    def call(carry, at):
        tokens, hidden, sure, revoked = carry
        i, count = at
        if persistent:
            logits, received = model.watch(tokens, hidden)
            low = received < received.mean(1, keepdims=True)
        else:
            logits, low = model.predict(tokens, hidden), jnp.zeros_like(hidden)
        drawn = categorical(stream(rng, "call", i), warp(logits))
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        own = jnp.take_along_axis(log_probs, drawn[..., None], axis=-1)[..., 0]
        tokens, sure = jnp.where(hidden, drawn, tokens), jnp.where(hidden, own, sure)
        found = sure if score is None else score(tokens)
        gumbel = jax.random.gumbel(stream(rng, "noise", i), found.shape)
        share = (i.astype(jnp.float32) + 1.0) / steps
        stays = staying(found + noise * (1.0 - share) * gumbel, low & ~hidden, count)
        revoked = revoked + (~stays & ~hidden).sum(1).astype(jnp.int32)
        return (tokens, ~stays, sure, revoked), None

    shape = batch, model.tokens
    carry = (
        jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), jnp.zeros(shape),
        jnp.zeros((batch,), jnp.int32),
    )  # fmt: skip
    ats = jnp.arange(steps, dtype=jnp.int32), jnp.asarray(kept, jnp.int32)
    (tokens, _, _, revoked), _ = jax.lax.scan(call, carry, ats)
    return tokens, {"network_calls": steps, "revoked": revoked}
