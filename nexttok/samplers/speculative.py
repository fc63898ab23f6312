"""Speculative decoding: draft several tokens, verify them in one call of the model, keep a prefix.

One loop serves every drafter (samplers/drafts): chains and trees, from a smaller model, from the
model's own last call (Jacobi) or look ahead, from counts. Rows of a batch advance independently
(Qian et al., "BASS: Batched Attention-optimized Speculative Sampling", 2024), which keeps each of
them exact.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.causal import Causal
from nexttok.rng import stream
from nexttok.samplers.verify import Draft, Relax, Verdict, verify


class Outcome(NamedTuple):
    """What a drafter learns of a round.

    Attributes:
      draft, verdict: of the round.
      probs: the model's law behind every node [B, M, V]; hidden: its states there [B, M, F].
      tokens: by place in the order, committed before `length` [B, N + D + 1].
      before, length: committed tokens before and after the round [B].
    """

    draft: Draft
    verdict: Verdict
    probs: Float[Array, "B M V"]
    hidden: Float[Array, "B M F"]
    tokens: Int[Array, "B T"]
    before: Int[Array, "B"]
    length: Int[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Drafter:
    """Where guesses come from.

    Attributes:
      nodes: of a tree, the root included; depth: longest path; width: most children of a node.
      kind: how children are chosen (verify.KINDS).
      start: (batch, key) -> memory, any pytree.
      propose: (memory, last token [B], length [B], key) -> (Draft, memory). What it stops at may
        depend on what it has drawn, never on a draw that it then leaves out.
      learn: (memory, Outcome, key) -> memory.
      calls: of the model that drafts, per round.
      peek: (memory, last token [B], length [B], state) -> (memory, state), before it proposes: what
        it asks the verifying model itself, in slots of it that are not kept; None asks nothing.
    """

    nodes: int
    depth: int
    width: int
    kind: str
    start: Callable[..., Any]
    propose: Callable[..., tuple[Draft, Any]]
    learn: Callable[..., Any]
    calls: int = 0
    peek: Callable[..., tuple[Any, Any]] | None = None


def speculate(
    model: Causal,
    drafter: Drafter,
    warp: Callable[[Array], Array],
    batch: int,
    rng: Array,
    relax: Relax | None = None,
) -> tuple[Int[Array, "B N"], dict]:
    """Draws N tokens per row from the warped model.

    Args:
      model: what is drawn from.
      drafter: where guesses come from.
      warp: logits -> logits: temperature, truncation.
      batch: rows.
      rng: key.
      relax: see verify; None is exact: tokens are distributed as by one call per token.

    Returns:
      Tokens in the order of the model, and stats: network_calls (of the loop, which ends with its
      slowest row), rounds and accepted (guesses that were kept) per row [B], draft_calls.
    """
    n, rows = model.tokens, jnp.arange(batch)[:, None]
    ahead = jnp.arange(drafter.depth + 1)[None]

    def going(carry):
        return jnp.any(carry["length"] < n)

    def advance(carry):
        key = stream(rng, "round", carry["calls"])
        tokens, before = carry["tokens"], carry["length"]
        last = jnp.take_along_axis(tokens, jnp.maximum(before - 1, 0)[:, None], axis=1)[:, 0]
        memory, state = carry["memory"], carry["state"]
        if drafter.peek is not None:
            memory, state = drafter.peek(memory, last, before, state)
        draft, memory = drafter.propose(memory, last, before, stream(key, "draft"))
        parents = None if drafter.width == 1 else draft.parents
        logits, hidden, state = model.score(draft.tokens, parents, before, state)
        probs = jax.nn.softmax(warp(logits).astype(jnp.float32), axis=-1)
        shape = (drafter.kind, drafter.width, drafter.depth)
        verdict = verify(draft, probs, stream(key, "verify"), *shape, relax)
        if drafter.width > 1:
            state = model.keep(state, before, verdict.path)
        kept = jnp.take_along_axis(draft.tokens, jnp.maximum(verdict.path, 0), axis=1)
        kept = jnp.pad(kept, ((0, 0), (0, 1)))
        count = verdict.accepted[:, None]
        new = jnp.where(ahead == count, verdict.token[:, None], kept)
        at = before[:, None] + ahead
        old = tokens[rows, at]
        tokens = tokens.at[rows, at].set(jnp.where(ahead <= count, new, old))
        length = jnp.minimum(before + verdict.accepted + 1, n)
        outcome = Outcome(draft, verdict, probs, hidden, tokens, before, length)
        active = before < n
        gained = jnp.where(active, length - before, 0)
        return {
            "tokens": tokens,
            "length": length,
            "state": state,
            "memory": drafter.learn(memory, outcome, stream(key, "learn")),
            "calls": carry["calls"] + 1,
            "rounds": carry["rounds"] + active.astype(jnp.int32),
            "accepted": carry["accepted"] + jnp.minimum(verdict.accepted, gained),
        }

    none = jnp.zeros((batch,), jnp.int32)
    carry = {
        "tokens": jnp.zeros((batch, n + drafter.depth + 1), jnp.int32),
        "length": none,
        "state": model.start(batch, drafter.nodes),
        "memory": drafter.start(batch, stream(rng, "start")),
        "calls": jnp.zeros((), jnp.int32),
        "rounds": none,
        "accepted": none,
    }
    carry = jax.lax.while_loop(going, advance, carry)
    stats = {
        "network_calls": carry["calls"],
        "draft_calls": carry["calls"] * drafter.calls,
        "rounds": carry["rounds"],
        "accepted": carry["accepted"],
    }
    return carry["tokens"][:, :n], stats
