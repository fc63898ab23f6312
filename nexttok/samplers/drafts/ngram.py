"""Guesses from counts: which tokens followed the last two, as in ADED's trigram tables.

(Liu et al., "Adaptive Draft-Verification for Efficient Large Language Model Decoding", 2024. There
a Monte Carlo tree search picks the paths and the table is updated as text is generated; here a
fixed number of the most frequent successors is followed at each depth, and the table stands.) The
guesses are a fixed set, which verification takes as such, so that tokens stay exact.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from nexttok.config import check
from nexttok.samplers.speculative import Drafter
from nexttok.samplers.verify import Draft


class Table(NamedTuple):
    """Successors of pairs of tokens.

    Attributes:
      pairs: int32 [R], first times V plus second, rising.
      successors: int32 [R, K], the most frequent first, -1 where there are fewer.
    """

    pairs: Int[np.ndarray, "R"]
    successors: Int[np.ndarray, "R K"]


def count(tokens: Int[np.ndarray, "M N"], vocab: int, keep: int) -> Table:
    """The table of strings of tokens, each in the order of generation.

    Raises:
      ConfigError: a vocabulary whose pairs int32 cannot number, or strings that are too short.
    """
    check(vocab**2 < 2**31, "tokenizer.vocab", vocab, "at most 46340 for pairs of tokens")
    check(tokens.shape[1] >= 3, "tokens", tokens.shape, "strings of 3 tokens or more")
    tokens = np.asarray(tokens, np.int64)
    triples = (tokens[:, :-2] * vocab + tokens[:, 1:-1]) * vocab + tokens[:, 2:]
    found, times = np.unique(triples, return_counts=True)
    pairs, nexts = np.divmod(found, vocab)
    order = np.lexsort((nexts, -times, pairs))
    pairs, nexts = pairs[order], nexts[order]
    keys, first = np.unique(pairs, return_index=True)
    rank = np.arange(len(pairs)) - np.repeat(first, np.diff(np.append(first, len(pairs))))
    successors = np.full((len(keys), keep), -1, np.int32)
    kept = rank < keep
    successors[np.searchsorted(keys, pairs[kept]), rank[kept]] = nexts[kept]
    return Table(keys.astype(np.int32), successors)


def ngram(table: Table, vocab: int, branches: tuple[int, ...]) -> Drafter:
    """A tree whose nodes of depth l have the branches[l] most frequent successors as children.

    Raises:
      ConfigError: no branches, or more than the table keeps.
    """
    most = table.successors.shape[1]
    fits = len(branches) > 0 and all(1 <= b <= most for b in branches)
    check(fits, "sampler.branches", branches, f"numbers of 1 .. {most}")
    sizes = np.cumprod([1, *branches])
    firsts, nodes = np.cumsum([0, *sizes]), int(sizes.sum())
    pairs, successors = (jnp.asarray(v) for v in table)

    def start(batch, key):
        """The token before the last one."""
        del key
        return jnp.zeros((batch,), jnp.int32)

    def after(first, second):
        """Successors [..., K] of pairs, -1 where there are none."""
        key = first * vocab + second
        row = jnp.minimum(jnp.searchsorted(pairs, key), len(pairs) - 1)
        return jnp.where((pairs[row] == key)[..., None], successors[row], -1)

    def propose(before, last, length, key):
        del key
        batch = len(last)
        tokens = jnp.zeros((batch, nodes), jnp.int32).at[:, 0].set(last)
        parents = jnp.full((batch, nodes), -1, jnp.int32)
        grand = jnp.zeros((batch, nodes), jnp.int32).at[:, 0].set(before)
        for level, branch in enumerate(branches):
            ids = np.arange(firsts[level], firsts[level + 1])
            own = slice(int(firsts[level + 1]), int(firsts[level + 2]))
            new = after(grand[:, ids], tokens[:, ids])[..., :branch]
            there = (parents[:, ids] >= 0) | (jnp.asarray(ids) == 0)[None]
            there = there & (length[:, None] >= 2)  # a pair stands before
            parent = jnp.broadcast_to(jnp.asarray(ids, jnp.int32)[None, :, None], new.shape)
            parent = jnp.where((new >= 0) & there[..., None], parent, -1)
            grand = grand.at[:, own].set(jnp.repeat(tokens[:, ids], branch, axis=1))
            tokens = tokens.at[:, own].set(jnp.maximum(new, 0).reshape(batch, -1))
            parents = parents.at[:, own].set(parent.reshape(batch, -1))
        laws = jnp.zeros((batch, nodes, vocab))  # of a fixed set none is read
        return Draft(tokens, parents, laws), before

    def learn(before, outcome, key):
        del before, key
        at = jnp.maximum(outcome.length - 2, 0)[:, None]
        return jnp.take_along_axis(outcome.tokens, at, axis=1)[:, 0]

    width = max(branches)
    return Drafter(nodes, len(branches), width, "given", start, propose, learn)
