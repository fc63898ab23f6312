"""What tests of exactness need: a model whose joint distribution is known, and a bound.

A lossless sampler draws strings whose counts lie within sampling error of that joint:

    table = make_table(jax.random.key(0), vocab=3, tokens=4)
    drawn = ...  # strings [M, 4] by the sampler, from causal(table)
    assert total_variation(drawn, joint(table, warp)) < bound(joint(table, warp), len(drawn))
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.causal import Causal, ancestry


@dataclasses.dataclass(frozen=True)
class Table:
    """A language model written down: logits of the next token for every prefix.

    Attributes:
      logits: [V^0 + V^1 + ... + V^(N-1), V]; prefixes by length, then in the order of counting.
      tokens: N.
    """

    logits: Float[Array, "P V"]
    tokens: int

    @property
    def vocab(self) -> int:
        """V."""
        return self.logits.shape[1]

    def guided(self, other: "Table", scale: float) -> "Table":
        """other + scale (self - other)."""
        mixed = other.logits + scale * (self.logits - other.logits)
        return dataclasses.replace(self, logits=mixed)


def make_table(rng: Array, vocab: int, tokens: int, concentration: float = 0.7) -> Table:
    """A table of independent Dirichlet draws."""
    prefixes = sum(vocab**i for i in range(tokens))
    alpha = jnp.full((vocab,), concentration)
    probs = jax.random.dirichlet(rng, alpha, (prefixes,))
    return Table(jnp.log(jnp.maximum(probs, 1e-12)), tokens)


def joint(table: Table, warp: Callable[[Array], Array]) -> Float[np.ndarray, "strings"]:
    """The probability of every string, in the order of counting, under the warped table."""
    probs = np.asarray(jax.nn.softmax(warp(table.logits), axis=-1), np.float64)
    total, first = np.ones(1), 0
    for i in range(table.tokens):
        rows = probs[first : first + table.vocab**i]
        total = (total[:, None] * rows).reshape(-1)
        first += table.vocab**i
    return total


def causal(table: Table) -> Causal:
    """The table as a model; its state is what its slots hold."""
    vocab, n = table.vocab, table.tokens
    firsts = jnp.asarray(np.cumsum([0, *(vocab**i for i in range(n))]), jnp.int32)

    def start(batch, room):
        return jnp.zeros((batch, n + room), jnp.int32)

    def score(tokens, parents, length, held):
        batch, size = tokens.shape
        rows = jnp.arange(batch)[:, None]
        slots = length if length.ndim == 2 else length[:, None] + jnp.arange(size)[None]
        held = held.at[rows, slots].set(tokens)
        # slot k holds token k - 1 of the string; a node of a tree that of its depth
        place = jnp.broadcast_to(jnp.arange(held.shape[1])[None], held.shape)
        at, seen = slots, place[:, None] <= slots[..., None]
        if parents is not None:
            depth, among = ancestry(parents)
            at = length[:, None] + depth
            place = place.at[rows, slots].set(at)
            seen = place[:, None] < length[:, None, None]
            seen = jnp.broadcast_to(seen, (batch, size, held.shape[1]))
            seen = seen.at[rows[..., None], jnp.arange(size)[None, :, None], slots[:, None]].set(
                among
            )
        weight = vocab ** jnp.clip(at[..., None] - place[:, None], 0, n - 1)
        code = jnp.where(seen & (place > 0)[:, None], held[:, None] * weight, 0).sum(-1)
        inside = at < n
        row = jnp.where(inside, firsts[jnp.minimum(at, n - 1)] + code, 0)
        logits = jnp.where(inside[..., None], table.logits[row], 0.0)
        return logits, jnp.zeros((batch, size, 1)), held

    def keep(held, length, path):
        rows, to = (
            jnp.arange(len(held))[:, None],
            length[:, None] + 1 + jnp.arange(path.shape[1])[None],
        )
        source = jnp.where(path < 0, to, length[:, None] + path)
        return held.at[rows, to].set(held[rows, source])

    return Causal(n, vocab, start, score, keep, lambda held, rows: held[rows])


def total_variation(
    strings: Int[Array, "M N"] | Int[np.ndarray, "M N"], probs: Float[np.ndarray, "strings"]
) -> float:
    """Half the L1 distance between the counts of strings and their probabilities."""
    strings = np.asarray(strings)
    count, n = strings.shape
    vocab = round(len(probs) ** (1 / n))
    codes = strings @ (vocab ** np.arange(n - 1, -1, -1))
    found = np.bincount(codes, minlength=len(probs)) / count
    return float(0.5 * np.abs(found - probs).sum())


def bound(probs: Float[np.ndarray, "strings"], count: int, epsilon: float = 1e-6) -> float:
    """What the total variation of `count` exact draws exceeds with probability < epsilon.

    The first term bounds its mean, the second is McDiarmid's inequality.
    """
    mean = 0.5 * np.sqrt(probs * (1.0 - probs) / count).sum()
    return float(mean + math.sqrt(math.log(1.0 / epsilon) / (2.0 * count)))
