"""LANTERN: a guess also counts for the codes that look like it.

Visual tokens are nearly interchangeable, so that a flat law rejects almost every guess. The mass of
a guess's nearest codes is added to its own, up to a budget. (Jang et al., "LANTERN: Accelerating
Visual Autoregressive Models with Relaxed Speculative Decoding", 2024; the relative budget is that
of LANTERN++, Park et al., 2025.) The law that a guess is tested against differs from the model's by
at most the budget in total variation; as it depends on the guess, no bound is claimed for what is
drawn. A budget of 0 is exact.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.samplers.verify import Relax

CHUNK = 256  # rows of distances at a time


def nearest_codes(codes: Float[Array, "V C"], count: int) -> Int[Array, "V k"]:
    """The `count` codes nearest to each by Euclidean distance, itself left out, nearest first."""
    squares = jnp.square(codes).sum(-1)

    def row(i):
        distance = squares - 2.0 * codes @ codes[i]
        return jax.lax.top_k(-distance.at[i].set(jnp.inf), count)[1].astype(jnp.int32)

    return jax.lax.map(row, jnp.arange(len(codes)), batch_size=CHUNK)


def lantern(near: Int[Array, "V k"], budget: float, relative: bool = False) -> Relax:
    """Acceptance of a guess x by p(x) and the mass of its nearest codes, as many as fit the budget.

    Args:
      near: see nearest_codes.
      budget: in total variation, or relative to p(x).
      relative: see budget.
    """

    def relax(law, token):
        pooled = near[token]
        sums = jnp.cumsum(law[pooled])
        fits = sums <= (budget * law[token] if relative else budget)
        gained = jnp.where(fits, sums, 0.0).max()  # the sums never fall
        rest = law.at[pooled].set(jnp.where(fits, 0.0, law[pooled]))
        mass = law[token] + gained
        return mass, rest.at[token].set(mass)

    return relax
