"""Slots that stand one to one with the tokens they predict: what shift and block share.

A context says, for every slot, which token of the order it holds, or which special vector. Where a
plan's first step is given, nothing predicts it: the slots begin with those of the second step.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nexttok.contexts.contract import Calls, Lesson
from nexttok.nn.slots import FILL, START, TOKEN, Slots, at, class_slots, join, runs
from nexttok.plans import Plan
from nexttok.steps import At, Step, parts

START_SOURCE = -1  # -2 - j is filler j


def skipped(plan: Plan) -> int:
    """Tokens without a slot."""
    return plan.sizes[0] if plan.given else 0


def slots(
    source: Int[np.ndarray, "N"],
    plan: Plan,
    tokens: Array,
    order: Int[Array, "B N"],
    first,
    size: int,
    prefix: int,
) -> Slots:
    """The slots that predict tokens first .. first + size - 1 of the order.

    Args:
      source: per slot the place in the order of the token it holds, or a special (below 0).
      plan: gives the steps.
      tokens: in generation order [B, M, ...]; those not known yet are never read by `source`.
      order: token index at every place of the order.
      first: at least `skipped`; may be traced.
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
        index=prefix + first - skipped(plan) + jnp.arange(size, dtype=jnp.int32),
        place=place[0] if plan.kind == "fixed" else place,
        steps=at(jnp.asarray(plan.step_of_slot), first, size),
    )


def lesson(source: Int[np.ndarray, "N"], plan: Plan, tokens: Array, order, prefix: int) -> Lesson:
    """Teacher forcing: all slots at once; `tokens` are in generation order."""
    skip = skipped(plan)
    body = slots(source, plan, tokens, order, skip, plan.length - skip, prefix)
    body = body.replace(runs=runs(plan.step_of_slot[skip:]))
    body = join(class_slots(tokens, prefix), body) if prefix else body
    return Lesson(body, (prefix + plan.known - skip, 1), tokens[:, plan.known :])


def step(source: Int[np.ndarray, "N"], plan: Plan, calls: Calls, prefix: int) -> Step:
    """One step of decoding: the slots of its tokens, against the cache.

    The first step also fills the cache with what is in front: class slots, and those of steps that
    are given.
    """

    def run(tokens, order, at_: At, cache, key):
        first, size = at_.first, at_.size
        leading = isinstance(at_.index, int) and at_.index == 0
        if leading:
            first, size = skipped(plan), first + size - skipped(plan)
        new = slots(source, plan, tokens, order, first, size, prefix)
        if leading and prefix:
            new = join(class_slots(tokens, prefix), new)
        filled = prefix + at_.known + at_.size - skipped(plan)
        hidden, other, cache = calls.net(new.replace(filled=filled), cache)
        hidden, other = (h if h is None else h[:, -at_.size :] for h in (hidden, other))
        return calls.sample(hidden, other, at_, key)[0], order, cache

    return Step(run, alone_first=prefix > 0 or plan.given > 0, parts=parts(plan))
