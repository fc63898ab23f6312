"""Guesses of several tokens at once: the verifying model, asked what comes after the next token.

Vectors that were trained for it stand in place of the tokens between (Monea et al., "PaSS: Parallel
Speculative Sampling", 2023). One call gives the law of the next token, which is exact, and guesses
of those behind it, each drawn without knowledge of the others; a second call verifies them. So two
calls draw at least two tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nexttok.causal import chain
from nexttok.config import check
from nexttok.rng import categorical, stream
from nexttok.samplers.speculative import Drafter
from nexttok.samplers.verify import Draft

# (last token [B], length [B], state) -> (logits of the next token and of those behind it, state)
Look = Callable[[Array, Array, Any], tuple[Array, Any]]


def lookahead(look: Look, warp: Callable[[Array], Array], ahead: int, vocab: int) -> Drafter:
    """A chain of the next token and `ahead` behind it.

    Args:
      look: logits [B, ahead + 1, V] by the model that verifies; what it writes into its state
        behind the last token is overwritten.
      warp: of these logits.
      ahead: tokens behind the next one.
      vocab: V.

    Raises:
      ConfigError: none ahead.
    """
    check(ahead >= 1, "sampler.window", ahead, "at least 1")

    def start(batch, key):
        """Logits of the last look."""
        del key
        return jnp.zeros((batch, ahead + 1, vocab))

    def peek(memory, last, length, state):
        logits, state = look(last, length, state)
        return logits.astype(memory.dtype), state

    def propose(logits, last, length, key):
        del length
        laws = jax.nn.softmax(warp(logits), axis=-1)
        guesses = categorical(stream(key, "token"), jnp.log(laws))
        tokens = jnp.concatenate([last[:, None], guesses], axis=1)
        laws = jnp.pad(laws, ((0, 0), (0, 1), (0, 0)))
        return Draft(tokens, chain(len(last), ahead + 2), laws), logits

    def learn(memory, outcome, key):
        del outcome, key
        return memory

    shape = (ahead + 2, ahead + 1, 1, "independent")
    return Drafter(*shape, start, propose, learn, calls=1, peek=peek)
