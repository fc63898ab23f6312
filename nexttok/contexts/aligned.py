"""Slots that stand one to one with the tokens they predict: what shift and block share.

A context says, for every slot, which token of the order it holds, or which special vector.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nexttok.contexts.contract import Calls, Lesson
from nexttok.nn.slots import FILL, START, TOKEN, Slots, at, class_slots, join
from nexttok.plans import Plan
from nexttok.steps import At, Step

START_SOURCE = -1  # -2 - j is filler j


def slots(
    source: Int[np.ndarray, "N"],
    plan: Plan,
    tokens: Array,
    order: Int[Array, "B N"],
    first,
    size: int,
    prefix: int,
) -> Slots:
    """Slots first .. first + size - 1.

    Args:
      source: per slot the place in the order of the token it holds, or a special (below 0).
      plan: gives the steps.
      tokens: in generation order [B, M, ...]; those not known yet are never read by `source`.
      order: token index at every place of the order.
      first: may be traced.
      size: number of slots.
      prefix: class slots in front; positions count them.
    """
    held = at(jnp.asarray(source, jnp.int32), first, size)
    safe = jnp.maximum(held, 0)
    special = jnp.where(held == START_SOURCE, START, FILL - 2 - held)
    place = plan.order[None] if plan.kind == "fixed" else order
    place = jnp.where(held[None] >= 0, jnp.take(jnp.asarray(place), safe, axis=1), -1)
    return Slots(
        content=jnp.take(tokens, safe, axis=1),
        kind=jnp.where(held >= 0, TOKEN, special),
        index=prefix + first + jnp.arange(size, dtype=jnp.int32),
        place=place[0] if plan.kind == "fixed" else place,
        steps=at(jnp.asarray(plan.step_of_slot), first, size),
    )


def lesson(source: Int[np.ndarray, "N"], plan: Plan, tokens: Array, order, prefix: int) -> Lesson:
    """Teacher forcing: all slots at once; `tokens` are in generation order."""
    body = slots(source, plan, tokens, order, 0, plan.length, prefix)
    body = join(class_slots(tokens, prefix), body) if prefix else body
    return Lesson(body, (prefix, 1), tokens)


def step(source: Int[np.ndarray, "N"], plan: Plan, calls: Calls, prefix: int) -> Step:
    """One step of decoding: the slots of its tokens, against the cache."""

    def run(tokens, order, at_: At, cache, key):
        new = slots(source, plan, tokens, order, at_.first, at_.size, prefix)
        leading = prefix and isinstance(at_.index, int) and at_.index == 0
        if leading:
            new = join(class_slots(tokens, prefix), new)
        hidden, other, cache = calls.net(new, cache)
        hidden, other = (h if h is None else h[:, -at_.size :] for h in (hidden, other))
        return calls.sample(hidden, other, at_, key)[0], order, cache

    return Step(run, alone_first=prefix > 0)
