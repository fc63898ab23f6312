"""Speculative Jacobi decoding: the model drafts for itself.

Every call scores a window of guesses; the laws that it finds behind them, though some were computed
with wrong guesses in front, are what the next window is drawn from. They are recorded, so that
verification is exact (Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with
Training-free Speculative Jacobi Decoding", 2024). Each row keeps its own length: the released code
commits the least of a batch and tests accepted tokens again, which is biased.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.causal import chain
from nexttok.config import check
from nexttok.rng import categorical, stream
from nexttok.samplers.speculative import Drafter
from nexttok.samplers.verify import Draft

INITS = ("random", "repeat_left", "repeat_above", "sample_left", "sample_above")


class Window(NamedTuple):
    """Memory of the drafter.

    Attributes:
      tokens: committed tokens, then guesses [B, N + W].
      laws: what the guesses were drawn from, and the laws of the tokens before them; the law of
        token t stands at t modulo the ring's length [B, R, V].
    """

    tokens: Int[Array, "B T"]
    laws: Float[Array, "B R V"]


def jacobi(tokens: int, vocab: int, window: int, init: str, columns: int) -> Drafter:
    """The drafter.

    Args:
      tokens, vocab: of the model.
      window: guesses W per call.
      init: what a guess is before the model has seen it. random: any token; repeat_left,
        repeat_above: the token that stands there; sample_left, sample_above: a draw from its law.
        A token without such a neighbour starts at random.
      columns: of the token grid; 0 for tokens in a line, which have nothing above.

    Raises:
      ConfigError: no such start, no window, or `above` without a grid.
    """
    check(init in INITS, "sampler.init", init, " | ".join(INITS))
    check(window >= 1, "sampler.window", window, "at least 1")
    above = init.endswith("above")
    check(columns > 0 or not above, "sampler.init", init, "random | repeat_left | sample_left")
    reach = columns if above else 1
    ring = window + 1 + reach
    uniform = jnp.full((vocab,), 1.0 / vocab, jnp.float32)

    def begin(batch, key):
        memory = Window(
            jnp.zeros((batch, tokens + window + 1), jnp.int32),
            jnp.broadcast_to(uniform[None, None], (batch, ring, vocab)),
        )
        none = jnp.zeros((batch,), jnp.int32)
        return fill(memory, none, none, key)

    def fill(memory, length, known, key):
        """Guesses for the tokens from `length` on: before `known` from their laws, then, each by
        its nearest known neighbour to the left or above, as `init` says."""
        rows, at = places(length)
        laws = memory.laws[rows, at % ring]
        own, last = at < known[:, None], length[:, None] - 1
        if above:
            unknown = at - jnp.maximum(length, known)[:, None] + 1
            source = at + columns * (-unknown // columns)
            source = jnp.where(source < 0, at % columns, source)
            root = own | (source == at)
        else:
            root = own | ((at % columns if columns else at) == 0)
            source = jax.lax.cummax(jnp.where(root, at, last), axis=1)
        root = jnp.ones_like(root) if init == "random" else root
        drawn_from = jnp.where(own[..., None], laws, uniform[None, None])
        guesses = categorical(stream(key, "root"), jnp.log(drawn_from))
        if init != "random":
            inside = source - length[:, None]  # below 0 among the committed tokens
            here = jnp.maximum(inside, 0)
            if init.startswith("repeat"):
                copied = jnp.where(
                    inside < 0, memory.tokens[rows, jnp.maximum(source, 0)], guesses[rows, here]
                )
                other = jax.nn.one_hot(copied, vocab)
            else:
                before = memory.laws[rows, jnp.maximum(source, 0) % ring]
                other = jnp.where((inside < 0)[..., None], before, drawn_from[rows, here])
                copied = categorical(stream(key, "other"), jnp.log(other))
            guesses = jnp.where(root, guesses, copied)
            drawn_from = jnp.where(root[..., None], drawn_from, other)
        return Window(
            memory.tokens.at[rows, at].set(guesses), memory.laws.at[rows, at % ring].set(drawn_from)
        )

    def places(length):
        return jnp.arange(len(length))[:, None], length[:, None] + jnp.arange(window)[None]

    def propose(memory, last, length, key):
        del key
        rows, at = places(length)
        guesses = jnp.concatenate([last[:, None], memory.tokens[rows, at]], axis=1)
        laws = jnp.pad(memory.laws[rows, at % ring], ((0, 0), (0, 1), (0, 0)))
        return Draft(guesses, chain(len(last), window + 1), laws), memory

    def learn(memory, outcome, key):
        rows = jnp.arange(len(outcome.length))[:, None]
        at = outcome.before[:, None] + jnp.arange(window + 1)[None]
        laws = memory.laws.at[rows, at % ring].set(outcome.probs)
        held = memory.tokens.at[rows, at].set(outcome.tokens[rows, at])
        return fill(Window(held, laws), outcome.length, at[:, -1] + 1, key)

    return Drafter(window + 1, window, 1, "independent", begin, propose, learn)
