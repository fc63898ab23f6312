"""The executor: one loop that generates with any plan.

It is handed a step function and knows nothing of models. Consecutive steps of equal size run in one
lax.scan; runs of different sizes are unrolled.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from nexttok.plans import Plan
from nexttok.rng import stream

# (tokens so far [B, N] in generation order, first slot, size, state, key) -> (new [B, size], state)
StepFn = Callable[[Array, Array, int, Any, Array], tuple[Array, Any]]


def generate(
    step_fn: StepFn, plan: Plan, batch: int, state: Any, rng: Array
) -> tuple[Int[Array, "B N"], dict]:
    """Generates the tokens of a plan.

    Args:
      step_fn: predicts `size` tokens of the order from slot `first` on; `state` is its cache.
      plan: N tokens (a prefix plan generates a prefix).
      batch: B.
      state: initial cache, any pytree.
      rng: key; step k uses fold(rng, first slot of step k), so a prefix of the steps generates a
        prefix of the tokens.

    Returns:
      ids int32 [B, N] by token index, and stats {"network_calls": number of steps}.
    """
    ids = jnp.zeros((batch, plan.length), jnp.int32)
    for first, size, count in plan.runs():

        def step(carry, i, first=first, size=size):
            ids, state = carry
            at = first + i * size
            new, state = step_fn(ids, at, size, state, stream(rng, "sample", at))
            return (jax.lax.dynamic_update_slice_in_dim(ids, new, at, axis=1), state), None

        (ids, state), _ = jax.lax.scan(step, (ids, state), jnp.arange(count, dtype=jnp.int32))
    inverse = jnp.argsort(jnp.asarray(plan.order))
    return jnp.take(ids, inverse, axis=1), {"network_calls": plan.calls}
