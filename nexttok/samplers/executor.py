"""The executor: one loop that generates with any plan.

It is handed a step function and knows nothing of models. Consecutive steps of one shape run in one
lax.scan; runs of different shapes are unrolled.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.plans import Plan
from nexttok.rng import stream
from nexttok.steps import Step, runs


def generate(
    step: Step,
    plan: Plan,
    blank: Int[Array, "B N"] | Float[Array, "B N C"],
    state: Any,
    rng: Array,
    order: Int[Array, "B N"] | None = None,
    given: int = 0,
) -> tuple[Array, dict]:
    """Generates the tokens of a plan.

    Args:
      step: see Step.
      plan: N tokens (a prefix plan generates a prefix).
      blank: tokens by index; only the given ones are read.
      state: initial state of the step, any pytree.
      rng: key; step k uses fold(rng, first slot of step k), so a prefix of the steps generates a
        prefix of the tokens.
      order: order per sample; None for the plan's.
      given: how many tokens of the order are known beforehand, as `blank` has them; those of the
        plan's given steps always are.

    Returns:
      Tokens [B, N, ...] by index, and stats {steps, network_calls, order}: how many of either ran,
      and in which order the tokens were drawn.
    """
    batch, n = blank.shape[:2]
    if order is None:
        order = jnp.broadcast_to(jnp.asarray(plan.order)[None], (batch, n))
    groups = runs(plan, step, max(given, plan.known))
    room = max((group[0].size for group in groups), default=0)
    tokens = _take(blank, order)
    # steps write `size` tokens, padding included: what is beyond is overwritten by the next step
    tokens = jnp.concatenate(
        [tokens, jnp.zeros_like(tokens, shape=(batch, room, *tokens.shape[2:]))], 1
    )

    def advance(carry, at):
        tokens, order, state = carry
        new, order, state = step.run(tokens, order, at, state, stream(rng, "sample", at.first))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new, at.first, axis=1)
        return (tokens, order, state), None

    carry = (tokens, order, state)
    for group in groups:
        if len(group) == 1:
            carry, _ = advance(carry, group[0])
            continue
        steps = jax.tree.map(lambda *v: jnp.asarray(v, jnp.int32), *group)
        carry, _ = jax.lax.scan(advance, carry, steps)
    tokens, order, _ = carry
    steps = sum(map(len, groups))
    calls = steps * step.calls if isinstance(step.calls, int) else sum(step.calls[:steps])
    stats = {"steps": steps, "network_calls": calls, "order": order}
    return _take(tokens[:, :n], jnp.argsort(order, axis=1)), stats


def _take(tokens, order):
    """tokens[b, order[b]]."""
    index = order if tokens.ndim == 2 else order[..., None]
    return jnp.take_along_axis(tokens, index, axis=1)
