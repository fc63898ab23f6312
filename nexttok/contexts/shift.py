"""Context `shift`: the slot that predicts a token holds the token before it in the order.

    order     a   b   c   d
    input   start a   b   c        step of slot i is i: attention is causal

(LlamaGen, FlexTok AR, D-AR, CM3, GIVT.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nexttok.config import check
from nexttok.plans import Plan

START = -1  # input id of the first slot: the learned start vector


def validate(plan: Plan) -> None:
    """Raises ConfigError unless every step of the plan predicts one token."""
    one = all(size == 1 for size in plan.sizes)
    sizes = f"(sizes {plan.sizes[:8]} ...)"
    allowed = f"block, query or mask, as the plan predicts several tokens in one step {sizes}"
    check(one, "generator.context", "shift", allowed)


def inputs(ids: Int[Array, "B N"]) -> Int[Array, "B N"]:
    """Input ids of all slots from the tokens in generation order: [START, t_0, .., t_{N-2}]."""
    start = jnp.full((ids.shape[0], 1), START, ids.dtype)
    return jnp.concatenate([start, ids[:, :-1]], axis=1)


def slots(ids: Int[Array, "B N"], first: Int[Array, ""], size: int) -> Int[Array, "B s"]:
    """Input ids of slots first .. first + size - 1 while decoding; `ids` holds what is known."""
    return jax.lax.dynamic_slice_in_dim(inputs(ids), first, size, axis=1)


def steps(plan: Plan) -> Int[np.ndarray, "N"]:
    """Step id of every slot; visibility is step[key] <= step[query]."""
    return plan.step_of_slot
