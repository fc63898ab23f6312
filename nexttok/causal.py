"""Generators of discrete tokens as samplers see them, causal or masked.

A causal one scores windows of tokens, rows of the batch at lengths of their own:

    committed   a  b  c          length 3
    window               c  d  e     its first token is the last committed one (START of none)
    predicts             3  4  5     slot s predicts token length + s

A window may be a tree: slot 0 is its root, and every other slot continues the slot of its parent.
Slots that are not kept are overwritten by the next window, so that nothing needs to be undone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Causal:
    """A model of N discrete tokens in a known order, one a step.

    Attributes:
      tokens: N; vocab: V.
      start: (batch, room) -> state: nothing is committed; windows have at most `room` slots.
      score: (tokens [B, S], parents [B, S] or None for a chain, length [B], state) -> (logits
        [B, S, V] guided but not warped, hidden [B, S, D], state). Slots beyond token N - 1 predict
        nothing that is of use. In place of lengths, places [B, S] of a chain let its slots stand
        apart: each predicts the token of its place, and sees the slots before that were scored.
      keep: (state, length [B], path [B, P]) -> state: of a tree that was scored, node path[b, i]
        becomes the slot of depth i + 1; -1 keeps none. Chains stand where they belong.
      select: (state, rows [B']) -> state: of B' rows, each a copy of one of the B. Neither this nor
        `keep` is there of a model that drafts chains and nothing else.
    """

    tokens: int
    vocab: int
    start: Callable[[int, int], Any]
    score: Callable[..., tuple[Array, Array, Any]]
    keep: Callable[[Any, Array, Array], Any] | None = None
    select: Callable[[Any, Array], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Masked:
    """A model that predicts hidden tokens from all others, in any order.

    Attributes:
      tokens: N; vocab: V.
      predict: (tokens [B, N], hidden [B, N]) -> logits [B, N, V], guided but not warped; hidden
        tokens are not read.
      watch: as predict -> (logits, [B, N] the attention that every token receives, the mean over
        layers); None where that is not known.
    """

    tokens: int
    vocab: int
    predict: Callable[[Array, Array], Array]
    watch: Callable[[Array, Array], tuple[Array, Array]] | None = None


def ancestry(parents: Int[Array, "B S"]) -> tuple[Int[Array, "B S"], Bool[Array, "B S S"]]:
    """Depth of every node, and which nodes it descends from, itself included.

    Args:
      parents: of node 0 anything; of another node one that stands before it.
    """
    size = parents.shape[1]
    own = jnp.arange(size)[None, :, None]
    other = jnp.arange(size)[None, None]
    step = (own == other) | ((parents[..., None] == other) & (own > 0))
    span = 1
    while span < size:  # a path of length 2 span is two of length span
        step = jnp.einsum("bij,bjk->bik", step, step, preferred_element_type=jnp.int32) > 0
        span *= 2
    return step.sum(-1).astype(jnp.int32) - 1, step


def chain(batch: int, size: int) -> Int[Array, "B S"]:
    """The parents of a chain."""
    return jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32)[None] - 1, (batch, size))
