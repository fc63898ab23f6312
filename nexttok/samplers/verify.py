"""Exact verification of drafts: what is kept of a tree of guesses follows the model's law.

At a node, the model's law t and the law q that its children were drawn from decide child by child:
x is accepted with probability min(1, t(x) / q(x)), else t becomes norm(relu(t - q)). Per slot this
draws from t exactly (Leviathan et al., "Fast Inference from Transformers via Speculative Decoding",
2023; trees: Miao et al., "SpecInfer", 2024; without replacement: Jeon et al., "Recursive
Speculative Decoding", 2024).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.rng import categorical, stream

# how the children of a node were chosen: a fixed set; independent draws; draws without replacement
KINDS = ("given", "independent", "distinct")

# (law, token) -> (mass that accepts the token, law that the rest is drawn from)
Relax = Callable[[Array, Array], tuple[Array, Array]]


class Draft(NamedTuple):
    """A batch of trees of guesses.

    Attributes:
      tokens: int32 [B, M]; node 0, the root, is the last committed token.
      parents: int32 [B, M]; a parent stands before its children, siblings in the order in which
        they were drawn; -1 marks the root and nodes that are not there.
      laws: float32 [B, M, V]: what the children of a node were drawn from; not read of a kind
        "given".
    """

    tokens: Int[Array, "B M"]
    parents: Int[Array, "B M"]
    laws: Float[Array, "B M V"]


class Verdict(NamedTuple):
    """What a batch of trees came to.

    Attributes:
      path: accepted nodes below the root, -1 from the first that is not [B, D].
      accepted: how many they are [B].
      token: drawn behind them [B].
    """

    path: Int[Array, "B D"]
    accepted: Int[Array, "B"]
    token: Int[Array, "B"]


def verify(
    draft: Draft,
    probs: Float[Array, "B M V"],
    rng: Array,
    kind: str,
    width: int,
    depth: int,
    relax: Relax | None = None,
) -> Verdict:
    """Walks every tree from its root for as long as some child is accepted.

    Args:
      draft: the guesses.
      probs: the model's law behind every node, warped as it is promised to be.
      rng: key.
      kind: of KINDS; width: most children of a node, 1 for chains in the order of their nodes;
        depth: longest path (all static).
      relax: of a sampler that trades exactness for acceptance; None is exact.
    """
    coins = jax.random.uniform(stream(rng, "coins"), (len(draft.tokens), depth + 1, width))
    if width == 1:
        path, law = _chains(draft, probs, coins[..., 0], kind, relax)
    else:
        walk = jax.vmap(lambda *row: _walk(*row, kind, depth, relax))
        children = _children(draft.parents, width)
        path, law = walk(draft.tokens, children, draft.laws, probs, coins)
    token = categorical(stream(rng, "token"), jnp.log(law))
    return Verdict(path, (path >= 0).sum(-1), token)


def trial(
    law: Float[Array, "V"],
    drawn_from: Float[Array, "V"],
    token: Int[Array, ""],
    coin: Float[Array, ""],
    relax: Relax | None = None,
) -> tuple[Array, Float[Array, "V"]]:
    """Whether a guess is accepted, and the law of what replaces it when it is not."""
    mass, rest = (law[token], law) if relax is None else relax(law, token)
    left = jnp.maximum(rest - drawn_from, 0.0)
    total = left.sum()
    # nothing is left only where the guess cannot be rejected
    return coin * drawn_from[token] < mass, jnp.where(total > 0, left / total, law)


def _chains(draft, probs, coins, kind, relax):
    """As _walk, of trees that are chains: all guesses are tested at once."""
    tokens, depth, rows = draft.tokens[:, 1:], coins.shape[1] - 1, jnp.arange(len(coins))
    one = jax.vmap(lambda *row: trial(*row, relax))

    def drawn_from(token, law):
        return jax.nn.one_hot(token, law.shape[-1]) if kind == "given" else law

    ok, _ = jax.vmap(one)(
        probs[:, :-1], drawn_from(tokens, draft.laws[:, :-1]), tokens, coins[:, :-1]
    )
    kept = jnp.cumprod((ok & (draft.parents[:, 1:] >= 0)).astype(jnp.int32), axis=1)
    count = kept.sum(1)
    path = jnp.where(kept > 0, jnp.arange(1, depth + 1)[None], -1)
    # the first guess that is not kept, if there was one, leaves the rest of its law
    at = jnp.minimum(count, depth - 1)
    failed = (count < depth) & (draft.parents[rows, at + 1] >= 0)
    law, token = probs[rows, count], tokens[rows, at]
    _, left = one(law, drawn_from(token, draft.laws[rows, at]), token, coins[rows, at])
    return path, jnp.where(failed[:, None], left, law)


def _walk(tokens, children, laws, probs, coins, kind, depth, relax):
    vocab = probs.shape[-1]

    def level(carry, coin):
        node, going, law = carry
        found, drawn_from = jnp.full((), -1, jnp.int32), laws[node]
        for k in range(children.shape[1]):
            child = jnp.where(going, children[node, k], -1)
            token = tokens[child]
            given = kind == "given"
            ok, left = trial(
                law, jax.nn.one_hot(token, vocab) if given else drawn_from, token, coin[k], relax
            )
            tested = (child >= 0) & (found < 0)
            law = jnp.where(tested & ~ok, left, law)
            found = jnp.where(tested & ok, child, found)
            if kind == "distinct":
                others = jnp.where(jnp.arange(vocab) == token, 0.0, drawn_from)
                others = others / jnp.maximum(others.sum(), jnp.finfo(others.dtype).tiny)
                drawn_from = jnp.where(tested, others, drawn_from)
        going = going & (found >= 0)
        node = jnp.where(going, found, node)
        return (node, going, jnp.where(going, probs[node], law)), found

    start = (jnp.zeros((), jnp.int32), jnp.ones((), bool), probs[0])
    (_, _, law), path = jax.lax.scan(level, start, coins)
    return path[:depth], law


def _children(parents, width):
    """Children of every node in their order, [B, M, width], -1 where there are no more."""
    size = parents.shape[1]
    nodes = jnp.arange(size, dtype=jnp.int32)[None]
    there = (parents >= 0) & (nodes > 0)
    before = nodes[..., None] > nodes[:, None]
    same = (parents[..., None] == parents[:, None]) & before & there[:, None]
    rank = same.sum(-1)
    rows = jnp.arange(len(parents))[:, None]
    table = jnp.full((*parents.shape, width), -1, jnp.int32)
    column = jnp.where(there, rank, width)  # beyond the table: dropped
    nodes = jnp.broadcast_to(nodes, parents.shape)
    return table.at[rows, jnp.maximum(parents, 0), column].set(nodes, mode="drop")
