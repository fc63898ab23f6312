"""Models made of models: what is steered or constrained is sampled like any other.

tuned = steered([large, small_tuned, small], control.proxy)
legal = constrained(tuned, control.live(automaton, accepting, tuned.tokens), start=0)
tokens, stats = speculate(legal, ...)
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from nexttok.causal import Causal, chain
from nexttok.config import check


def steered(models: Sequence[Causal], mix: Callable[..., Array]) -> Causal:
    """The model whose logits are mix(logits of the first, of the second, ...).

    Hidden states are those of the first.

    Raises:
      ConfigError: models of different tokens.
    """
    first = models[0]
    same = all((m.tokens, m.vocab) == (first.tokens, first.vocab) for m in models)
    check(same, "sampler.models", [(m.tokens, m.vocab) for m in models],
          "models of the same number of tokens and vocabulary")  # fmt: skip

    def score(tokens, parents, length, states):
        scored = [m.score(tokens, parents, length, s) for m, s in zip(models, states, strict=True)]
        logits, hidden, states = zip(*scored, strict=True)
        return mix(*logits), hidden[0], states

    def each(name):
        def call(states, *args):
            return tuple(getattr(m, name)(s, *args) for m, s in zip(models, states, strict=True))

        return call

    def start(batch, room):
        return tuple(m.start(batch, room) for m in models)

    return Causal(first.tokens, first.vocab, start, score, each("keep"), each("select"))


def constrained(model: Causal, tables: Int[Array, "N Q V"], start: int) -> Causal:
    """The model of which, token by token, only what an automaton allows is left.

    Args:
      model: the model; the law of each token is renormalized by itself, so that strings are not
        distributed as those of the model that happen to be allowed.
      tables: for every token the next state by state and token, -1 where there is none
        (control.live). A state without a way on lets every token pass.
      start: the first state.
    """
    n = model.tokens

    def begin(batch, room):
        # the state behind the token that a slot holds; slot 0 holds none
        return model.start(batch, room), jnp.full((batch, n + room), start, jnp.int32)

    def score(tokens, parents, length, state):
        inner, reached = state
        batch, size = tokens.shape
        check(length.ndim == 1, "sampler", "tokens apart", "one that draws token after token")
        logits, hidden, inner = model.score(tokens, parents, length, inner)
        parents = chain(batch, size) if parents is None else parents
        rows = jnp.arange(batch)

        def step(carry, s):
            reached, depth = carry
            parent = parents[:, s]
            deep = jnp.where(s == 0, 0, depth[rows, jnp.maximum(parent, 0)] + 1)
            at = length + deep  # the slot of this depth predicts token `at`, and holds that before
            before = jnp.where(s == 0, length - 1, length + jnp.maximum(parent, 0))
            from_state = reached[rows, jnp.maximum(before, 0)]
            moved = tables[jnp.clip(at - 1, 0, n - 1), jnp.maximum(from_state, 0), tokens[:, s]]
            moved = jnp.where(at == 0, start, jnp.where(from_state < 0, -1, moved))
            reached = reached.at[rows, length + s].set(moved)
            return (reached, depth.at[:, s].set(deep)), (moved, at)

        carry = (reached, jnp.zeros((batch, size), jnp.int32))
        (reached, _), (states, at) = jax.lax.scan(step, carry, jnp.arange(size))
        states, at = states.swapaxes(0, 1), at.swapaxes(0, 1)
        free = tables[jnp.clip(at, 0, n - 1), jnp.maximum(states, 0)] >= 0
        lost = (states < 0) | (at >= n) | ~free.any(-1)
        logits = jnp.where(free | lost[..., None], logits, -jnp.inf)
        return logits, hidden, (inner, reached)

    def keep(state, length, path):
        inner, reached = state
        rows, to = jnp.arange(len(path))[:, None], length[:, None] + 1
        to = to + jnp.arange(path.shape[1])[None]
        source = jnp.where(path < 0, to, length[:, None] + path)
        return model.keep(inner, length, path), reached.at[rows, to].set(reached[rows, source])

    def select(state, rows):
        return model.select(state[0], rows), state[1][rows]

    return Causal(n, model.vocab, begin, score, keep, select)
